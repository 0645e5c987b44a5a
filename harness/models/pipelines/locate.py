"""Locating the pipeline that a configuration names and checking that it is complete, without heavy imports."""

import json
import re
import sys
from pathlib import Path
from typing import Any

from harness.config import ROOT, ConfigError
from harness.models.pipelines.files import component_folders, opened
from harness.models.pipelines.published import UNWANTED, WANTED, how_to_fetch

TWIN_PREFIX = "twin:"
TWIN_NAMES = ("flux", "sd3", "flux2-klein", "qwen-image", "z-image")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors")
_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))


def find_pipeline(path: str) -> Path:
    """Find the complete pipeline folder that ``model.path`` names.

    Args:
        path: a folder, absolute or relative to the repository; ``twin:`` and one of ``TWIN_NAMES``, built if necessary;
            or a hub id ``owner/name``, taken from the hub's local cache, or downloaded if it is missing or incomplete
            there (with HF_HUB_OFFLINE=1: only from the cache).

    Raises:
        ConfigError: the pipeline does not exist, is incomplete or damaged, or cannot be downloaded; says what to do.
    """
    folder = find_local(path)
    if is_hub_id(path):
        return folder if folder is not None and problem_of(folder) is None else _download(path)
    if folder is None:
        raise ConfigError(f"model.path: {how_to_get(path)}")
    check_pipeline(folder)
    return folder


def find_local(path: str) -> Path | None:
    """Folder that ``model.path`` names, complete or not; None if it is not on this machine. Nothing is downloaded.

    Raises:
        ConfigError: the path names an unknown twin.
    """
    if path.startswith(TWIN_PREFIX):
        name = path.removeprefix(TWIN_PREFIX)
        if name not in TWIN_NAMES:
            raise ConfigError(f"model.path: there is no twin {name!r}, there are {', '.join(TWIN_NAMES)}")
        from harness.models.pipelines.twins import twin_folder

        return twin_folder(name)
    if is_hub_id(path):
        return _snapshot(path, local_files_only=True)
    return ROOT / path if (ROOT / path).is_dir() else None


def is_hub_id(path: str) -> bool:
    """Whether a ``model.path`` names a repository on the hub."""
    return _HUB_ID.fullmatch(path) is not None and not (ROOT / path).is_dir()


def how_to_get(path: str) -> str:
    """Instructions for a model that is not on this machine."""
    if is_hub_id(path):
        return how_to_fetch(path)
    return f"{ROOT / path} is no pipeline folder (no such folder), and {path!r} is no hub id; set model.path"


def class_name_of(pipeline: Path) -> str:
    """Name of the pipeline class in a folder's model_index.json."""
    return str(_read_json(pipeline / "model_index.json").get("_class_name"))


def check_pipeline(pipeline: Path) -> None:
    """Raise ConfigError if a component's configuration, vocabulary or weights are missing or truncated.

    Only the headers of weight files are read, which takes milliseconds for any size.
    """
    if not (pipeline / "model_index.json").is_file():
        raise ConfigError(f"model.path: {pipeline} is no pipeline folder (no model_index.json there)")
    _read_json(pipeline / "model_index.json")
    for name in component_folders(pipeline):
        folder = pipeline / name
        if name.startswith("scheduler"):
            _read_json(folder / "scheduler_config.json")
        elif name.startswith("tokenizer"):
            if not any(all((folder / file).is_file() for file in files) for files in _VOCABULARIES):
                raise ConfigError(f"model.path: {folder} has no vocabulary (such as tokenizer.json); fetch it again")
        else:
            _read_json(folder / "config.json")
            _check_weights(folder)


def problem_of(pipeline: Path) -> str | None:
    """Error message of ``check_pipeline``; None if the folder is complete."""
    try:
        check_pipeline(pipeline)
    except ConfigError as error:
        return str(error)
    return None


def _download(repository: str) -> Path:
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    downloaded, why = None, "cannot be downloaded (the hub cannot be reached)"
    if HF_HUB_OFFLINE:
        why = "is not, or not whole, in the local cache (HF_HUB_OFFLINE is set)"
    else:
        print(f"downloading {repository}: tens of GB, once", file=sys.stderr)
        try:
            downloaded = _snapshot(repository, local_files_only=False)
        except GatedRepoError:
            why = "is gated, and this machine has no access yet"
        except RepositoryNotFoundError:
            why = "does not exist on the hub, or needs a login"
        except OSError as error:
            why = f"cannot be downloaded ({' '.join(str(error).split())[:200]})"
    if downloaded is None:
        what = f"{repository} is no folder here, and the hub's repository of that name {why}"
        raise ConfigError(f"model.path: {what}; {how_to_fetch(repository)}")
    check_pipeline(downloaded)
    return downloaded


def _snapshot(repository: str, local_files_only: bool) -> Path | None:
    """Local copy of a hub repository, after a download unless ``local_files_only``; None if there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    options: dict[str, Any] = {"allow_patterns": list(WANTED), "ignore_patterns": list(UNWANTED)}
    try:
        return Path(snapshot_download(repository, local_files_only=local_files_only, **options))
    except LocalEntryNotFoundError:
        return None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not valid JSON"
        raise ConfigError(f"model.path: {file} cannot be read ({reason}); fetch it again") from None
    if not isinstance(content, dict):
        raise ConfigError(f"model.path: {file} must hold a JSON object; fetch it again")
    return content


def _check_weights(component: Path) -> None:
    """Raise ConfigError unless a component's safetensors files, either those in its index or a single one, exist and
    are as long as their headers say."""
    if indices := sorted(component.glob("*.safetensors.index.json")):
        names = sorted(set(_read_json(indices[0]).get("weight_map", {}).values()))
    else:
        names = [name for name in _WEIGHTS if (component / name).is_file()][:1]
    if not names:
        raise ConfigError(f"model.path: {component} has no weights (no {' or '.join(_WEIGHTS)}); fetch them")
    try:
        for name in names:
            with opened(component / name):
                pass
    except ConfigError as error:
        raise ConfigError(f"model.path: {error}") from None
