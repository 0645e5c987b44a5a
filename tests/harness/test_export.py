"""Hand-over: plain diffusers draws the same pictures from what is exported, and the card says what it is."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from harness.config import ROOT, ConfigError, compose, dump
from harness.models.pipelines.locate import check_pipeline, find_pipeline
from harness.models.pipelines.published import Licence, find_published
from harness.rollout import ode_trajectory
from harness.runs.directory import RunDirectory
from harness.trained.checkpoints import LORA_FILE, Checkpoint, find_checkpoint, find_run_checkpoint
from harness.trained.export import export, latest_weights
from harness.trained.loading import load_policy
from harness.trained.model_card import Form, model_card
from harness.training.evaluation import draw

PROMPT = 'the word "harbor" in red on yellow'
BASE = ROOT / "harness/models/miniature/base"

# What a user of plain diffusers writes: nothing of this project is imported but the autoencoder's class.
DRAW = f"""
import sys
import numpy, torch
import harness.models.miniature
from diffusers import FluxPipeline, FluxTransformer2DModel
for folder in sys.argv[1:]:
    form = folder.rsplit("-")[-1]
    pipeline = FluxPipeline.from_pretrained(folder if form == "pipeline" else {str(BASE)!r})
    if form == "lora":
        pipeline.load_lora_weights(folder)
    if form == "transformer":
        pipeline.transformer = FluxTransformer2DModel.from_pretrained(folder, subfolder="transformer")
    settings = dict(height=32, width=128, num_inference_steps=8, guidance_scale=3.5, max_sequence_length=24)
    for kind in ("latent", "np"):
        generator = torch.Generator().manual_seed(3407)
        drawn = pipeline({PROMPT!r}, generator=generator, output_type=kind, **settings).images
        numpy.save(f"{{folder}}/{{kind}}.npy", numpy.asarray(drawn))
"""
EXPORTS = [("lora_run", "lora"), ("lora_run", "pipeline"), ("full_run", "transformer"), ("full_run", "pipeline")]


@pytest.fixture(scope="module")
def exported(
    lora_run: RunDirectory, full_run: RunDirectory, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Path]:
    """Each run exported in each form, with what plain diffusers drew from it in a process of its own."""
    root = tmp_path_factory.mktemp("exports")
    runs = {"lora_run": lora_run, "full_run": full_run}
    folders = {(kind, form): root / f"{kind}-{form}" for kind, form in EXPORTS}
    for (kind, form), folder in folders.items():
        assert export(find_run_checkpoint(runs[kind].folder), folder, merge=form == "pipeline") == form
    command = [sys.executable, "-c", DRAW, *map(str, folders.values())]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folders


@pytest.mark.parametrize(("kind", "form"), EXPORTS)
def test_plain_diffusers_draws_the_same_pictures(
    kind: str, form: str, exported: dict[tuple[str, str], Path], request: pytest.FixtureRequest
) -> None:
    run: RunDirectory = request.getfixturevalue(kind)
    folder = exported[kind, form]
    latents, pictures = (torch.from_numpy(np.load(folder / f"{kind}.npy")) for kind in ("latent", "np"))

    policy = load_policy(find_run_checkpoint(run.folder), torch.device("cpu"), [PROMPT])
    with torch.no_grad():
        noise = policy.noise(torch.Generator().manual_seed(3407))
        ours = ode_trajectory(policy.velocity, noise, policy.encode([PROMPT]), policy.sigmas(8)).final
    torch.testing.assert_close(latents, ours, atol=1e-5, rtol=1e-5)
    of_seed = draw(policy, [PROMPT], [torch.Generator().manual_seed(3407)])
    # Ours are rounded as a PNG is, so a last digit can turn a level over.
    difference = ((pictures.permute(0, 3, 1, 2) * 255).round() / 255 - of_seed).abs()
    assert (difference > 1e-5).float().mean() < 1e-3
    assert difference.max() < 1.1 / 255

    again = load_policy(find_checkpoint(str(folder), "smoke"), torch.device("cpu"), [PROMPT])
    assert torch.equal(draw(again, [PROMPT], [torch.Generator().manual_seed(3407)]), of_seed)


def test_a_base_model_is_merged_wherever_it_is_found(lora_run: RunDirectory, tmp_path: Path) -> None:
    """As FLUX.1-dev is found in the hub's cache: not at a path relative to the repository."""
    twin = find_pipeline("twin:flux")
    config = compose("paper-dry", overrides=["optimizer.tuning=full"])
    checkpoint = Checkpoint("dry", config, weights=twin / "transformer", run=lora_run)
    assert export(checkpoint, tmp_path / "export", merge=True, licence="apache-2.0") == "pipeline"
    check_pipeline(tmp_path / "export")
    scheduler = json.loads((tmp_path / "export" / "scheduler" / "scheduler_config.json").read_text())
    assert (scheduler["shift"], scheduler["use_dynamic_shifting"]) == (3.0, False)


