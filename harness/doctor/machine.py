"""What this machine has: GPUs, memory, disk, weights. Looks only: nothing is downloaded or loaded."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from harness.config import ROOT, ConfigError
from harness.models.published import find_published

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

# In a process of its own: asking for a GPU's free memory takes half a GiB of it for as long as the process lives.
_PROBE = """
import json, torch
numbers = range(torch.cuda.device_count())
print(json.dumps([(torch.cuda.get_device_name(n), *torch.cuda.mem_get_info(n)) for n in numbers]))
"""


@dataclass(frozen=True)
class Gpu:
    """One GPU, as it is now."""

    name: str
    free: int
    """Bytes."""
    total: int
    """Bytes."""


def find_gpus() -> list[Gpu]:
    """The CUDA devices that a process started here may use. Raises ConfigError if they do not answer."""
    import torch

    if not torch.cuda.is_available():
        return []
    result = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ConfigError(f"the CUDA devices of this machine do not answer: {reason}")
    return [Gpu(*facts) for facts in json.loads(result.stdout)]


def free_memory() -> int:
    """Bytes of main memory that new processes can have."""
    import psutil

    return int(psutil.virtual_memory().available)


def existing(path: Path) -> Path:
    """The nearest folder above a path that is there already."""
    while not path.exists():
        path = path.parent
    return path


def free_disk(path: Path) -> int:
    """Bytes free where a folder is or would be made."""
    return shutil.disk_usage(existing(path)).free


def hub_cache() -> Path:
    """Where the hub's client keeps downloads."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def find_folder(path: str) -> Path | None:
    """The pipeline folder of ``model.path``, if it is on this machine: itself, or the hub's local copy."""
    if (ROOT / path / "model_index.json").is_file():
        return ROOT / path
    if not is_hub_id(path):
        return None
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(path, "model_index.json", cache_dir=hub_cache())
    return Path(index).parent if isinstance(index, str) else None


def is_hub_id(path: str) -> bool:
    """Whether a ``model.path`` can be a repository on the hub."""
    return _HUB_ID.fullmatch(path) is not None and not (ROOT / path).exists()


def missing_parts(folder: Path) -> list[str]:
    """Components of a pipeline folder that are not there, or networks whose weights are not there or cut off."""
    index = json.loads((folder / "model_index.json").read_text())
    components = [name for name, value in index.items() if isinstance(value, list) and value[0] is not None]
    return [name for name in components if not _is_whole(folder / name)]


def how_to_get(path: str) -> str:
    """What to do about a model that is not here: the licence to accept, and the exact command."""
    if not is_hub_id(path):
        return f"{ROOT / path} is no pipeline folder (no model_index.json there); set model.path"
    published = find_published(path)
    if published is None:
        return f"there is no folder {ROOT / path}; if it is on the hub, run  hf download {path}"
    accept = f"accept {published.licence.name} at {published.page}, log in with  hf auth login  and " * published.gated
    return f"{accept}run  {published.download_command}  ({published.gigabytes:g} GB)"


def _is_whole(component: Path) -> bool:
    if not (component / "config.json").is_file():
        return component.is_dir() and any(component.iterdir())  # a tokenizer or scheduler
    indices = sorted(component.glob("*.safetensors.index.json"))
    files = list(component.glob("*.safetensors"))
    if indices:
        files = [component / name for name in set(json.loads(indices[0].read_text())["weight_map"].values())]
    return bool(files) and all(_is_readable(file) for file in files)


def _is_readable(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            return True
    except (OSError, SafetensorError):
        return False
