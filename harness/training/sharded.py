"""Every process holds a share of the weights: fully sharded data parallelism (FSDP2), for what one GPU cannot hold.

Before a block runs, forward or backward, its weights are gathered, and let go of after it. Its gradients are averaged
and shared out as soon as the block's backward pass has them.
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


def shard(transformer: nn.Module, mesh: DeviceMesh, reshard_after_forward: bool = True) -> None:
    """Share a transformer's parameters out to the processes of a mesh, in place: block by block, then all else.

    Each parameter becomes a DTensor that is split along its first dimension. Numbers keep their precision on the way:
    what is gathered is what is kept, so that a forward is that of the whole network, bit for bit.

    Args:
        transformer: of diffusers.
        mesh: of one dimension.
        reshard_after_forward: let go of a block's gathered weights after its forward; else only after its backward,
            which saves a second gathering and costs the memory of the whole network.
    """
    blocks = blocks_of(transformer)
    if not blocks:
        raise ConfigError(f"runtime.engine=fsdp2: {type(transformer).__name__} has no blocks to be shared out")
    # What a block returns is a view here and there; the networks change none in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for module in (*blocks, transformer):
        # The root is told too: left to itself it would keep what it gathered, and not notice weights that are loaded.
        fully_shard(module, mesh=mesh, reshard_after_forward=reshard_after_forward)


class FullySharded(Engine):
    """Weights, gradients, optimiser state, averages and the KL reference are shared out to all processes."""

    keeps_step: ClassVar[bool] = True

    def __init__(self, policy: Policy, settings: OptimizerConfig, processes: Processes) -> None:
        mesh = init_device_mesh(processes.device.type, (processes.count,))
        for network in policy.networks:
            shard(network, mesh, reshards(processes.accelerator))
        super().__init__(policy, settings, processes)

    def _clip(self, gradients: Sequence[Tensor]) -> float:
        # Averaged by the backward pass, and a share of each: the norm is of all shares.
        norm = _whole(torch.nn.utils.get_total_norm(gradients))
        torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.settings.max_grad_norm, norm)
        return float(norm)

    def require_alike(self, iteration: int) -> None:
        """Nothing: no two processes hold the same numbers."""

    def whole_weights(self) -> dict[str, Tensor]:
        """See ``Engine``."""
        whole = {}
        for name, parameter in self.parameters.items():
            tensor = _whole(parameter.detach())
            if self.processes.is_main:
                whole[name] = tensor.cpu()
        return whole


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def reshards(accelerator: Accelerator) -> bool:
    """Whether gathered weights are let go of after a forward: as accelerate was told, if it launched for FSDP."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        return True
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise ConfigError("fsdp_offload_params=true: weights cannot be kept in main memory here; set it to false")
    return bool(plugin.reshard_after_forward)


def build_engine(config: RunConfig, policy: Policy, processes: Processes) -> Engine:
    """The engine that ``runtime.engine`` names. Raises ConfigError if a network cannot be shared out."""
    if config.runtime.engine == "ddp":
        return Engine(policy, config.optimizer, processes)
    return FullySharded(policy, config.optimizer, processes)