def test_the_card_has_front_matter_settings_and_what_the_run_measured(lora_run: RunDirectory, tmp_path: Path) -> None:
    export(find_run_checkpoint(lora_run.folder), tmp_path / "export")
    _, front, text = (tmp_path / "export" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": "harness/models/miniature/base",
        "base_model_relation": "adapter",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "diffusers", "grpo", "flow-grpo", "lora"],
        "license": "apache-2.0",
    }
    assert lora_run.run_id in text
    assert "rank 16, alpha 32" in text
    records = [json.loads(line) for line in (lora_run.folder / "eval.jsonl").read_text().splitlines()]
    before, after = (r["metrics"]["colour"] for r in records if r["split"] == "test")
    assert f"| colour | {before:.4f} | {after:.4f} |" in text
    assert {path.name for path in (tmp_path / "export").iterdir()} == {LORA_FILE, "README.md", "config.yaml"}


@pytest.mark.parametrize(
    ("path", "guidance"),
    [
        ("twin:qwen-image", 'true_cfg_scale=4.0, negative_prompt=""'),
        ("Qwen/Qwen-Image", 'true_cfg_scale=4.0, negative_prompt=""'),
        ("twin:flux", "guidance_scale=4.0"),
    ],
)
def test_the_card_s_code_draws_as_training_does(
    path: str, guidance: str, lora_run: RunDirectory, tmp_path: Path
) -> None:
    """Guided as there, with the evaluation's steps and size; merged weights as they are stored."""
    run = RunDirectory(tmp_path)
    (tmp_path / "status.json").write_bytes((lora_run.folder / "status.json").read_bytes())
    drawn = ["evaluation.num_steps=7", "evaluation.height=64", "evaluation.width=32"]
    overrides = ["iterations=1", f"model.path={path}", "model.guidance=4.0", "model.precision=bf16", *drawn]
    (tmp_path / "config.yaml").write_text(dump(compose("paper-dry", overrides=overrides)))
    forms: tuple[Form, ...] = ("lora", "pipeline")
    cards = [model_card(run, form, Licence("mit")) for form in forms]
    assert all(f"\n    {guidance}, max_sequence_length=" in card for card in cards)
    assert all("height=64, width=32, num_inference_steps=7," in card for card in cards)
    assert ["torch_dtype=torch.bfloat16" in card for card in cards] == [True, False]
    assert "torch_dtype=torch.float32" in cards[1]


def test_the_licence_of_every_model_is_known() -> None:
    files = [path for path in (ROOT / "experiments" / "models").glob("*.yaml") if "twin" not in path.stem]
    paths = [yaml.safe_load(path.read_text())["model"]["path"] for path in files]
    assert len(paths) >= 9
    assert [path for path in paths if find_published(path) is None] == []


def test_an_unknown_base_needs_a_licence_and_nothing_is_written_without(lora_run: RunDirectory, tmp_path: Path) -> None:
    for path in ("black-forest-labs/FLUX.1-dev", "/models/FLUX.1-dev"):
        flux = find_published(path)
        assert flux is not None
        assert flux.licence.name == "flux-1-dev-non-commercial-license"
    checkpoint = find_run_checkpoint(lora_run.folder)
    elsewhere = checkpoint.config.model.model_copy(update={"path": "models/base"})
    unknown = replace(checkpoint, config=checkpoint.config.model_copy(update={"model": elsewhere}))
    with pytest.raises(ConfigError, match="licence of models/base is not known here: name it with  --license"):
        export(unknown, tmp_path / "export")
    assert not (tmp_path / "export").exists()
    export(unknown, tmp_path / "export", licence="mit")
    assert "license: mit" in (tmp_path / "export" / "README.md").read_text()
    with pytest.raises(ConfigError, match="is in use"):
        export(checkpoint, tmp_path / "export")


def test_the_latest_checkpoint_of_an_unfinished_run_is_exported(tmp_path: Path, full_run: RunDirectory) -> None:
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(full_run.folder, run.folder)
    with (
        pytest.raises(ConfigError, match="is finished; export its final weights, without --latest"),
        latest_weights(run.folder),
    ):
        pass
    shutil.rmtree(run.folder / "checkpoints" / "final")
    run.set_status("running", 1, 1)
    with pytest.raises(ConfigError, match=r"has no final weights yet .* or use  adagrpo export --latest"):
        find_run_checkpoint(run.folder)
    with latest_weights(run.folder) as checkpoint:
        assert export(checkpoint, tmp_path / "latest") == "transformer"
    assert export(find_run_checkpoint(full_run.folder), tmp_path / "final") == "transformer"
    exported, final = (
        load_file(tmp_path / name / "transformer" / "diffusion_pytorch_model.safetensors")
        for name in ("latest", "final")
    )
    assert exported.keys() == final.keys()
    assert all(torch.equal(exported[name], weight) for name, weight in final.items())
    assert not [path for path in run.checkpoints.iterdir() if path.name.startswith(".export")]
    shutil.rmtree(run.checkpoints)
    with pytest.raises(ConfigError, match="has no checkpoint yet"), latest_weights(run.folder):
        pass
