"""What estimates need to know of a model, without its weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from harness.config import LoraConfig, ModelConfig
from harness.models.pipelines.published import find_published

_PIXELS_PER_TOKEN = 16
"""Eight pixels a latent, two latents a token, each way: FLUX, Stable Diffusion 3 and the miniature alike."""

_CLIP_TOKENS = 77


@dataclass(frozen=True)
class Architecture:
    """Sizes of a pipeline; layers are those of its transformer."""

    parameters: int
    linears: Mapping[str, tuple[int, int]]
    """(in, out) features of each linear layer, by name."""
    num_blocks: int
    width: int
    latent_channels_per_token: int
    is_sd3: bool
    text_width: int
    """Channels of a text token in the transformer's input."""
    text_encoders: int
    """Parameters, as of the autoencoder."""
    vae: int
    vae_channels: int
    """Of the decoder's widest feature map at full resolution."""

    def adapted(self, lora: LoraConfig) -> list[tuple[int, int]]:
        """(in, out) features of the layers that LoRA adapts."""
        ends = tuple(f".{target}" for target in lora.target_modules)
        return [size for name, size in self.linears.items() if f".{name}".endswith(ends)]

    def tokens(self, model: ModelConfig) -> int:
        """Of one sample in the transformer: picture and text."""
        return self.image_tokens(model) + self.text_tokens(model)

    def text_tokens(self, model: ModelConfig) -> int:
        """Of one prompt."""
        return model.max_sequence_length + (_CLIP_TOKENS if self.is_sd3 else 0)

    def image_tokens(self, model: ModelConfig) -> int:
        """Of one picture."""
        return (model.height // _PIXELS_PER_TOKEN) * (model.width // _PIXELS_PER_TOKEN)

    def forwards_per_velocity(self, model: ModelConfig) -> int:
        """Two with classifier-free guidance."""
        return 2 if self.is_sd3 and model.guidance > 1 else 1


@cache
def find_architecture(path: str, folder: Path | None) -> Architecture | None:
    """Sizes of a pipeline by the configurations in its folder, else as published; None if it is neither.

    Args:
        path: ``model.path``.
        folder: of the pipeline, if it is whole on this machine.
    """
    if folder is not None:
        config = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
        vae = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
        encoders = sum(_count(folder / name) for name in ("text_encoder", "text_encoder_2", "text_encoder_3"))
        # The decoder reaches full resolution with the channels of its last but one block.
        others = (encoders, _count(folder / "vae"), vae["block_out_channels"][1])
        return _measured(config["_class_name"], config, others)
    model = find_published(path)
    if model is None or model.transformer is None:
        return None
    class_name, published = model.transformer
    others = (model.text_encoders, model.vae, model.vae_channels)
    return _measured(class_name, dict(published), others)


def _count(component: Path) -> int:
    """Parameters in a component's safetensors files, from their headers."""
    from safetensors import safe_open

    total = 0
    for file in component.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as content:
            total += sum(prod(content.get_slice(name).get_shape()) for name in content.keys())  # noqa: SIM118
    return total


def _measured(class_name: str, config: dict[str, Any], others: tuple[int, int, int]) -> Architecture:
    import diffusers
    import torch
    from torch import nn

    with torch.device("meta"):
        transformer = getattr(diffusers, class_name).from_config(config)
    sizes = transformer.config
    blocks = [m for n, m in transformer.named_children() if isinstance(m, nn.ModuleList) and n.endswith("blocks")]
    return Architecture(
        parameters=sum(p.numel() for p in transformer.parameters()),
        linears={
            name: (module.in_features, module.out_features)
            for name, module in transformer.named_modules()
            if isinstance(module, nn.Linear)
        },
        num_blocks=sum(map(len, blocks)),
        width=sizes.num_attention_heads * sizes.attention_head_dim,
        latent_channels_per_token=sizes.in_channels * sizes.patch_size**2,
        is_sd3=class_name.startswith("SD3"),
        text_width=sizes.joint_attention_dim,
        text_encoders=others[0],
        vae=others[1],
        vae_channels=others[2],
    )
