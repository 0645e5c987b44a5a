"""What this machine has: GPUs and disk. Looks only."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from harness.config import ConfigError

# In a process of its own: asking for a GPU's free memory takes half a GiB of it for as long as the process lives.
_PROBE = """
import json, torch
numbers = range(torch.cuda.device_count())
print(json.dumps([(torch.cuda.get_device_name(n), torch.cuda.mem_get_info(n)[0]) for n in numbers]))
"""


class Gpu(NamedTuple):
    """One GPU, as it is now; its free memory in bytes."""

    name: str
    free: int


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


def existing(path: Path) -> Path:
    """The nearest folder above a path that is there already."""
    return path if path.exists() else existing(path.parent)


def free_disk(path: Path) -> int:
    """Bytes free where a folder is or would be made."""
    return shutil.disk_usage(existing(path)).free
