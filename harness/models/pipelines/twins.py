"""Twins of the published models: complete pipelines of the same classes with random weights, small enough for a CPU.

A twin has the published configuration except for widths and depths, so that loading, conditioning, sampling, training,
decoding and saving run the same code as with the real model. Its pictures mean nothing; it only shows that a
configuration runs. A configuration names a twin by ``model.path: twin:flux``.
"""

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, StableDiffusion3Pipeline
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from harness.foundation.places import cache_folder
from harness.models.pipelines.chat_twins import build_flux2_twin, build_qwen_image_twin, build_z_image_twin
from harness.models.pipelines.files import build_once
from harness.models.pipelines.published import FLUX_DEV, SD35_MEDIUM, PublishedModel

_VERSION = 1
"""Version of the twins; increase it with any change, so that old twins in the cache are not used any more."""

_SEED = 20_260_606
_CLIP_L_WIDTH, _CLIP_G_WIDTH, _T5_WIDTH = 16, 24, 64  # published: 768, 1280, 4096


def twin_folder(name: str) -> Path:
    """Pipeline folder of a twin, whose name is a key of ``TWINS``; built at the first call."""

    def build(folder: Path) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(_SEED)
            TWINS[name]().save_pretrained(folder)

    return build_once(cache_folder("twins") / f"{name}-{_VERSION}", build)


def build_flux_twin() -> FluxPipeline:
    """Build a FLUX.1-dev of 1/48 of the width: 2 + 2 of 19 + 38 blocks, and 2 heads of 32 instead of 24 of 128."""
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),  # from .5 to 1.15, as usual
        vae=_autoencoder(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=CLIPTextModel(_clip_config(_CLIP_L_WIDTH, "quick_gelu")),
        tokenizer=_clip_tokenizer("<|endoftext|>"),
        text_encoder_2=_t5_encoder(),
        tokenizer_2=_t5_tokenizer(),
        transformer=_transformer(
            FLUX_DEV,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=_T5_WIDTH,
            pooled_projection_dim=_CLIP_L_WIDTH,
            axes_dims_rope=(4, 14, 14),  # (16, 56, 56) of 128
        ),
    )


def build_sd3_twin() -> StableDiffusion3Pipeline:
    """Build a Stable Diffusion 3.5 medium of 1/48 of the width: 3 of 24 blocks, 2 instead of 13 with dual attention."""
    return StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_autoencoder(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=CLIPTextModelWithProjection(_clip_config(_CLIP_L_WIDTH, "quick_gelu")),
        tokenizer=_clip_tokenizer("<|endoftext|>"),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config(_CLIP_G_WIDTH, "gelu")),
        tokenizer_2=_clip_tokenizer("!"),
        text_encoder_3=_t5_encoder(),
        tokenizer_3=_t5_tokenizer(),
        transformer=_transformer(
            SD35_MEDIUM,
            num_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=_T5_WIDTH,
            caption_projection_dim=32,
            pooled_projection_dim=_CLIP_L_WIDTH + _CLIP_G_WIDTH,
            dual_attention_layers=(0, 1),
        ),
    )


TWINS: dict[str, Callable[[], Any]] = {
    "flux": build_flux_twin,
    "sd3": build_sd3_twin,
    "flux2-klein": build_flux2_twin,
    "qwen-image": build_qwen_image_twin,
    "z-image": build_z_image_twin,
}
"""Function that builds each twin, by name."""


def _transformer(published: PublishedModel, **smaller: Any) -> Any:
    assert published.transformer is not None
    class_name, settings = published.transformer
    return getattr(diffusers, class_name)(**{**settings, **smaller})


def _autoencoder(scaling_factor: float, shift_factor: float) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 32, 32),  # published: 128, 256, 512, 512; 32 is one channel per group
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=32,
        sample_size=1024,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _clip_config(width: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(_clip_tokenizer("!")),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        hidden_act=activation,
        # As published, though wrong: 2 makes the encoder pool at the highest id, which is the end token.
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )


def _clip_tokenizer(pad_token: str) -> CLIPTokenizer:
    """Tokenizer with a token for every byte, alone and at the end of a word, and no merges."""
    symbols = sorted(ByteLevel.alphabet())
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77, pad_token=pad_token
    )


def _t5_encoder() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(_t5_tokenizer()),
            d_model=_T5_WIDTH,
            d_kv=16,
            d_ff=160,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            relative_attention_num_buckets=32,
            relative_attention_max_distance=128,
            dropout_rate=0.1,
            tie_word_embeddings=False,
        )
    )


def _t5_tokenizer() -> T5Tokenizer:
    """Tokenizer with a token for every printable ASCII character."""
    characters = [c for c in string.printable if not c.isspace()]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -100.0), ("▁", -1.0), *((c, -1.0) for c in characters)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
