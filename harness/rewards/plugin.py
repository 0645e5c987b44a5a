"""Rewards from plug-ins: functions of pictures and prompts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.config import RewardConfig
from harness.foundation.plugins import PluginError, explaining, find
from harness.rewards.base import BatchedReward, RewardError, ScoringError


class PluginRewardError(PluginError, RewardError):
    """Plug-in that cannot score: reported as any plug-in's error, but a run saves first, as after any reward's."""


class PluginReward(BatchedReward):
    """Reward from a function ``score(images, prompts) -> [B]``, optionally with ``resolution`` and ``fingerprint()``.

    Args:
        name: name in settings, metrics and tables.
        settings: settings with the plug-in's reference.
    """

    def __init__(self, name: str, settings: RewardConfig) -> None:
        super().__init__(name, settings.batch_size)
        self._plugin = find(str(settings.plugin))
        self._score = self._plugin.made()
        self._is_known = False
        self.resolution = float(getattr(self._score, "resolution", 0.0))

    def fingerprint(self) -> str:
        """sha256 of the source, and the plug-in's own fingerprint, such as of weights, if it has one."""
        own = getattr(self._score, "fingerprint", None)
        return self._plugin.sha256 + (f" {own()}" if callable(own) else "")

    def _checked(self, levels: Tensor, prompts: Sequence[str], start: int) -> dict[str, Tensor]:
        try:
            with explaining():
                return super()._checked(levels, prompts, start)
        except (PluginError, RewardError) as error:
            raise PluginRewardError(str(error), getattr(error, "image", None)) from error

    def _measure_batch(self, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        found, refuse = self._scores(levels, prompts), self._plugin.refuse
        if not isinstance(found, Tensor) or found.shape != (len(prompts),):
            shape = [*found.shape] if isinstance(found, Tensor) else repr(found)[:100]
            refuse(f"must return a tensor of a score per picture, [{len(prompts)}], and returned {shape}")
        if not (finite := found.isfinite()).all():
            row = int((~finite).nonzero()[0])
            raise ScoringError(f"{self._plugin}: scored {found[row].item()}, for the prompt {prompts[row]!r}", row)
        if not self._is_known:
            self._is_known = True
            if not torch.equal(again := self._scores(levels, prompts), found):
                refuse(f"scored the same pictures {found[:3].tolist()}, and {again[:3].tolist()} when called again")
        return {self.name: found.detach().float().cpu()}

    @torch.no_grad()
    def _scores(self, levels: Tensor, prompts: Sequence[str]) -> Tensor:
        scores: Tensor = self._score(levels.float() / 255, list(prompts))
        return scores
