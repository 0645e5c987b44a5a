"""Twins of pipelines whose text encoder is a language model of the Qwen family; see ``twins``.

Configurations are the defaults of diffusers' classes with smaller widths and depths. The tokenizers have a token for
each byte and for each word of the pipelines' templates.
"""

import re
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

_WIDTH = 32
_HEADS = {"num_attention_heads": 2, "attention_head_dim": 32}
_INSTRUCTION = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the "
    "objects and background:"
)
_MARKS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "system", "user", "assistant")
_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)


def build_qwen_image_twin() -> QwenImagePipeline:
    """Build a Qwen-Image of 1/48 of the width: 2 of 60 blocks, and 2 heads of 32 instead of 24 of 128."""
    tokenizer = _tokenizer()
    text = {
        **_language(tokenizer, num_layers=2),
        "rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2]},
    }
    picture = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": _WIDTH}
    return QwenImagePipeline(
        # As published, sigmas end at .02 before the last step to 0.
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02),
        vae=AutoencoderKLQwenImage(base_dim=8, num_res_blocks=1),
        text_encoder=Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text, vision_config={**picture, "fullatt_block_indexes": [0]})
        ),
        tokenizer=tokenizer,
        transformer=QwenImageTransformer2DModel(
            num_layers=2, joint_attention_dim=_WIDTH, axes_dims_rope=(4, 14, 14), **_HEADS
        ),
    )


def build_flux2_twin() -> Flux2KleinPipeline:
    """Build a FLUX.2-klein that is not distilled, with 2 + 2 blocks and 2 heads of 32."""
    tokenizer = _tokenizer()
    vae = AutoencoderKLFlux2(block_out_channels=(32,) * 4, layers_per_block=1)
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        # 28 layers, because the pipeline reads the states after layers 9, 18 and 27.
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**_language(tokenizer, num_layers=28), head_dim=16)),
        tokenizer=tokenizer,
        transformer=Flux2Transformer2DModel(
            num_layers=2,
            num_single_layers=2,
            joint_attention_dim=3 * _WIDTH,
            axes_dims_rope=(8, 8, 8, 8),
            guidance_embeds=False,
            **_HEADS,
        ),
    )


def build_z_image_twin() -> ZImagePipeline:
    """Build a Z-Image with 1 + 1 + 2 of 2 + 2 + 30 blocks, and 2 heads of 32 instead of 30 of 128."""
    tokenizer = _tokenizer()
    transformer = ZImageTransformer2DModel(
        dim=64, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=_WIDTH, axes_dims=[8, 12, 12]
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32,) * 4,
        latent_channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=Qwen3Model(Qwen3Config(**_language(tokenizer, num_layers=3), head_dim=16)),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def _language(tokenizer: Qwen2Tokenizer, num_layers: int) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _tokenizer() -> Qwen2Tokenizer:
    """Tokenizer that encodes the instruction before a Qwen-Image prompt in 34 tokens, like the published one."""
    symbols = ["<|endoftext|>", *sorted(ByteLevel.alphabet())]
    tokenizer = Qwen2Tokenizer({symbol: i for i, symbol in enumerate(symbols)}, [], model_max_length=4096)
    tokenizer.add_tokens([*_MARKS, *dict.fromkeys(re.findall(r" ?\w+", _INSTRUCTION))])
    tokenizer.chat_template = _CHAT
    return tokenizer
