"""Slots: places for this machine's workers, each with its own threads or GPUs."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness.config import ConfigError, RuntimeConfig
from harness.experiments.jobs.command import Placement


@dataclass(frozen=True)
class Slot:
    """A place for one worker.

    Attributes:
        placement: placement of the worker's processes.
        environment: variables that give each process its threads and GPUs.
    """

    placement: Placement
    environment: dict[str, str]


def local_slots(runtimes: Sequence[RuntimeConfig], count: int | None) -> list[Slot]:
    """Slots of this machine for some jobs, on its GPUs if it has any.

    Args:
        runtimes: runtime settings of each job; they must agree, since a worker's processes serve all of its jobs.
        count: number of jobs at a time; None for as many as cores or GPUs suffice for.

    Raises:
        ConfigError: the jobs disagree or need several machines, or the machine has too few GPUs.
    """
    for key in ("device", "threads", "processes", "machines", "engine", "timeout_seconds"):
        if len({getattr(runtime, key) for runtime in runtimes}) > 1:
            raise ConfigError(f"runs that are launched together need the same runtime.{key}")
    runtime = runtimes[0]
    if runtime.machines > 1:
        raise ConfigError(
            f"runtime.machines={runtime.machines}: a grid's runs are launched on this machine alone; launch each run "
            "with adagrpo launch on every machine"
        )
    gpus = () if runtime.device == "cpu" else visible_gpus()
    return make_slots(runtime, count, gpus, _cores())


def _cores() -> int:
    """Number of cores that this process may use, which a scheduler may have limited; macOS cannot tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_slots(runtime: RuntimeConfig, count: int | None, gpus: Sequence[str], cores: int) -> list[Slot]:
    """Slots on given GPUs: one GPU per process, and neighbours together, which are likely to have the fastest link.

    Without GPUs, slots on the CPU: ``runtime.threads`` cores per process, and at least one slot.

    Args:
        runtime: runtime settings of each job.
        count: number of slots; None for as many as ``gpus`` or ``cores`` suffice for.
        gpus: identifiers as in CUDA_VISIBLE_DEVICES.
        cores: number of cores of the machine.

    Raises:
        ConfigError: there are too few GPUs.
    """
    if runtime.device == "cuda" and not gpus:
        raise ConfigError("runtime.device=cuda, but torch finds no CUDA device here; use auto or cpu")
    placement, each = Placement(runtime.processes, cuda=bool(gpus), engine=runtime.engine), runtime.processes
    threads = {"OMP_NUM_THREADS": str(runtime.threads)}
    count = count or max(1, len(gpus) // each if gpus else cores // (runtime.threads * each))
    if not gpus:
        return [Slot(placement, threads)] * count
    if count * each > len(gpus):
        raise ConfigError(
            f"{count} slots of {each} GPUs need {count * each}, but there are {len(gpus)}: lower --slots or "
            "runtime.processes"
        )
    shares = [gpus[slot * each : (slot + 1) * each] for slot in range(count)]
    return [Slot(placement, threads | {"CUDA_VISIBLE_DEVICES": ",".join(share)}) for share in shares]


@cache
def visible_gpus() -> tuple[str, ...]:
    """GPUs that torch can use, by their names in CUDA_VISIBLE_DEVICES; empty without a driver."""
    if shutil.which("nvidia-smi") is None and not Path("/dev/nvidiactl").exists():
        return ()
    # Only torch knows what it can use. Asked in a separate process, since this one needs torch for nothing else.
    count = "import torch; print(torch.cuda.device_count())"
    answer = subprocess.run([sys.executable, "-c", count], capture_output=True, text=True, check=True)
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = named.split(",") if named else [str(index) for index in range(int(answer.stdout))]
    return tuple(devices[: int(answer.stdout)])
