"""Checkpoints: everything that can be drawn from is found, draws what it should, and is named if it is broken."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.cli import main
from harness.config import ROOT, ConfigError, compose, dump
from harness.models.pipelines.lora_files import read_lora
from harness.models.pipelines.weights import copy_weights
from harness.runs.directory import RunDirectory
from harness.trained.checkpoints import LORA_FILE, Checkpoint, find_checkpoint
from harness.trained.loading import load_policy
from harness.training.evaluation import draw

PROMPTS = ['the word "harbor" in red on yellow']
CPU = torch.device("cpu")


def drawn(checkpoint: Checkpoint) -> torch.Tensor:
    policy = load_policy(checkpoint, CPU, PROMPTS)
    return draw(policy, PROMPTS, [torch.Generator().manual_seed(1)])


@pytest.fixture(scope="module")
def of_base() -> torch.Tensor:
    return drawn(find_checkpoint("base", "miniature-luck"))


@pytest.mark.parametrize("kind", ["lora_run", "full_run"])
def test_a_run_and_its_files_draw_alike_and_unlike_the_base(
    kind: str, request: pytest.FixtureRequest, of_base: torch.Tensor
) -> None:
    run: RunDirectory = request.getfixturevalue(kind)
    final = run.folder / "checkpoints" / "final"
    of_run = drawn(find_checkpoint(str(run.folder), "smoke"))
    names = [final, final / LORA_FILE] if kind == "lora_run" else [final, final / "transformer"]
    for name in names:
        assert torch.equal(drawn(find_checkpoint(str(name), "miniature-luck")), of_run)
    assert (of_run - of_base).abs().mean() > 0.02


def test_a_pipeline_folder_is_a_base_and_labels_tell_what_it_is(lora_run: RunDirectory, of_base: torch.Tensor) -> None:
    folder = ROOT / "harness/models/miniature/base"
    assert torch.equal(drawn(find_checkpoint(str(folder), "miniature-luck")), of_base)
    assert find_checkpoint("base", "miniature-luck").label == "base (miniature-luck)"
    assert find_checkpoint(str(lora_run.folder), "miniature-luck").label == "flow_grpo random, seed 0"


def test_a_merged_pipeline_is_neither_rounded_nor_quantised(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    config = compose("paper-dry", overrides=["optimizer.tuning=lora", "model.precision=bf16", "model.quantise=nf4"])
    (tmp_path / "config.yaml").write_text(dump(config))
    model = find_checkpoint(str(tmp_path), "smoke").config.model
    assert (model.precision, model.quantise) == ("fp32", "none")


def test_another_size_and_number_of_steps() -> None:
    checkpoint = find_checkpoint("base", "miniature-luck").sampled(height=48, width=160, num_steps=3)
    assert drawn(checkpoint).shape == (1, 3, 48, 160)
    for arguments, said in (({"width": 0}, r"base .*: width=0: .* greater than"), ({"num_steps": 1}, "num_steps=1")):
        with pytest.raises(ConfigError, match=said):
            checkpoint.sampled(**arguments)
    with pytest.raises(ConfigError, match="height and width must be multiples of 16"):
        drawn(checkpoint.sampled(height=40))


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or folder; it can be 'base', a run directory"):
        find_checkpoint(str(tmp_path / "nothing"), "miniature-luck")
    with pytest.raises(ConfigError, match="has no weights to load"):
        find_checkpoint(str(tmp_path), "miniature-luck")


def small_lora(path: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], object] = lambda t, m: None) -> Path:
    """A LoRA file of one module with rank 2 and alpha 4, changed."""
    tensors = {"transformer.x.lora_A.weight": torch.ones(2, 3), "transformer.x.lora_B.weight": torch.ones(5, 2)}
    metadata: dict[str, Any] = {"transformer.r": 2, "transformer.lora_alpha": 4}
    change(tensors, metadata)
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps(metadata)} if metadata else None)
    return path


A, B = "transformer.x.lora_A.weight", "transformer.x.lora_B.weight"
SCALED: dict[str, tuple[Callable[[dict[str, Tensor], dict[str, Any]], object], float]] = {
    "alpha / rank": (lambda t, m: None, 2),
    "no metadata": (lambda t, m: m.clear(), 1),
    "rank-stabilised": (lambda t, m: m.update({"transformer.use_rslora": True}), 4 / 2**0.5),
    "of a pattern": (lambda t, m: m.update({"transformer.r": 8, "transformer.rank_pattern": {"x": 2}}), 2),
    "alpha of a pattern": (lambda t, m: m.update({"transformer.alpha_pattern": {"x": 1}}), 0.5),
    "alpha as a tensor": (lambda t, m: (m.clear(), t.update({"transformer.x.alpha": torch.tensor(3.0)})), 1.5),
    "half precision": (lambda t, m: t.update({k: v.bfloat16() for k, v in t.items()}), 2),
    "peft's names": (
        lambda t, m: t.update(
            {f"base_model.model.x.lora_{k}.weight": t.pop(f"transformer.x.lora_{k}.weight") for k in "AB"}
        ),
        2,
    ),
    "kohya's parts": (lambda t, m: t.update({"x.lora_down.weight": t.pop(A), "x.lora_up.weight": t.pop(B)}), 2),
}


@pytest.mark.parametrize("how", SCALED)
def test_a_lora_file_gives_the_whole_change_whoever_wrote_it(how: str, tmp_path: Path) -> None:
    change, scale = SCALED[how]
    tensors = read_lora(small_lora(tmp_path / "lora.safetensors", change))
    assert torch.equal(tensors[A], torch.ones(2, 3))
    torch.testing.assert_close(tensors[B], torch.full((5, 2), float(scale)))


REFUSED: dict[str, tuple[Callable[[dict[str, Tensor], dict[str, Any]], object], str]] = {
    "no A": (lambda t, m: t.pop(A), r"1 of 2 tensors are missing, such as x\.lora_A"),
    "ranks differ": (lambda t, m: t.update({B: torch.ones(5, 3)}), "no common rank"),
    "a convolution": (lambda t, m: t.update({A: torch.ones(2, 3, 1, 1)}), "no common rank"),
    "another rank in the metadata": (lambda t, m: m.update({"transformer.r": 4}), "has rank 2, but .* says 4"),
    "integers": (lambda t, m: t.update({A: torch.ones(2, 3, dtype=torch.int8)}), "no floating-point numbers"),
    "twice": (lambda t, m: t.update({"x.lora_down.weight": torch.ones(2, 3)}), "lora_A of x twice"),
    "infinite": (lambda t, m: t.update({B: torch.full((5, 2), torch.inf)}), "not finite"),
    "an alpha without adapter": (lambda t, m: t.update({"transformer.y.alpha": torch.ones(1)}), r"as y\.lora_A"),
    "no alpha": (lambda t, m: m.pop("transformer.lora_alpha"), "alpha of x is None"),
    "alpha in words": (lambda t, m: m.update({"transformer.lora_alpha": "4"}), "alpha of x is '4'"),
    "alpha nan": (lambda t, m: m.update({"transformer.lora_alpha": float("nan")}), "alpha of x is nan"),
    "DoRA": (lambda t, m: m.update({"transformer.use_dora": True}), "use_dora=True, which is not read here"),
    "PiSSA": (lambda t, m: m.update({"transformer.init_lora_weights": "pissa"}), "init_lora_weights='pissa'"),
    "a text encoder's": (lambda t, m: t.update({"text_encoder.y.q.lora_magnitude": torch.ones(1)}), "text_encoder"),
    "kohya's names": (lambda t, m: t.update({"lora_unet_x": torch.ones(1)}), "convert it to diffusers' names"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_lora_files_that_are_not_whole_or_mean_something_else_are_one_line(how: str, tmp_path: Path) -> None:
    change, expected = REFUSED[how]
    path = small_lora(tmp_path / "lora.safetensors", change)
    with pytest.raises(ConfigError, match=expected) as error:
        read_lora(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_settings_of_pefts_own_format_lie_beside_it(tmp_path: Path) -> None:
    path = small_lora(tmp_path / "adapter_model.safetensors", lambda t, m: m.clear())
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 6}', encoding="utf-8")
    assert read_lora(path)[B][0, 0] == 3


def test_half_a_lora_is_refused_and_one_of_a_newer_peft_is_drawn_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = Path(__file__).parents[1] / "data" / "cases"
    options = ("--profile", "paper-dry", "--prompt", "a cat", "--steps", "2", "--output", str(tmp_path))
    for name, code, said in (("only-A", 2, "30 of 60 tensors are missing"), ("newer-peft", 0, "new_key_of_peft_9")):
        with pytest.raises(SystemExit) as ended:
            main(["sample", str(cases / f"lora-{name}.safetensors"), *options])
        told = [line for line in capsys.readouterr().err.splitlines() if "lora" in line]
        assert (ended.value.code or 0) == code
        assert [said in line and f"lora-{name}" in line for line in told] == [True]
    assert len(list(tmp_path.glob("*.png"))) == 1


BROKEN: dict[str, tuple[Callable[[Path, dict[str, Tensor]], object], str]] = {
    "another model": (
        lambda p, t: save_file({name.replace("blocks.0", "blocks.18"): tensor for name, tensor in t.items()}, p),
        r"is of another model: \w+_blocks\.18",
    ),
    "another width": (
        lambda p, t: save_file({k: v[:, :-1].clone() if ".lora_A" in k else v for k, v in t.items()}, p),
        "is of another model",
    ),
    "cut off": (lambda p, t: p.write_bytes(p.read_bytes()[:-100]), "is damaged or was cut off"),
    "no weights": (lambda p, t: p.write_text("<html>404</html>"), "is damaged or was cut off"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_adapters_are_one_line(how: str, lora_run: RunDirectory, tmp_path: Path) -> None:
    spoil, expected = BROKEN[how]
    path = Path(shutil.copy(lora_run.folder / "checkpoints" / "final" / LORA_FILE, tmp_path))
    spoil(path, load_file(path))
    with pytest.raises(ConfigError, match=expected) as error:
        drawn(find_checkpoint(str(path), "miniature-luck"))
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_broken_transformers_are_one_line(full_run: RunDirectory, tmp_path: Path) -> None:
    source = full_run.folder / "checkpoints" / "final" / "transformer"
    folder = Path(shutil.copytree(source, tmp_path / "transformer"))
    file = folder / "diffusion_pytorch_model.safetensors"
    whole = load_file(file)
    policy = load_policy(find_checkpoint("base", "miniature-luck"), CPU, PROMPTS)
    first, spoilt = whole["proj_out.weight"], torch.full_like(whole["proj_out.weight"], torch.nan)
    for tensors, message in (
        (dict(list(whole.items())[1:]), "1 weights are missing, such as"),
        (whole | {"proj_out.weight": torch.zeros(3, 3)}, r"is of another model: proj_out\.weight"),
        (whole | {"proj_out.weight": spoilt}, r"proj_out\.weight has values that are not finite"),
    ):
        save_file(tensors, file)
        with pytest.raises(ConfigError, match=message):
            copy_weights(policy.transformer, folder)
    save_file(whole, file)
    save_file({"proj_out.weight": first}, folder / "diffusion_pytorch_model-00002.safetensors")
    with pytest.raises(ConfigError, match=r"has proj_out\.weight, as"):
        copy_weights(policy.transformer, folder)
