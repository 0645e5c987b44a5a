"""Fully sharded data parallelism (FSDP2), for models that do not fit on one GPU: each process holds a shard of weights.

A block's weights are gathered before it runs, forward or backward, and freed after it. Its gradients are averaged and
sharded as soon as the block's backward pass has computed them.
"""

import warnings
from collections.abc import Sequence
from typing import ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from harness.config import ConfigError, OptimizerConfig, RunConfig
from harness.models.pipelines.blocks import blocks_of
from harness.models.pipelines.policy import Policy
from harness.training.engine import Engine
from harness.training.processes import Processes


def shard(transformer: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a transformer of diffusers among processes of a mesh of one dimension, in place: block by block, then rest.

    Each parameter becomes a DTensor that is split along its first dimension. Weights are gathered in the precision in
    which they are stored, so that a forward equals that of the unsharded network, bit for bit.
    """
    blocks = blocks_of(transformer)
    if not blocks:
        raise ConfigError(f"runtime.engine=fsdp2: {type(transformer).__name__} has no blocks to be shared out")
    # Some blocks return views, which is safe because the networks change none in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for module in (*blocks, transformer):
        # Explicitly for the root, too: by default it would keep gathered weights and miss weights loaded later.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


class FullySharded(Engine):
    """Engine that shards weights, gradients, optimiser state, averages and the KL reference among all processes."""

    keeps_step: ClassVar[bool] = True

    def __init__(self, policy: Policy, settings: OptimizerConfig, processes: Processes) -> None:
        check_launched(processes.accelerator)
        mesh = init_device_mesh(processes.device.type, (processes.count,))
        for network in policy.networks:
            shard(network, mesh)
        super().__init__(policy, settings, processes)

    def _averaged_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        # The backward pass has averaged the gradients; the norm is taken over all shards.
        return _whole(torch.nn.utils.get_total_norm(gradients))

    def require_alike(self, iteration: int) -> None:
        """Do nothing: no two processes hold the same weights."""

    def whole_weights(self) -> dict[str, Tensor]:
        """Gather the trained weights by name on the CPU of the main process; empty on the others. Collective."""
        whole = {}
        for name, parameter in self.parameters.items():
            tensor = _whole(parameter.detach())
            if self.processes.is_main:
                whole[name] = tensor.cpu()
        return whole


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def check_launched(accelerator: Accelerator) -> None:
    """Raise ConfigError if accelerate launched for FSDP with a setting that this engine cannot follow."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        return
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise ConfigError("fsdp_offload_params=true: weights cannot be kept in main memory here; set it to false")
    if not plugin.reshard_after_forward:
        raise ConfigError(
            "fsdp_reshard_after_forward=false: gathered weights that are kept would miss averages and merged adapters; "
            "set it to true"
        )


def build_engine(config: RunConfig, policy: Policy, processes: Processes) -> Engine:
    """Build the engine that ``runtime.engine`` names. Raises ConfigError if a network cannot be sharded."""
    if config.runtime.engine == "ddp":
        return Engine(policy, config.optimizer, processes)
    return FullySharded(policy, config.optimizer, processes)
