"""What this machine has: GPUs, memory, disk. Looks only."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from harness.config import ConfigError

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
