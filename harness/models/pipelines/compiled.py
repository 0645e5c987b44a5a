"""A network's forward without gradients, compiled: many small elementwise steps become few, a third faster here."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from harness.foundation.files import lock
from harness.foundation.places import cache_folder

_BATCHED = ("hidden_states", "timestep", "guidance", "encoder_hidden_states", "pooled_projections")
"""Inputs of diffusers' transformers whose first dimension is the batch."""


def compile_for_sampling(network: nn.Module, device: torch.device) -> Callable[..., Any]:
    """The same function of keyword arguments, compiled at its first call, for any batch of two or more.

    A batch of one would be compiled apart, and is not worth it. torch keeps the code in a cache of its own: up to a
    minute the first time, some seconds in later processes. Where nothing can be compiled (no C++ compiler on a CPU),
    that is said once on stderr and the network is run as it is: the numbers are the same up to rounding.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        _say_uncompiled(f"no C++ compiler {compiler!r}")
        return network
    return _Compiled(network)


class _Compiled:
    def __init__(self, network: nn.Module) -> None:
        self.network, self.compiled, self.is_proved = network, torch.compile(network), False

    def __call__(self, **inputs: Any) -> Any:
        if len(inputs["hidden_states"]) == 1:
            return self.network(**inputs)
        for name in _BATCHED:
            if isinstance(tensor := inputs.get(name), Tensor):
                torch._dynamo.maybe_mark_dynamic(tensor, 0)  # one compilation for all batch sizes
        if self.is_proved:
            return self.compiled(**inputs)
        self.is_proved = True
        try:
            with first_alone():
                return self.compiled(**inputs)
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            _say_uncompiled(str(error).strip().splitlines()[0])
            self.compiled = self.network
            return self.network(**inputs)


@contextmanager
def first_alone() -> Iterator[None]:
    """Let one of a machine's processes that begin at the same time go ahead; the others wait, then go together.

    So that they find its code in torch's cache, and do not compile the same each for itself.
    """
    folder = cache_folder("compiling")
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / "lock") or lock(folder / "lock", wait=True, shared=True) or nullcontext():
        yield


def _say_uncompiled(reason: str) -> None:
    print(f"model.execution.compile=auto: sampling is not compiled, and slower: {reason}", file=sys.stderr)
