"""Rewards by name. Importing this package is light: each reward's own imports wait until it is built."""

import difflib
from collections.abc import Callable, Mapping
from functools import cache

from harness.rewards.base import Reward, check_images

__all__ = ["REWARD_NAMES", "Reward", "build_reward", "build_weighted", "check_images"]


def _build_ocr(name: str, num_threads: int) -> Reward:
    from harness.rewards.ocr import OcrReward

    return OcrReward(name, num_threads=num_threads)


def _build_colour(name: str, num_threads: int) -> Reward:
    from harness.rewards.colour import ColourReward

    return ColourReward()


_BUILDERS: dict[str, Callable[[str, int], Reward]] = {
    "ocr": _build_ocr,
    "ocr-v4": _build_ocr,
    "colour": _build_colour,
}

REWARD_NAMES: tuple[str, ...] = tuple(_BUILDERS)
"""Every name that ``build_reward`` knows."""


@cache
def build_reward(name: str, num_threads: int = 1) -> Reward:
    """The reward of a name; its weights are loaded at the first score.

    Scores depend on no earlier ones, so all runs of a process share one instance, and load its weights once.

    Args:
        name: one of ``REWARD_NAMES``.
        num_threads: CPU threads that the reward's own model may use.

    Raises:
        ValueError: no such reward; names the nearest and all valid ones.
    """
    if name not in _BUILDERS:
        nearest = difflib.get_close_matches(name, REWARD_NAMES, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown reward {name!r}: the nearest is {nearest!r}, valid are {', '.join(REWARD_NAMES)}")
    return _BUILDERS[name](name, num_threads)


def build_weighted(components: Mapping[str, float], num_threads: int = 1) -> Reward:
    """The weighted sum of named rewards; one component of weight 1 is that reward itself.

    Args:
        components: weight of each name in ``REWARD_NAMES``.
        num_threads: as in ``build_reward``.

    Raises:
        ValueError: an unknown name, or weights that ``WeightedSum`` rejects.
    """
    from harness.rewards.combined import WeightedSum

    rewards = {build_reward(name, num_threads): weight for name, weight in components.items()}
    if len(rewards) == 1 and 1 in rewards.values():
        return next(iter(rewards))
    return WeightedSum(rewards)
