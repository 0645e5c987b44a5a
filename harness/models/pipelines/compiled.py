"""Compiled forwards without gradients: fusing many small elementwise operations makes sampling a third faster here."""

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from harness.foundation.files import lock
from harness.foundation.places import cache_folder

_BATCHED = ("hidden_states", "timestep", "guidance", "encoder_hidden_states", "pooled_projections")
"""Inputs of diffusers' transformers whose first dimension is the batch dimension."""


def compile_for_sampling(network: nn.Module, device: torch.device) -> Callable[..., Any]:
    """Wrap a network as a function of keyword arguments that is compiled at its first call.

    One compilation serves all batches of two or more; a single sample is run uncompiled. Compiling takes up to a minute
    the first time, some seconds in later processes, which find the code in torch's cache. If it fails (no C++ compiler
    on a CPU), a warning is printed and the network is run uncompiled, with the same results up to rounding.
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
        folder = cache_folder("compiling")
        folder.mkdir(parents=True, exist_ok=True)
        # Of processes that start together one compiles; the others wait, and find its code in torch's cache.
        alone = lock(folder / "lock") or lock(folder / "lock", wait=True, shared=True) or nullcontext()
        try:
            with alone:
                return self.compiled(**inputs)
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            _say_uncompiled(str(error).strip().splitlines()[0])
            self.compiled = self.network
            return self.network(**inputs)


def _say_uncompiled(reason: str) -> None:
    print(f"model.execution.compile=auto: sampling is not compiled, and slower: {reason}", file=sys.stderr)
