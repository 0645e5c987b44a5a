"""Rewards by name. Importing this package is light: each reward's own imports wait until it is built.

The processes that serve a package in an environment of its own import it too, so it needs torch and nothing else.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

from harness.rewards.base import Reward, RewardError, check_images

if TYPE_CHECKING:
    from harness.config import RewardConfig

__all__ = ["REWARD_NAMES", "Reward", "RewardError", "build_reward", "build_rewards", "build_weighted", "check_images"]


@dataclass(frozen=True)
class _Backend:
    """A way to compute a reward, and the keys of its ``RewardConfig`` that it reads."""

    build: Callable[[str, "RewardConfig", int], Reward]
    keys: frozenset[str]


def _ocr(name: str, settings: "RewardConfig", num_threads: int) -> Reward:
    from harness.rewards.native.ocr import OcrReward

    return OcrReward(name, num_threads=num_threads)


def _colour(name: str, settings: "RewardConfig", num_threads: int) -> Reward:
    from harness.rewards.native.colour import ColourReward

    return ColourReward()


def _clip(name: str, settings: "RewardConfig", num_threads: int) -> Reward:
    from harness.rewards.native.clip import ClipScore, PickScore

    return {"clip": ClipScore, "pickscore": PickScore}[name](settings)


def _hpsv2(name: str, settings: "RewardConfig", num_threads: int) -> Reward:
    from harness.rewards.native.hpsv2 import HpsV2

    return HpsV2(settings)


def _hpsv3(name: str, settings: "RewardConfig", num_threads: int) -> Reward:
    from harness.rewards.native.hpsv3 import HpsV3

    return HpsV3(settings)


def _package(name: str, settings: "RewardConfig", num_threads: int) -> Reward:
    from harness.rewards.remote.isolated import IsolatedReward

    return IsolatedReward(name, settings, num_threads)


def _served(name: str, settings: "RewardConfig", num_threads: int) -> Reward:
    from harness.rewards.remote.served import ServedReward

    return ServedReward(name, settings)


def _judge(name: str, settings: "RewardConfig", num_threads: int) -> Reward:
    from harness.rewards.remote.judge import UnifiedReward

    return UnifiedReward(name, settings)


_SERVED = {"url": _Backend(_served, frozenset({"url", "batch_size", "timeout_seconds"}))}
_NATIVE_KEYS = frozenset({"path", "precision", "device", "batch_size", "offload"})
_PACKAGE_KEYS = frozenset({"path", "device", "batch_size", "python", "timeout_seconds"})
_JUDGE = {"url": _Backend(_judge, frozenset({"url", "model", "question", "batch_size", "timeout_seconds"}))}


def _native(build: Callable[[str, "RewardConfig", int], Reward], keys: frozenset[str]) -> dict[str, _Backend]:
    return {"native": _Backend(build, keys)}


def _packaged(*more: str) -> dict[str, _Backend]:
    """The published package: it chooses its precision itself, and has all in its checkpoint, but where ``more`` is."""
    return {"package": _Backend(_package, _PACKAGE_KEYS.union(more))}


_BACKENDS: dict[str, dict[str, _Backend]] = {
    "ocr": _native(_ocr, frozenset()) | _SERVED,
    "ocr-v4": _native(_ocr, frozenset()) | _SERVED,
    "colour": _native(_colour, frozenset()) | _SERVED,
    "hpsv2": _native(_hpsv2, _NATIVE_KEYS) | _packaged() | _SERVED,
    "hpsv3": _native(_hpsv3, _NATIVE_KEYS | {"base"}) | _packaged("base", "precision") | _SERVED,
    "clip": _native(_clip, _NATIVE_KEYS) | _SERVED,
    "pickscore": _native(_clip, _NATIVE_KEYS | {"base"}) | _SERVED,
    "imagereward": _packaged("base") | _SERVED,
    "unifiedreward-v1": _JUDGE,
    "unifiedreward-v2": _JUDGE,
}
# The first backend of each is its usual one.

REWARD_NAMES: tuple[str, ...] = tuple(_BACKENDS)
"""Every name that ``build_reward`` knows."""


def build_reward(name: str, num_threads: int = 1, settings: "RewardConfig | None" = None) -> Reward:
    """The reward of a name; its weights are loaded at the first score.

    Scores depend on no earlier ones, so all runs of a process share one instance, and load its weights once.

    Args:
        name: one of ``REWARD_NAMES``.
        num_threads: CPU threads that the reward's own model may use.
        settings: where its model is and how it runs; None for the published one.

    Raises:
        ValueError: no such reward (names the nearest and all valid ones), or a setting that it does not have.
    """
    from harness.config import RewardConfig

    if name not in _BACKENDS:
        raise ValueError(f"unknown reward {name!r}: {_nearest(name, REWARD_NAMES)}")
    settings = settings or RewardConfig()
    backends = _BACKENDS[name]
    kind: str = settings.backend or next(iter(backends))
    if kind not in backends:
        raise ValueError(f"rewards.{name}.backend={kind}: {_nearest(kind, tuple(backends))}")
    backend = backends[kind]
    allowed = backend.keys | {"backend", "offset", "scale"}
    for key in sorted(settings.changed - allowed):
        raise ValueError(
            f"rewards.{name}.{key}: {name} with backend {kind} has no such setting; it has {', '.join(sorted(allowed))}"
        )
    # A question's file may have changed since an earlier call.
    build = backend.build if settings.question else partial(_shared, backend.build)
    return build(name, settings, num_threads)


@cache
def _shared(
    build: Callable[[str, "RewardConfig", int], Reward], name: str, settings: "RewardConfig", num_threads: int
) -> Reward:
    return build(name, settings, num_threads)


def build_weighted(
    components: Mapping[str, float],
    num_threads: int = 1,
    settings: "Mapping[str, RewardConfig] | None" = None,
) -> Reward:
    """The weighted sum of named rewards; one component of weight 1 is that reward itself.

    Args:
        components: weight of each name in ``REWARD_NAMES``.
        num_threads: as in ``build_reward``.
        settings: of the rewards that need any, by name.

    Raises:
        ValueError: an unknown name or setting, or weights that ``WeightedSum`` rejects.
    """
    from harness.rewards.combined import WeightedSum
    from harness.trained_reward import Normalisation

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
    """The reward to train on, and all that an evaluation measures: that one first, then judges that are no part of it.

    Args:
        components: weight of each reward in the sum that is trained on.
        judges: names of rewards to report.
        settings: of rewards, by name.
        num_threads: as in ``build_reward``.

    Raises:
        ValueError: as ``build_weighted``, or settings without an effect.
    """
    for name, setting in settings.items():
        if name not in (*components, *judges):
            raise ValueError(f"rewards.{name}: not used by this run; {_nearest(name, (*components, *judges))}")
        if name not in components and {"offset", "scale"} & setting.changed:
            raise ValueError(f"rewards.{name}: offset and scale are for rewards that are trained on, not for judges")
    reward = build_weighted(components, num_threads, settings)
    others = [build_reward(name, num_threads, settings.get(name)) for name in judges if name not in components]
    return reward, [reward, *others]


def _nearest(name: str, valid: tuple[str, ...]) -> str:
    nearest = difflib.get_close_matches(name, valid, n=1, cutoff=0.0)[0]
    return f"the nearest is {nearest!r}, valid are {', '.join(valid)}"
