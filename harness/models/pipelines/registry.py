"""Which policy trains which pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.config import ConfigError, ModelConfig, OptimizerConfig
from harness.models.pipelines.locate import class_name_of, find_pipeline

if TYPE_CHECKING:
    import torch

    from harness.models.pipelines.policy import Policy


def build_policy(model: ModelConfig, optimizer: OptimizerConfig, device: torch.device, seed: int) -> Policy:
    """The policy for the pipeline that ``model.path`` names, by the class in its model_index.json.

    Args:
        model: which pipeline, and its sampling settings.
        optimizer: whether LoRA adapters or all weights are trained.
        device: where everything lives.
        seed: of the adapters' initial weights.

    Raises:
        ConfigError: no policy for that class, or what ``Policy`` and ``find_pipeline`` raise.
    """
    from harness.models.pipelines.flux import FluxPolicy
    from harness.models.pipelines.sd3 import StableDiffusion3Policy

    name = class_name_of(find_pipeline(model.path))
    policies = {policy.pipeline_class.__name__: policy for policy in (FluxPolicy, StableDiffusion3Policy)}
    if name not in policies:
        raise ConfigError(f"model.path: {model.path} is a {name}; {' and '.join(policies)} can be trained")
    return policies[name](model, optimizer, device, seed)
