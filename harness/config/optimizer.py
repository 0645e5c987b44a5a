"""The optimiser and what is trained."""

from typing import Literal

from pydantic import Field

from harness.config.section import Count, Positive, Section, Share


class LoraConfig(Section):
    """Low-rank adapters."""

    rank: int = Field(16, ge=1, le=16_384)
    alpha: Positive = 32.0
    """An adapter adds alpha / rank times the product of its factors."""
    target_modules: tuple[str, ...] = (
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
        "ff.net.0.proj",
        "ff.net.2",
        "ff_context.net.0.proj",
        "ff_context.net.2",
    )
    """Linear layers that get one, by the end of their names: attention and feed-forward of both streams."""
    init: Literal["gaussian", "kaiming"] = "gaussian"
    """Of the factors A: normal with a std of 1 / rank (Flow-GRPO), or uniform as of a linear layer (peft's own,
    DanceGRPO). The factors B are 0."""
    merge_while_sampling: bool = True
    """Rollouts with adapters added into float32 weights: no extra cost a forward, one more copy of those weights."""


class OptimizerConfig(Section):
    """AdamW and what is trained."""

    tuning: Literal["lora", "full"] = "lora"
    """What is trained: adapters beside frozen weights, or all weights of the transformer."""
    lora: LoraConfig = LoraConfig()
    moments: Literal["fp32", "8bit"] = "fp32"
    """AdamW's two, in float32 or in a byte each (``pip install 'adagrpo[gpu]'``)."""
    learning_rate: Positive = 3e-4
    """AdamW's, constant."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    epsilon: Positive = 1e-8
    weight_decay: float = Field(1e-4, ge=0)
    """AdamW's."""
    max_grad_norm: Positive = 1.0
    """Longer gradients are shortened to it, over all that is trained."""
    weight_ema: Share | None = None
    """Decay of averaged weights used for evaluation and kept at the end; None for none."""
    weight_ema_interval: Count = 1
    """Optimiser updates between two averagings."""
