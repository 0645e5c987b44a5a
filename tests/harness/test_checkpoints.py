"""Checkpoints: everything that can be drawn from is found, draws what it should, and is named if it is broken."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from harness.checkpoints import LORA_FILE, Checkpoint, find_checkpoint
from harness.config import ROOT, ConfigError, compose
from harness.evaluation import draw
from harness.models.trained import load_policy
from harness.runs import RunDirectory

PROMPTS = ['the word "harbor" in red on yellow']
CPU = torch.device("cpu")


def drawn(checkpoint: Checkpoint) -> torch.Tensor:
    policy = load_policy(checkpoint, CPU, PROMPTS)
    return draw(policy, PROMPTS, [torch.Generator().manual_seed(1)])


@pytest.fixture(scope="module")
def of_base() -> torch.Tensor:
    return drawn(find_checkpoint("base", "miniature"))


@pytest.mark.parametrize("kind", ["lora_run", "full_run"])
def test_a_run_and_its_files_draw_alike_and_unlike_the_base(
    kind: str, request: pytest.FixtureRequest, of_base: torch.Tensor
) -> None:
    run: RunDirectory = request.getfixturevalue(kind)
    final = run.folder / "checkpoints" / "final"
    of_run = drawn(find_checkpoint(str(run.folder), "smoke"))
    names = [final, final / LORA_FILE] if kind == "lora_run" else [final, final / "transformer"]
    for name in names:
        assert torch.equal(drawn(find_checkpoint(str(name), "miniature")), of_run)
    assert (of_run - of_base).abs().mean() > 0.02


def test_a_pipeline_folder_is_a_base_and_labels_tell_what_it_is(lora_run: RunDirectory, of_base: torch.Tensor) -> None:
    folder = ROOT / "harness/models/miniature/base"
    assert torch.equal(drawn(find_checkpoint(str(folder), "miniature")), of_base)
    assert find_checkpoint("base", "miniature").label == "base (miniature)"
    assert find_checkpoint(str(lora_run.folder), "miniature").label == "flow_grpo random, seed 0"


def test_another_size_and_number_of_steps() -> None:
    checkpoint = find_checkpoint("base", "miniature").sampled(height=48, width=160, num_steps=3)
    assert drawn(checkpoint).shape == (1, 3, 48, 160)
    for arguments in ({"height": 40}, {"width": 0}, {"num_steps": 1}):
        with pytest.raises(ConfigError, match="must be"):
            checkpoint.sampled(**arguments)


def test_a_prompt_that_the_model_cannot_draw_is_named() -> None:
    with pytest.raises(ConfigError, match="has characters or words that"):
        load_policy(find_checkpoint("base", "miniature"), CPU, ["a cat"])


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or folder; it can be 'base', a run directory"):
        find_checkpoint(str(tmp_path / "nothing"), "miniature")
    with pytest.raises(ConfigError, match="has no weights to load"):
        find_checkpoint(str(tmp_path), "miniature")


def test_an_unfinished_run_says_how_to_finish_it(lora_run: RunDirectory, tmp_path: Path) -> None:
    for name in ("config.yaml", "status.json"):
        shutil.copy(lora_run.folder / name, tmp_path)
    RunDirectory(tmp_path).set_status("running", 0, 1)
    with pytest.raises(ConfigError, match=r"iteration 0 of 1, running\); finish it with  adagrpo train --resume"):
        find_checkpoint(str(tmp_path), "miniature")


def broken(source: Path, target: Path, how: str) -> Path:
    """A LoRA file with one fault."""
    with safe_open(source, "pt") as content:
        metadata = content.metadata()
    tensors = load_file(source)
    first = next(iter(tensors))
    if how == "another model":
        tensors[first.replace("blocks.0", "blocks.18")] = tensors.pop(first)
    elif how == "another width":
        tensors[first] = tensors[first][:, :-1].contiguous()
    elif how == "not finite":
        tensors[first][0, 0] = float("nan")
    elif how == "another format":
        tensors = {"lora_unet_down.alpha": torch.ones(1)}
    save_file(tensors, target, metadata)
    if how == "cut off":
        target.write_bytes(target.read_bytes()[:-100])
    elif how == "no weights":
        target.write_text("<html>404</html>", encoding="utf-8")
    return target


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("another model", r"is of another model: \w+_blocks\.18"),
        ("another width", "is of another model"),
        ("not finite", "has values that are not finite"),
        ("another format", "which is no adapter of a transformer"),
        ("cut off", "is damaged or was cut off"),
        ("no weights", "is damaged or was cut off"),
    ],
)
def test_broken_adapters_are_one_line(how: str, expected: str, lora_run: RunDirectory, tmp_path: Path) -> None:
    path = broken(lora_run.folder / "checkpoints" / "final" / LORA_FILE, tmp_path / "lora.safetensors", how)
    with pytest.raises(ConfigError, match=expected) as error:
        drawn(find_checkpoint(str(path), "miniature"))
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_broken_transformers_are_one_line(full_run: RunDirectory, tmp_path: Path) -> None:
    source = full_run.folder / "checkpoints" / "final" / "transformer"
    folder = tmp_path / "transformer"
    shutil.copytree(source, folder)
    file = folder / "diffusion_pytorch_model.safetensors"
    whole = load_file(file)
    partial = dict(list(whole.items())[1:])
    save_file(partial, file)
    with pytest.raises(ConfigError, match="1 weights are missing, such as"):
        drawn(find_checkpoint(str(folder), "miniature"))
    save_file(whole | {"proj_out.weight": torch.zeros(3, 3)}, file)
    with pytest.raises(ConfigError, match=r"is of another model: proj_out\.weight"):
        drawn(find_checkpoint(str(folder), "miniature"))
    file.write_bytes((source / file.name).read_bytes()[:5000])
    with pytest.raises(ConfigError, match="is damaged or was cut off"):
        drawn(find_checkpoint(str(folder), "miniature"))


def test_profiles_of_foreign_files_are_checked(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="files there: "):
        find_checkpoint(str(tmp_path / "x.safetensors"), "no-such-profile")
    assert find_checkpoint(str(tmp_path / "x.safetensors"), "miniature").config == compose("miniature")
