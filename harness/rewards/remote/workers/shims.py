"""Workarounds for what published packages expect of their environment and no longer find."""

import functools
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

Scorer = Callable[[Sequence[Image], Sequence[str]], dict[str, Tensor]]
"""Function from b pictures and b prompts to metrics ``{name: [b]}``, returned by ``load``."""


@functools.cache  # the operators live as long as the library that is returned
def allow_torchvision() -> torch.library.Library | None:
    """Declare two operators without which torchvision's wheel cannot be imported with a CPU build of torch."""
    if torch.version.cuda is not None:
        return None
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def package_folder(name: str) -> Path:
    """Folder of an installed package, found without importing it. Raises ModuleNotFoundError."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no package {name!r} in this environment")
    return Path(spec.origin).parent


def stub(name: str, **attributes: Any) -> None:
    """Replace a module by one with these attributes alone; with a ``__path__``, its submodules can be imported."""
    module = types.ModuleType(name)
    vars(module).update(attributes)
    sys.modules[name] = module
