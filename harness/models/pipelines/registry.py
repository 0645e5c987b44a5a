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
    name = class_name_of(find_pipeline(model.path))
    if name == "FluxPipeline":
        from harness.models.pipelines.flux import FluxPolicy

        return FluxPolicy(model, optimizer, device, seed)
    if name == "StableDiffusion3Pipeline":
        from harness.models.pipelines.sd3 import StableDiffusion3Policy

        return StableDiffusion3Policy(model, optimizer, device, seed)
    raise ConfigError(f"model.path: {model.path} is a {name}; FluxPipeline and StableDiffusion3Pipeline can be trained")
