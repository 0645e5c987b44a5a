"""Advantages of an iteration's groups, computed as the configuration says."""

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.adagrpo import CapabilityTracker, local_advantage
from harness.config import RunConfig
from harness.objective import batch_normalised_advantage
from harness.rewards import Reward
from harness.rules.advantages import Group, fuse
from harness.rules.plugins import fusion_of, local_of
from harness.training.processes import Processes
from harness.training.scoring import Scores


class Advantages:
    """Computes advantages from rewards; normalisation by the iteration's std gathers those of all processes."""

    def __init__(self, config: RunConfig, reward: Reward, processes: Processes) -> None:
        self._config, self._reward, self._processes = config, reward, processes
        self._fusion = fusion_of(config.fusion.kind, config.source_of(config.fusion.kind))
        source = config.source_of(config.objective.normalisation)
        self._own_local = None if source is None else local_of(source)

    def of(self, scores: Sequence[Scores], capability: CapabilityTracker) -> list[Tensor]:
        """Advantages of each slot's groups, ``[groups, G]``, fused if enabled; a full-SDE rollout is one group.

        Local advantages are 0 in a group whose scores, ``[groups, G]`` for each slot, span no more than the reward's
        resolution. Only the fusion reads the capability.
        """
        rewards = [slot.total for slot in scores]
        if self._config.objective.combine == "advantages":
            resolutions = {part.name: part.resolution for part in self._reward.parts}
            each = [
                [weight * own for own in self._local([s.components[name] for s in scores], resolutions[name])]
                for name, weight in self._reward.weights.items()
            ]
            local = [torch.stack(of_slot).sum(0) for of_slot in zip(*each, strict=True)]
        else:
            local = self._local(rewards, self._reward.resolution)
        if not self._config.fusion.enabled:
            return local
        return [
            torch.stack([self._fused(own, group, capability) for own, group in zip(locals_, groups, strict=True)])
            for locals_, groups in zip(local, rewards, strict=True)
        ]

    def _local(self, rewards: Sequence[Tensor], resolution: float) -> list[Tensor]:
        """Local advantages of each slot's groups, ``[groups, G]``, for one reward and its resolution."""
        clip = self._config.objective.advantage_clip
        if self._own_local is not None:
            return [torch.stack([self._own_local(group) for group in groups]) for groups in rewards]
        if self._config.objective.normalisation == "group":
            return [torch.stack([local_advantage(group, clip, resolution) for group in groups]) for groups in rewards]
        own = torch.cat(list(rewards))
        everyone = self._processes.gather(own, "gathering rewards")
        normalised = batch_normalised_advantage(everyone, clip=clip, resolution=resolution)
        start = self._processes.index * len(own)
        return list(normalised[start : start + len(own)].split([len(r) for r in rewards]))

    def _fused(self, local: Tensor, rewards: Tensor, capability: CapabilityTracker) -> Tensor:
        """Local advantages ``[G]`` of a group, corrected by the capability as ``fusion.kind`` says."""
        fusion, clip = self._config.fusion, self._config.objective.advantage_clip
        group = Group(local, rewards, capability.mean, capability.std, clip, self._reward.resolution)
        return fuse(group, self._fusion, fusion.weight, fusion.same_length)
