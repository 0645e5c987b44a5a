"""Finding and loading a pipeline: what is missing, cut off or of another model is one clear line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file

from harness.config import ConfigError, ModelConfig, OptimizerConfig
from harness.models.pipelines.files import model_fingerprint, text_fingerprint
from harness.models.pipelines.locate import check_pipeline, find_local, find_pipeline, how_to_get, problem_of
from harness.models.pipelines.published import download_command
from harness.models.pipelines.registry import build_policy

WEIGHTS = "diffusion_pytorch_model.safetensors"
FLUX = "black-forest-labs/FLUX.1-dev"


@pytest.fixture
def twin(tmp_path: Path) -> Path:
    """A copy of SD3.5's twin, to be broken."""
    return Path(shutil.copytree(find_pipeline("twin:sd3"), tmp_path / "twin"))


def cut(file: Path, count: int) -> None:
    file.write_bytes(file.read_bytes()[:count])


def rewrite(file: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def without_one(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(sorted(tensors.items())[1:])


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def lose_a_shard(twin: Path) -> None:
    part, shards = twin / "transformer", [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    (part / WEIGHTS).rename(part / shards[0])
    (part / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}}))


BREAKAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "weights cut off": (lambda p: cut(p / "transformer" / WEIGHTS, 9_000_000), "is damaged or was cut off"),
    "no weights": (lambda p: (p / "text_encoder_2" / "model.safetensors").unlink(), "has no weights"),
    "no shard": (lose_a_shard, r"00002-of-00002\.safetensors is missing"),
    "no configuration": (lambda p: (p / "vae" / "config.json").unlink(), "vae/config.json cannot be read"),
    "broken configuration": (lambda p: (p / "vae" / "config.json").write_text("{"), "is not valid JSON"),
    "no vocabulary": (lambda p: (p / "tokenizer_2" / "tokenizer.json").unlink(), "tokenizer_2 has no vocabulary"),
    "no scheduler": (lambda p: shutil.rmtree(p / "scheduler"), "scheduler_config.json cannot be read"),
    "no index": (lambda p: (p / "model_index.json").unlink(), "no model_index.json there"),
    "broken index": (lambda p: (p / "model_index.json").write_text("[]"), "must hold a JSON object"),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_what_is_missing_or_damaged_is_named_before_anything_is_loaded(twin: Path, breakage: str) -> None:
    check_pipeline(twin)
    spoil, expected = BREAKAGES[breakage]
    spoil(twin)
    with pytest.raises(ConfigError, match=expected) as error:
        find_pipeline(str(twin))
    assert "\n" not in str(error.value)


MISFITS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "transformer lacks one": (lambda p: rewrite(p / "transformer" / WEIGHTS, without_one), "for 1 parameters of SD3T"),
    "encoder of another model": (
        lambda p: shutil.copy(p / "text_encoder" / "model.safetensors", p / "text_encoder_3" / "model.safetensors"),
        "parameters of T5EncoderModel",
    ),
    "transformer of another width": (
        lambda p: edit(p / "transformer" / "config.json", joint_attention_dim=32),
        "transformer cannot be loaded: .*expected shape",
    ),
    "class that does not exist": (
        lambda p: edit(p / "model_index.json", vae=["diffusers", "AutoencoderOfTomorrow"]),
        "AutoencoderOfTomorrow, which diffusers does not have",
    ),
    "code from elsewhere": (lambda p: edit(p / "model_index.json", vae=["os", "system"]), "is of 'os'"),
    "another pipeline": (
        lambda p: edit(p / "model_index.json", _class_name="PixArtAlphaPipeline"),
        "is a PixArtAlphaPipeline; FluxPipeline, StableDiffusion3Pipeline, ",
    ),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_weights_that_do_not_fit_are_never_filled_with_random_numbers(twin: Path, misfit: str) -> None:
    spoil, expected = MISFITS[misfit]
    spoil(twin)
    with pytest.raises(ConfigError, match=expected) as error:
        build_policy(ModelConfig(path=str(twin)), OptimizerConfig(), torch.device("cpu"), 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["no/such/folder", "../outside", "twin:dalle"])
