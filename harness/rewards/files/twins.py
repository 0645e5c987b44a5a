"""Twins of the published reward models: the same classes with random weights, small enough for a dry run on a CPU.

``rewards.hpsv2.path: twin:hpsv2`` in a configuration names one; ``twin:hpsv3`` is a path and a base, ``twin:clip`` is
for CLIP score and PickScore. Their scores mean nothing: they show that a configuration runs.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from harness.models.pipelines.files import build_once, cache_folder
from harness.models.pipelines.locate import TWIN_PREFIX as TWIN_PREFIX
from harness.rewards.base import RewardError

if TYPE_CHECKING:
    from transformers import CLIPConfig

_VERSION = 2
"""Raised with any change of what is built."""

_SEED = 20_260_606


def find_twin(reward: str, key: str, name: str) -> Path:
    """The file or folder of a twin, built at the first call.

    Args:
        reward: whose it is, for the error.
        key: ``path`` or ``base``.
        name: behind ``TWIN_PREFIX``.

    Raises:
        RewardError: there is no such twin.
    """
    build, places = _TWINS.get(name, (None, {}))
    if build is None or key not in places:
        known = ", ".join(f"{TWIN_PREFIX}{twin}" for twin, (_, of) in _TWINS.items() if key in of)
        raise RewardError(f"reward {reward!r}: rewards.{reward}.{key}: there is no twin {name!r}, there are {known}")
    return build_once(cache_folder("twins") / f"reward-{name}-{_VERSION}", build) / places[key]


def clip_architecture() -> "CLIPConfig":
    """ViT-H/14 at 1/40 of its width, 2 of its 32 and 24 layers."""
    from transformers import CLIPConfig

    tower = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPConfig(
        projection_dim=24,
        vision_config={**tower, "patch_size": 14, "image_size": 224, "hidden_act": "gelu"},
        text_config={**tower, "hidden_act": "gelu", "eos_token_id": 49_407},
    )


def _build_hpsv2(folder: Path) -> None:
    from harness.rewards.files.twin_models import write_hpsv2

    write_hpsv2(folder / "HPS_v2.1_compressed.pt", clip_architecture())


def _build_hpsv3(folder: Path) -> None:
    from harness.rewards.files.twin_models import write_hpsv3

    write_hpsv3(folder)


def _build_clip(folder: Path) -> None:
    from transformers import CLIPModel

    from harness.models.pipelines.twins import clip_tokenizer

    tokenizer = clip_tokenizer("<|endoftext|>")
    config = clip_architecture()
    config.text_config.vocab_size = len(tokenizer)
    config.text_config.bos_token_id = tokenizer.bos_token_id
    config.text_config.eos_token_id = tokenizer.eos_token_id
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")


_TWINS: dict[str, tuple[Callable[[Path], None], dict[str, str]]] = {
    "hpsv2": (_build_hpsv2, {"path": "HPS_v2.1_compressed.pt"}),
    "hpsv3": (_build_hpsv3, {"path": "HPSv3.safetensors", "base": "base"}),
    "clip": (_build_clip, {"path": ""}),
}
"""What builds each twin, and what of it a setting means."""
