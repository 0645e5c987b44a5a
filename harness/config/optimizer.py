"""Settings of the optimiser and of the weights that are trained."""

from typing import Literal

from pydantic import Field

from harness.config.section import Count, Positive, Section, Share


class LoraConfig(Section):
    """Low-rank adapters."""

    rank: int = Field(16, ge=1, le=16_384)
    alpha: Positive = 32.0
    """Rank and scale: an adapter adds alpha / rank times the product of its factors."""
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
    """Linear layers that get an adapter, by the end of their names: attention and feed-forward of both streams."""
    init: Literal["gaussian", "kaiming"] = "gaussian"
    """Initialisation of the factors A: normal with a standard deviation of 1 / rank (Flow-GRPO), or uniform as in a
    linear layer (peft's default, DanceGRPO). The factors B are 0."""
    merge_while_sampling: bool = True
    """Merge adapters into float32 weights for rollouts: no extra cost per forward pass, but a copy of those weights."""


class OptimizerConfig(Section):
    """AdamW, and the weights that it trains."""

    tuning: Literal["lora", "full"] = "lora"
    """Trained weights: adapters beside frozen weights, or all weights of the transformer."""
    lora: LoraConfig = LoraConfig()
    moments: Literal["fp32", "8bit"] = "fp32"
    """AdamW's two moments, in float32 or in one byte per value (``pip install 'adagrpo[gpu]'``)."""
    learning_rate: Positive = 3e-4
    """AdamW's learning rate, which is constant."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    epsilon: Positive = 1e-8
    weight_decay: float = Field(1e-4, ge=0)
    """AdamW's betas, epsilon and weight decay."""
    max_grad_norm: Positive = 1.0
    """Largest norm of the gradient of all trained weights; a longer gradient is scaled down to it."""
    weight_ema: Share | None = None
    """Decay of an average of the weights, which is used for evaluation and kept at the end; None keeps no average."""
    weight_ema_interval: Count = 1
    """Number of optimiser steps between two updates of the average."""
