"""Look-up of the policy for a pipeline."""

import torch

from harness.config import ConfigError, ModelConfig, OptimizerConfig
from harness.foundation.plugins import find
from harness.models.pipelines.flux import FluxPolicy
from harness.models.pipelines.flux2 import Flux2KleinPolicy
from harness.models.pipelines.locate import class_name_of, find_pipeline
from harness.models.pipelines.policy import Policy
from harness.models.pipelines.qwen_image import QwenImagePolicy
from harness.models.pipelines.sd3 import StableDiffusion3Policy
from harness.models.pipelines.z_image import ZImagePolicy

_POLICIES: dict[str, type[Policy]] = {
    policy.pipeline_class.__name__: policy
    for policy in (FluxPolicy, StableDiffusion3Policy, Flux2KleinPolicy, QwenImagePolicy, ZImagePolicy)
}


def policy_class(model: ModelConfig) -> type[Policy]:
    """Class that trains the pipeline that ``model.path`` names, by the class in its model_index.json.

    ``model.adapter`` names a plug-in to use instead. Raises ConfigError if no policy trains that class.
    """
    name = class_name_of(find_pipeline(model.path))
    if model.adapter is not None:
        plugin = find(model.adapter)
        if not (isinstance(plugin.found, type) and issubclass(plugin.found, Policy)):
            plugin.refuse("must be a subclass of harness.models.pipelines.policy.Policy")
        if plugin.found.pipeline_class.__name__ != name:
            plugin.refuse(f"trains a {plugin.found.pipeline_class.__name__}, but model.path is a {name}")
        return plugin.found
    if name not in _POLICIES:
        raise ConfigError(f"model.path: {model.path} is a {name}; {', '.join(_POLICIES)} can be trained")
    return _POLICIES[name]


def build_policy(model: ModelConfig, optimizer: OptimizerConfig, device: torch.device, seed: int) -> Policy:
    """Build the policy of ``policy_class``. For the arguments see ``Policy``; raises ConfigError as both do."""
    return policy_class(model)(model, optimizer, device, seed)
