"""Workarounds for what published packages expect of their environment and no longer find."""

import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

Scorer = Callable[[Tensor, Sequence[str]], dict[str, Tensor]]
"""Function from pictures ``[b, 3, H, W]`` uint8 and b prompts to metrics ``{name: [b]}``, returned by ``load``."""

_KEPT: list[Any] = []


def allow_torchvision() -> None:
    """Declare two operators without which torchvision's wheel cannot be imported with a CPU build of torch."""
    if torch.version.cuda is None and not _KEPT:
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)  # the operators live as long as it does


def package_folder(name: str) -> Path:
    """Folder of an installed package, found without importing it. Raises ModuleNotFoundError."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no package {name!r} in this environment")
    return Path(spec.origin).parent


def stub(name: str, **attributes: Any) -> None:
    """Replace a module that a package imports but does not use by an empty one."""
    module = types.ModuleType(name)
    vars(module).update(attributes)
    sys.modules[name] = module


def skip_init(name: str, folder: Path) -> None:
    """Make submodules of a package importable without running its ``__init__``."""
    stub(name, __path__=[str(folder)])


def to_pictures(levels: Tensor) -> list[Image.Image]:
    """Convert ``[b, 3, H, W]`` uint8 to PIL images."""
    return [Image.fromarray(picture) for picture in levels.permute(0, 2, 3, 1).contiguous().numpy()]


def device_of(settings: dict[str, Any]) -> str:
    """Configured device; ``auto`` is CUDA if it is available."""
    device = settings["device"]
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return str(device)
