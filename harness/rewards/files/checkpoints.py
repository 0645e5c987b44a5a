"""Locating, reading and checking checkpoints of published reward models.

Nothing is downloaded here: a missing file is an error that names the command to download it.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.config import ROOT
from harness.foundation.names import REWARDS
from harness.models.pipelines.files import remembered_sha256
from harness.models.pipelines.locate import TWIN_PREFIX
from harness.rewards.base import RewardError
from harness.rewards.files.twins import find_twin

T = TypeVar("T")

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of weight files in a model folder; the first that exists is used."""

_HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:/([\w./-]+))?")


def locate(reward: str, key: str, place: str, needs: Sequence[str] | None = None, weights: bool = True) -> Path:
    """Find a checkpoint on this machine.

    Args:
        reward: name of the reward, for error messages.
        key: name of the setting, such as ``path``.
        place: a file or folder, absolute or relative to the repository; or a hub id, ``owner/name`` for a whole
            repository or ``owner/name/file``, which is looked up in the hub's cache; or a twin, as in ``twin:hpsv2``.
        needs: files that the folder must have; None if the checkpoint is a single file.
        weights: whether a repository's weights are needed, or only its configuration and tokenizer.

    Raises:
        RewardError: the checkpoint is missing; the message ends with the command that downloads it.
    """
    if place.startswith(TWIN_PREFIX):
        return find_twin(reward, key, place.removeprefix(TWIN_PREFIX))
    own = ROOT / Path(place).expanduser()
    path = own if own.exists() else _in_hub_cache(place)
    if path is None:
        raise _unfit(reward, key, f"{place} is not on this machine; {_advice(place, weights)}")
    if needs is None and not path.is_file():
        raise _unfit(reward, key, f"{path} is no file; give the checkpoint itself, as in {REWARDS[reward].path}")
    for name in needs or ():
        if not (path / name).is_file():
            raise _unfit(reward, key, f"{path} has no {name}; {_advice(place, weights)}")
    return path


def weights_file(reward: str, key: str, folder: Path, place: str) -> Path:
    """Weight file of a model folder. Raises RewardError if there is none."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise _unfit(reward, key, f"{folder} has no {' or '.join(WEIGHT_FILES)}; {_advice(place, True)}")


def _unfit(reward: str, key: str, problem: str) -> RewardError:
    return RewardError(f"reward {reward!r}: rewards.{reward}.{key}: {problem}")


def _in_hub_cache(place: str) -> Path | None:
    if (match := _HUB_ID.fullmatch(place)) is None:
        return None
    repository, file = match.groups()
    try:
        if file:
            return Path(hf_hub_download(repository, file, local_files_only=True))
        return Path(snapshot_download(repository, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _advice(place: str, weights: bool) -> str:
    match = _HUB_ID.fullmatch(place)
    if match is None or (ROOT / place).exists():
        return "give another place"
    repository, file = match.groups()
    what = f" {file}" if file else "" if weights else " --include '*.json' --include '*.txt'"
    return f"fetch it with `hf download {repository}{what}`"


# --- content --------------------------------------------------------------------------------------------------------


def sha256_of(files: Iterable[Path]) -> str:
    """sha256 over names and contents of files, wherever they lie: a run's id depends on it, which outlives a move."""
    digest = hashlib.sha256()
    for name, content in sorted((file.name, remembered_sha256(file)) for file in files):
        digest.update(name.encode() + content.encode())
    return digest.hexdigest()


def read(reward: str, key: str, folder: Path, load: Callable[[Path], T]) -> T:
    """Load a folder's configuration, tokenizer or preprocessing. Raises RewardError, in one line, if it is damaged."""
    try:
        return load(folder)
    except Exception as error:  # noqa: BLE001 - on damaged files transformers and tokenizers raise errors of any kind
        raise _unfit(reward, key, f"{folder} cannot be read: {' '.join(str(error).split())[:200]}") from None


def load_weights(reward: str, path: Path) -> dict[str, Tensor]:
    """Load tensors by name to the CPU from a safetensors file, or a torch file with or without ``state_dict``.

    Raises:
        RewardError: the file is truncated, damaged, or contains anything but tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - on damaged files the readers raise errors of any kind
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise RewardError(
            f"reward {reward!r}: {path} is truncated or no checkpoint ({reason}); fetch it again"
        ) from None
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise RewardError(f"reward {reward!r}: {path} holds no tensors by name: another model's checkpoint?")
    return content


def fill(reward: str, path: Path, model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give a model on the meta device the weights that were read from a path.

    Raises:
        RewardError: names or shapes are not those of the model.
    """
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        problem = " ".join(str(error).split())[:400]
        raise RewardError(f"reward {reward!r}: {path} is no checkpoint of this model: {problem}") from None
