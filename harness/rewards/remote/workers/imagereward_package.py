"""Worker for the image-reward package, which scores by its ``ImageReward.score``."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from harness.rewards.remote.workers.shims import Scorer, package_folder, stub


def load(settings: dict[str, Any]) -> Scorer:
    """Load the package with its two files in ``settings["path"]`` and BERT's tokenizer in ``settings["base"]``.

    Its ``__init__`` is skipped, because it imports a trainer and two other scores with all their dependencies.
    """
    package = package_folder("ImageReward")
    stub("ImageReward", __path__=[str(package)])
    stub("ImageReward.models", __path__=[str(package / "models")])
    pretrain = importlib.import_module("ImageReward.models.BLIP.blip_pretrain")
    names = pretrain.init_tokenizer.__globals__
    load_from = names["BertTokenizer"].from_pretrained
    # The package loads "bert-base-uncased" by name, which would be looked up on the hub.
    names["BertTokenizer"] = SimpleNamespace(
        from_pretrained=lambda _, **options: load_from(settings["base"], **options)
    )
    folder = Path(settings["path"])
    build = importlib.import_module("ImageReward.ImageReward").ImageReward
    device = settings["device"]
    model = build(device=device, med_config=str(folder / "med_config.json")).to(device)
    weights = torch.load(folder / "ImageReward.pt", map_location="cpu", weights_only=True)
    missing, unknown = model.load_state_dict(weights, strict=False)
    missing = [name for name in missing if not name.endswith("position_ids")]
    if missing or any(not name.endswith("position_ids") for name in unknown):
        raise ValueError(f"{folder / 'ImageReward.pt'} does not fit: missing {missing[:2]}, unknown {unknown[:2]}")
    model.eval()

    def score(pictures: Sequence[Image], prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"imagereward": torch.tensor([model.score(p, i) for p, i in zip(prompts, pictures, strict=True)])}

    return score
