"""Command lines of worker processes: the one place that knows the options of accelerate and torchrun."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from harness.foundation.errors import ConfigError

_ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
_TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]

CONFIGURATIONS = Path(__file__).with_name("accelerate")
"""Folder of accelerate's configuration files."""


@dataclass(frozen=True)
class Placement:
    """Placement of one worker's processes on machines and devices.

    Attributes:
        processes: world size, over all machines; at least 1.
        cuda: whether each process has a GPU; else all are on the CPU.
        machines: number of machines; ``processes`` is a multiple of it.
        machine_rank: rank of the machine that the command is for, from 0.
        main_address: host name or address of machine 0; required for several machines.
        main_port: a free port of machine 0.
        engine: value of ``runtime.engine``.

    Raises:
        ConfigError: the combination cannot be launched.
    """

    processes: int = 1
    cuda: bool = False
    machines: int = 1
    machine_rank: int = 0
    main_address: str | None = None
    main_port: int = 29500
    engine: str = "ddp"

    def __post_init__(self) -> None:
        if not 0 <= self.machine_rank < self.machines:
            raise ConfigError(f"machine rank {self.machine_rank}: must be 0 to {self.machines - 1}")
        if self.machines > 1 and self.main_address is None:
            raise ConfigError(f"{self.machines} machines need the address of the first one")
        if not 1 <= self.main_port <= 65535:
            raise ConfigError(f"main port {self.main_port}: must be 1 to 65535")

    @property
    def configuration(self) -> Path:
        """Configuration file that accelerate is given."""
        if self.engine == "ddp" and self.machines > 1:
            return CONFIGURATIONS / "ddp-machines.yaml"
        return CONFIGURATIONS / f"{self.engine}.yaml"


def worker_command(placement: Placement, module: str, arguments: Sequence[str]) -> list[str]:
    """Command line that executes ``python -m module arguments`` in each of a placement's processes on one machine.

    accelerate launches GPU processes. Several CPU processes are launched by torchrun, whatever the engine: ``accelerate
    launch --cpu --num_processes 2`` silently runs one. Either way a process reads its rank from the environment.
    Processes on one machine use a free port, so that workers do not collide. A single process needs no launcher, which
    would not pass on the signals that it has to hear.
    """
    job = ["-m", module, *arguments]
    if placement.processes == 1:
        return [sys.executable, *job]
    if placement.cuda:
        return [*_ACCELERATE, *_accelerate(placement), *job]
    return [*_TORCHRUN, *_torchrun(placement), *job]


def signals_passed_on(preemption_seconds: float) -> dict[str, str]:
    """Environment in which torchrun and accelerate pass on SIGTERM and SIGUSR1, and kill no process that is saving."""
    handled = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    return {"PET_SIGNALS_TO_HANDLE": handled, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(ceil(preemption_seconds + 5))}


def typed(command: Sequence[str]) -> str:
    """A command line of ``worker_command`` as a user types it in the working directory of an activated environment."""
    for whole, short in (
        (_ACCELERATE, ["accelerate", "launch"]),
        (_TORCHRUN, ["torchrun"]),
        ([sys.executable], ["python"]),
    ):
        if list(command[: len(whole)]) == whole:
            command = [*short, *command[len(whole) :]]
            break
    return shlex.join(word.removeprefix(f"{Path.cwd()}/") for word in command)


def _accelerate(placement: Placement) -> list[str]:
    options = ["--config_file", str(placement.configuration), "--num_processes", str(placement.processes)]
    options += ["--num_machines", str(placement.machines), "--machine_rank", str(placement.machine_rank)]
    if placement.machines == 1:
        return [*options, "--main_process_port", "0"]
    return [*options, "--main_process_ip", str(placement.main_address), "--main_process_port", str(placement.main_port)]


def _torchrun(placement: Placement) -> list[str]:
    options = ["--nproc-per-node", str(placement.processes // placement.machines)]
    if placement.machines == 1:
        return ["--standalone", *options]
    options += ["--nnodes", str(placement.machines), "--node-rank", str(placement.machine_rank)]
    return [*options, "--master-addr", str(placement.main_address), "--master-port", str(placement.main_port)]
