"""Processes of a run: joining them, collective operations, and error messages when one does not arrive."""

import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast_object_list, gather_object
from torch import Tensor

from harness.config import ConfigError, RunConfig
from harness.foundation.errors import CollectiveError, HarnessError

_GRACE_SECONDS = 5.0
"""Time between the message about a wait that is too long and the end of the wait by the backend."""


def make_accelerator(config: RunConfig) -> Accelerator:
    """accelerate's handle of this process; the first call in a process connects it to the others.

    Raises:
        ConfigError: the device does not exist, the world size is not ``runtime.processes``, or the processes were
            launched for another engine.
        CollectiveError: the other processes did not arrive in time, or one of them has failed.
    """
    runtime = config.runtime
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("runtime.device=cuda, but no CUDA device is there; use auto or cpu")
    use_cuda = runtime.device == "cuda" or (runtime.device == "auto" and torch.cuda.is_available())
    patience = InitProcessGroupKwargs(timeout=timedelta(seconds=runtime.timeout_seconds + _GRACE_SECONDS))
    try:
        accelerator = Accelerator(cpu=not use_cuda, kwargs_handlers=[patience])
    except RuntimeError as error:
        if not _is_of_communication(error):
            raise
        raise _complaint("joining the other processes", error, runtime.timeout_seconds) from error
    if accelerator.num_processes != runtime.processes:
        raise ConfigError(
            f"runtime.processes={runtime.processes} was asked for, but {accelerator.num_processes} are running"
        )
    launched = {DistributedType.FSDP: "fsdp2", DistributedType.DEEPSPEED: "DeepSpeed"}.get(accelerator.distributed_type)
    if launched is not None and launched != runtime.engine:
        raise ConfigError(
            f"runtime.engine={runtime.engine} was asked for, but accelerate was launched for {launched}: launch with "
            "adagrpo launch, or with the file in harness/experiments/jobs/accelerate that is called as the engine"
        )
    return accelerator


def print_late(error: CollectiveError) -> None:
    """Report on stderr that a wait is too long."""
    print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)


class Processes:
    """Collective operations among the processes of a run.

    Every operation must be called by all processes. ``what`` describes it in the message about a wait in vain.

    Args:
        accelerator: accelerate's handle of this process.
        timeout_seconds: longest wait in an operation.
        on_late: called from another thread when a wait is too long, shortly before the backend ends it: on the CPU by
            an exception, but on GPUs NCCL ends the process.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        timeout_seconds: float = math.inf,
        on_late: Callable[[CollectiveError], None] = print_late,
    ) -> None:
        self.accelerator = accelerator
        self.index, self.count = accelerator.process_index, accelerator.num_processes
        self.is_main = accelerator.is_main_process
        # With several processes accelerate numbers CPUs, as in cpu:0, a device that not all libraries know.
        self.device = torch.device("cpu") if accelerator.device.type == "cpu" else accelerator.device
        self.timeout_seconds = timeout_seconds
        self.on_late = on_late
        self._moment = ""

    def gather(self, values: Tensor, what: str) -> Tensor:
        """Values of all processes, concatenated along the first dimension, on the CPU."""
        with self._meeting(what):
            return self.accelerator.gather(values.to(self.device)).cpu()

    def gather_objects(self, one: Any, what: str) -> list[Any]:
        """Objects of all processes, in the order of processes."""
        with self._meeting(what):
            return gather_object([one])

    def broadcast(self, one: Any, what: str) -> Any:
        """The main process's object, on every process."""
        carried = [one]
        with self._meeting(what):
            broadcast_object_list(carried)
        return carried[0]

    def average(self, tensors: Sequence[Tensor], what: str) -> None:
        """Replace tensors in place by their means over processes, all in one exchange."""
        if self.count == 1:
            return
        with self._meeting(what):
            flat = self.accelerator.reduce(torch.cat([t.flatten() for t in tensors]), "mean")
            for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def wait(self, what: str) -> None:
        """Wait until all processes have called this."""
        with self._meeting(what):
            self.accelerator.wait_for_everyone()

    @contextmanager
    def at(self, moment: str) -> Iterator[None]:
        """Context manager that adds ``moment`` to error messages, also to those of exchanges that fail inside torch."""
        before, self._moment = self._moment, f" at {moment}"
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, HarnessError) or not _is_of_communication(error):
                raise
            raise _complaint(f"exchanging weights or gradients{self._moment}", error, self.timeout_seconds) from error
        finally:
            self._moment = before

    @contextmanager
    def _meeting(self, what: str) -> Iterator[None]:
        if self.count == 1:
            yield
            return
        # A timer, because on GPUs the end of the wait cannot be caught.
        late = threading.Timer(min(self.timeout_seconds, threading.TIMEOUT_MAX), self._say_late, [what])
        late.daemon = True
        late.start()
        try:
            yield
        except torch.OutOfMemoryError:  # this process's own
            raise
        except RuntimeError as error:
            raise _complaint(f"{what}{self._moment}", error, self.timeout_seconds) from error
        finally:
            late.cancel()

    def _say_late(self, what: str) -> None:
        self.on_late(_late(f"{what}{self._moment}", self.timeout_seconds))


def _complaint(what: str, error: RuntimeError, timeout_seconds: float) -> CollectiveError:
    if any(word in str(error).lower() for word in ("timed out", "timeout")):
        return _late(what, timeout_seconds)
    return CollectiveError(f"{what}: another process has failed or was killed")


def _late(what: str, timeout_seconds: float) -> CollectiveError:
    return CollectiveError(
        f"{what}: the other processes have not come within runtime.timeout_seconds={timeout_seconds:g}; raise it if "
        "they are only slow"
    )


def _is_of_communication(error: RuntimeError) -> bool:
    # gloo's errors are plain RuntimeErrors that name its source files.
    return isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)