def test_a_path_that_names_nothing_is_one_clear_line(path: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.path"):
        find_pipeline(path)


def test_a_folder_counts_before_the_hub_and_a_twin_before_both(tmp_path: Path) -> None:
    assert find_local(str(tmp_path)) == tmp_path
    assert problem_of(tmp_path) == f"model.path: {tmp_path} is no pipeline folder (no model_index.json there)"
    assert find_local("no/such/folder") is None
    assert problem_of(find_pipeline("twin:flux")) is None


def test_advice_has_the_licence_and_the_exact_command() -> None:
    advice = how_to_get(FLUX)
    assert f"accept flux-1-dev-non-commercial-license at https://huggingface.co/{FLUX}, log in" in advice
    assert f"run  hf download {FLUX} --include 'model_index.json' --include 'scheduler/*'" in advice
    assert advice.endswith("--exclude '*.onnx*'  (33.8 GB)")
    assert how_to_get("someone/else").startswith("accept its licence at https://huggingface.co/someone/else if it has")
    assert how_to_get("/no/such/folder").endswith("'/no/such/folder' is no hub id; set model.path")


# --- the hub, without any network -------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[bool]]:
    """Says what the local cache and the hub answer, instead of a download; the list is of calls' local_files_only."""

    def answer(cached: Path | None, remote: Path | Exception | None = None, offline: bool = False) -> list[bool]:
        calls: list[bool] = []

        def snapshot_download(repository: str, local_files_only: bool, **patterns: Any) -> str:
            calls.append(local_files_only)
            assert repository == FLUX
            assert "transformer/*" in patterns["allow_patterns"]
            found = cached if local_files_only else remote
            if isinstance(found, Exception):
                raise found
            if found is None:
                raise LocalEntryNotFoundError("nothing here")
            return str(found)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        return calls

    return answer


def refusal(kind: type[Exception]) -> Exception:
    """An error of the hub's client, without the response that it wants."""
    return type(kind.__name__, (kind,), {"__init__": lambda self: None})()


def test_the_hub_s_own_cache_is_looked_into(twin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert find_local(FLUX) is None
    copy = tmp_path / "hub" / "models--black-forest-labs--FLUX.1-dev"
    (copy / "snapshots").mkdir(parents=True)
    (copy / "refs").mkdir()
    (copy / "refs" / "main").write_text("abc")
    twin.rename(copy / "snapshots" / "abc")
    assert find_local(FLUX) == find_pipeline(FLUX) == copy / "snapshots" / "abc"


def test_a_repository_that_is_not_whole_is_downloaded(hub: Any, twin: Path) -> None:
    cut(twin / "transformer" / WEIGHTS, 1000)
    hub(cached=twin, remote=find_pipeline("twin:flux"))
    assert find_pipeline(FLUX) == find_pipeline("twin:flux")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"cached": None, "offline": True}, "HF_HUB_OFFLINE is set"),
        ({"cached": None, "remote": refusal(GatedRepoError)}, "is gated"),
        ({"cached": None, "remote": refusal(RepositoryNotFoundError)}, "does not exist on the hub"),
        ({"cached": None, "remote": None}, "the hub cannot be reached"),
        ({"cached": None, "remote": OSError("No space left on device")}, "No space left on device"),
    ],
)
def test_a_repository_that_cannot_be_had_says_what_to_do(hub: Any, answers: dict[str, Any], expected: str) -> None:
    calls = hub(**answers)
    with pytest.raises(ConfigError, match=expected) as error:
        find_pipeline(FLUX)
    message = str(error.value)
    assert "\n" not in message
    assert f"https://huggingface.co/{FLUX}" in message
    assert download_command(FLUX) in message
    assert calls == ([True] if answers.get("offline") else [True, False])


# --- fingerprints -----------------------------------------------------------------------------------------------------


def test_fingerprints_count_weights_and_configs_and_no_file_beside_them(twin: Path) -> None:
    before, text = model_fingerprint(twin), text_fingerprint(twin)
    (twin / "README.md").write_text("a model card")
    (twin / "flux1-dev.safetensors").write_bytes(b"the same weights in one file")
    assert model_fingerprint(twin) == before
    edit(twin / "vae" / "config.json", scaling_factor=1.0)
    changed = model_fingerprint(twin)
    assert changed != before
    assert text_fingerprint(twin) == text
    rewrite(twin / "text_encoder" / "model.safetensors", lambda t: {name: value + 1 for name, value in t.items()})
    assert model_fingerprint(twin) != changed
    assert text_fingerprint(twin) != text
