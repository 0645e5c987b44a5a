"""Policies that draw with a checkpoint's weights."""

from collections.abc import Sequence

import torch

from harness.config import ConfigError, LoraConfig, OptimizerConfig
from harness.models.pipelines.policy import Policy
from harness.models.pipelines.registry import build_policy
from harness.models.pipelines.weights import copy_weights, put_lora
from harness.trained.checkpoints import Checkpoint

# The smallest part that a policy can train; it is not trained, and other weights stay in the network's precision.
_UNTRAINED = OptimizerConfig(tuning="lora", lora=LoraConfig(rank=1, target_modules=("to_q",)))


def load_policy(checkpoint: Checkpoint, device: torch.device, prompts: Sequence[str]) -> Policy:
    """Policy of a checkpoint, for drawing only.

    Args:
        checkpoint: base, weights and sampling settings.
        device: device of the policy.
        prompts: all prompts that it will be asked to draw.

    Raises:
        ConfigError: base or weights are missing, damaged or do not fit each other; or a prompt cannot be drawn.
    """
    is_full = checkpoint.weights is not None and not checkpoint.is_lora
    # Weights that were all trained are float32, as in training; autocast rounds them where it did there.
    optimizer = OptimizerConfig(tuning="full") if is_full else _UNTRAINED
    policy = build_policy(checkpoint.config.model, optimizer, device, seed=0)
    policy.check_prompts(prompts)
    policy.prepare_prompts(prompts)
    if not is_full:
        policy.transformer.unload_lora()
    if checkpoint.weights is not None:
        put = put_lora if checkpoint.is_lora else copy_weights
        put(policy.transformer, checkpoint.weights)
    return policy


def device_of(wanted: str) -> torch.device:
    """Device for ``auto`` (a GPU if there is one), ``cpu`` or ``cuda``. Raises ConfigError for cuda without a GPU."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: no CUDA device is there; use auto or cpu")
    return torch.device("cpu" if wanted == "cpu" or not torch.cuda.is_available() else "cuda")
