"""Rewards by name. Importing this package is light, because each reward's imports are made when it is built.

It needs only torch, because workers that serve a package in a separate environment import it, too.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING

from harness.foundation.names import RECOGNISERS, REWARDS
from harness.foundation.plugins import find
from harness.rewards.base import Reward, RewardError

if TYPE_CHECKING:
    from harness.config import RewardConfig

__all__ = ["Reward", "RewardError", "build_reward", "build_rewards", "build_weighted"]


def build_reward(name: str, num_threads: int = 1, settings: "RewardConfig | None" = None) -> Reward:
    """Build a reward by name; its weights are loaded at the first score.

    Scores do not depend on earlier ones, so all runs of a process share one instance, whose weights are loaded once.

    Args:
        name: one of ``harness.foundation.names.REWARDS``, or a name of your own for a plug-in.
        num_threads: number of CPU threads that the reward's model may use.
        settings: location of its model and how it runs; None for the published one.

    Raises:
        ValueError: unknown reward (the message has the nearest and all valid names), or a setting it does not have.
    """
    from harness.config import RewardConfig, nearest

    settings = settings or RewardConfig()
    if settings.plugin is not None:
        _require_settings(name, "a plug-in", settings, {"plugin", "batch_size"})
        return _build_plugin(name, settings, find(settings.plugin).sha256)
    if name not in REWARDS:
        raise ValueError(f"unknown reward {name!r}: {nearest(name, tuple(REWARDS))}")
    backends = REWARDS[name].backends
    backend: str = settings.backend or backends[0]
    if backend not in backends:
        raise ValueError(f"rewards.{name}.backend={backend}: {nearest(backend, backends)}")
    _require_settings(name, f"with backend {backend}", settings, {"backend", *_settings_of(name, backend)})
    return _build_remote(name, settings) if backend == "url" else _build(name, backend, settings, num_threads)


def _require_settings(name: str, what: str, settings: "RewardConfig", own: set[str]) -> None:
    allowed = {"offset", "scale", *own}
    for key in sorted(settings.changed - allowed):
        raise ValueError(
            f"rewards.{name}.{key}: {name} {what} has no such setting; it has {', '.join(sorted(allowed))}"
        )


@cache
def _build_plugin(name: str, settings: "RewardConfig", sha256: str) -> Reward:
    """Build a plug-in's reward, which may hold weights, once for each version of its source."""
    from harness.rewards.plugin import PluginReward

    return PluginReward(name, settings)


def _settings_of(name: str, backend: str) -> set[str]:
    """Keys of ``RewardConfig`` that a reward reads with a backend, besides the common ones."""
    reward = REWARDS[name]
    own = {key for key in ("path", "base") if getattr(reward, key)}
    if backend == "native" and name in RECOGNISERS:
        return {"precision"}
    if backend == "url":
        return {"url", "batch_size", "timeout_seconds", *(("model", "question") if reward.is_judge else ())}
    if backend == "package":  # all packages except hpsv3 choose their precision themselves
        precision = {"precision"} if name == "hpsv3" else set()
        return {"device", "batch_size", "python", "timeout_seconds"} | own | precision
    return {"precision", "device", "batch_size", "offload"} | own if own else set()


@cache
def _build(name: str, backend: str, settings: "RewardConfig", num_threads: int) -> Reward:
    if backend == "package":
        from harness.rewards.remote.isolated import IsolatedReward

        return IsolatedReward(name, settings, num_threads)
    if name == "colour":
        from harness.rewards.native.colour import ColourReward

        return ColourReward()
    if name in RECOGNISERS:
        from harness.rewards.native.ocr import OcrReward

        return OcrReward(name, num_threads, settings.precision or "fp32")
    from harness.rewards.native.clip import ClipScore, PickScore
    from harness.rewards.native.hpsv2 import HpsV2
    from harness.rewards.native.hpsv3 import HpsV3

    networks = {"hpsv2": HpsV2, "hpsv3": HpsV3, "clip": ClipScore, "pickscore": PickScore}
    build: Callable[[str, RewardConfig], Reward] = networks[name]
    return build(name, settings)


def _build_remote(name: str, settings: "RewardConfig") -> Reward:
    """Build a reward at a server: not cached, because it holds no weights, and a question's file may change."""
    is_judge = REWARDS[name].is_judge
    if settings.url is None:
        server = "an OpenAI-compatible server that has the model" if is_judge else f"`adagrpo serve-reward {name}`"
        raise ValueError(f"rewards.{name}.url is missing: the address of {server}")
    if is_judge:
        from harness.rewards.remote.unified_reward import UnifiedReward

        return UnifiedReward(name, settings)
    from harness.rewards.remote.client import ServedReward

    return ServedReward(name, settings, lambda: build_reward(name))


def build_weighted(
    components: Mapping[str, float],
    num_threads: int = 1,
    settings: "Mapping[str, RewardConfig] | None" = None,
) -> Reward:
    """Build a weighted sum of rewards by name; a single component of weight 1 without normalisation is returned itself.

    Raises:
        ValueError: unknown name or setting, or weights that ``WeightedSum`` rejects.
    """
    from harness.foundation.trained_reward import Normalisation
    from harness.rewards.combined import WeightedSum

    settings = settings or {}
    rewards = {build_reward(name, num_threads, settings.get(name)): weight for name, weight in components.items()}
    normalised = {n: Normalisation(settings[n].offset, settings[n].scale) for n in components if n in settings}
    if len(rewards) == 1 and 1 in rewards.values() and all(n == Normalisation() for n in normalised.values()):
        return next(iter(rewards))
    return WeightedSum(rewards, normalised)


def build_rewards(
    components: Mapping[str, float],
    judges: tuple[str, ...],
    settings: "Mapping[str, RewardConfig]",
    num_threads: int = 1,
) -> tuple[Reward, list[Reward]]:
    """Build the reward to train on, and the rewards to evaluate: that reward, then judges that are no part of it.

    Args:
        components: weight of each reward in the sum that is trained on.
        judges: names of rewards to report.
        settings: settings of rewards, by name.
        num_threads: see ``build_reward``.

    Raises:
        ValueError: as ``build_weighted``, or settings that have no effect.
    """
    from harness.config import nearest

    for name, setting in settings.items():
        if name not in (*components, *judges):
            raise ValueError(f"rewards.{name}: not used by this run; {nearest(name, (*components, *judges))}")
        if name not in components and {"offset", "scale"} & setting.changed:
            raise ValueError(f"rewards.{name}: offset and scale are for rewards that are trained on, not for judges")
    reward = build_weighted(components, num_threads, settings)
    others = [build_reward(name, num_threads, settings.get(name)) for name in judges if name not in components]
    return reward, [reward, *others]
