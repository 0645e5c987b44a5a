"""Worker for the image-reward package, which scores by its ``ImageReward.score``."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.rewards.remote.workers.shims import (
    Scorer,
    allow_torchvision,
    device_of,
    package_folder,
    skip_init,
    to_pictures,
)


def load(settings: dict[str, Any]) -> Scorer:
    """Load the package with its two files in ``settings["path"]`` and BERT's tokenizer in ``settings["base"]``.

    Its ``__init__`` is skipped, because it imports a trainer and two other scores with all their dependencies.
    """
    if settings["precision"] not in (None, "fp32"):
        raise ValueError("the image-reward package computes in fp32: no precision to set")
    allow_torchvision()
    package = package_folder("ImageReward")
    skip_init("ImageReward", package)
    skip_init("ImageReward.models", package / "models")
    pretrain = importlib.import_module("ImageReward.models.BLIP.blip_pretrain")
    init_tokenizer = pretrain.init_tokenizer
    bert = init_tokenizer.__globals__["BertTokenizer"]
    # The package loads "bert-base-uncased" by name, which would be looked up on the hub.
    init_tokenizer.__globals__["BertTokenizer"] = _From(bert, settings["base"])
    folder = Path(settings["path"])
    build = importlib.import_module("ImageReward.ImageReward").ImageReward
    device = device_of(settings)
    model = build(device=device, med_config=str(folder / "med_config.json")).to(device)
    weights = torch.load(folder / "ImageReward.pt", map_location="cpu", weights_only=True)
    missing, unknown = model.load_state_dict(weights, strict=False)
    missing = [name for name in missing if not name.endswith("position_ids")]
    if missing or any(not name.endswith("position_ids") for name in unknown):
        raise ValueError(f"{folder / 'ImageReward.pt'} does not fit: missing {missing[:2]}, unknown {unknown[:2]}")
    model.eval()

    def score(levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        pictures = to_pictures(levels)
        return {"imagereward": torch.tensor([model.score(p, i) for p, i in zip(prompts, pictures, strict=True)])}

    return score


class _From:
    """Tokenizer class that always loads from one place, whatever the name."""

    def __init__(self, wrapped: Any, place: str) -> None:
        self._wrapped, self._place = wrapped, place

    def from_pretrained(self, _name: str, **options: Any) -> Any:
        return self._wrapped.from_pretrained(self._place, **options)
