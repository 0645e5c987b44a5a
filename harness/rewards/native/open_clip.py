"""Conversion of open_clip's models to transformers: tokenizer, configurations, and names of weights."""

import gzip
import html
import re
from collections.abc import Sequence
from functools import cache

import ftfy
from torch import Tensor
from transformers import CLIPConfig, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from harness.models.pipelines.truncation import all_tokens
from harness.rewards.files.assets import asset_path

CONTEXT_LENGTH = 77
START, END = 49_406, 49_407


@cache
def clip_tokenizer() -> CLIPTokenizer:
    """open_clip's tokenizer, for cleaned texts. Raises AssetError if its vocabulary was not downloaded."""
    lines = gzip.decompress(asset_path("CLIP-BPE").read_bytes()).decode().split("\n")
    letters = list(bytes_to_unicode().values())
    merges = [tuple(line.split()) for line in lines[1 : START - 2 * len(letters) + 1]]
    symbols = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
    vocabulary = {symbol: i for i, symbol in enumerate([*symbols, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT_LENGTH)


def tokens(texts: Sequence[str]) -> Tensor:
    """Token ids ``[n, 77]`` int64, padded with zeros; long texts are truncated."""
    found = clip_tokenizer()([clean(t) for t in texts], padding="max_length", truncation=True, return_tensors="pt")
    return found.input_ids * found.attention_mask


def encode(texts: Sequence[str]) -> Sequence[Sequence[int]]:
    """Tokens of each text, not truncated."""
    return all_tokens(clip_tokenizer(), [clean(text) for text in texts])


def clean(text: str) -> str:
    """Clean a text as open_clip does: mended by ftfy, HTML entities unescaped twice, single spaces, lower case."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


# --- sizes, which the checkpoints do not say --------------------------------------------------------------------------


def vit_h_14() -> CLIPConfig:
    """Configuration of open_clip's ViT-H-14: 32 layers of 1280 for pictures, 24 of 1024 for text, 986 M parameters."""
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    return _clip(1024, vision, text)


def twin_of_clip() -> CLIPConfig:
    """Configuration of a ViT-H/14 of 1/40 of the width, with 2 of 32 and 2 of 24 layers."""
    tower = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    return _clip(24, tower, tower)


def _clip(width: int, vision: dict[str, int], text: dict[str, int]) -> CLIPConfig:
    return CLIPConfig(
        projection_dim=width,
        vision_config={**vision, "patch_size": 14, "image_size": 224, "hidden_act": "gelu"},
        text_config={**text, "hidden_act": "gelu", "eos_token_id": END},
    )


# --- weights ----------------------------------------------------------------------------------------------------------

_RENAMED = (
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
)
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}


def to_transformers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert a CLIP model's weights from open_clip's names and layouts to those of transformers' ``CLIPModel``.

    The joint query-key-value projection is split in three, and the two final projections are transposed. Other names
    are left unchanged.
    """
    converted: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name in _TRANSPOSED:
            converted[_TRANSPOSED[name]] = value.T.contiguous()
            continue
        for pattern, new in _RENAMED:
            name = re.sub(pattern, new, name)
        layer, joint, kind = name.partition(".in_proj_")
        parts = zip("qkv", value.chunk(3), strict=True) if joint else ()
        converted |= {f"{layer}.{part}_proj.{kind}": third for part, third in parts} or {name: value}
    return converted
