"""What rules for choosing prompts would choose of prompts that were measured: before anything is trained."""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from analysis.probing import NO_SPREAD
from harness.adagrpo import CapabilityTracker
from harness.config.selection import needs_of
from harness.prompts.lists import generator_for
from harness.rules.selection import RULES, Candidates

COMPARED = (
    ("random", None),
    ("easiest", None),
    ("hardest", None),
    ("medium", None),
    ("curriculum", None),
    ("quantile", 0.25),
    ("anchored", -1.0),
    ("anchored", 1.0),
    ("screened", None),
)
"""Rules that need no history, with their level."""
ROUNDS = 2000
_RESAMPLES, _ROUNDS_OF_ONE = 20, 200


class Chosen(NamedTuple):
    """What a rule takes, on average over draws of candidates.

    Attributes:
        mean: expected reward of the prompt.
        spread: expected standard deviation of a group of it.
        flat: share of its groups without spread, which teach nothing.
        mean_error, spread_error: standard errors over which prompts were measured (bootstrap).
        forwards: sample forwards more than at random, per prompt trained on.
    """

    mean: float
    spread: float
    flat: float
    mean_error: float
    spread_error: float
    forwards: int


def choices(rewards: Tensor, groups: Tensor, candidates: int, num_steps: int) -> Mapping[str, Chosen]:
    """What each of ``COMPARED`` chooses among B prompts drawn at random; the capability is that of all prompts.

    Rules of two samples per candidate have half as many candidates, so that all cost alike.

    Args:
        rewards: ``[prompts, noises]`` of deterministic samples, at least B prompts and 2 noises.
        groups: ``[prompts, groups, G]`` of siblings as training draws them.
        candidates: B.
        num_steps: Euler steps of a sample.
    """
    spreads = groups.std(dim=2, correction=1)
    values = torch.stack([rewards.mean(1), spreads.mean(1), (spreads <= NO_SPREAD).double().mean(1)], 1)
    capability = CapabilityTracker()
    capability.update(rewards.flatten())
    generator = generator_for("choices")
    found = {}
    for rule, level in COMPARED:
        samples = max(1, needs_of(rule).samples)
        count = max(1, candidates // samples)
        choose = partial(_choose, rule, level or 0.0, rewards, count, samples, capability, generator)
        everyone = torch.arange(len(rewards))
        estimate = values[[choose(everyone) for _ in range(ROUNDS)]].mean(0)
        resampled = []
        for _ in range(_RESAMPLES):
            drawn = torch.randint(len(rewards), (len(rewards),), generator=generator)
            resampled.append(values[[choose(drawn) for _ in range(_ROUNDS_OF_ONE)]].mean(0))
        mean_error, spread_error, _ = torch.stack(resampled).std(dim=0).tolist()
        # One of the samples is the path that siblings branch off.
        forwards = (count * samples - 1) * num_steps if needs_of(rule).samples else 0
        name = rule if level is None else f"{rule} {level:g}"
        mean, spread, flat = estimate.tolist()
        found[name] = Chosen(mean, spread, flat, mean_error, spread_error, forwards)
    return found


def _choose(
    rule: str,
    level: float,
    rewards: Tensor,
    count: int,
    samples: int,
    capability: CapabilityTracker,
    generator: torch.Generator,
    prompts: Tensor,
) -> int:
    """Which of the prompts ``[n]`` a rule takes of ``count`` drawn from them, each with ``samples`` of its rewards."""
    rows = prompts[torch.randperm(len(prompts), generator=generator)[:count]]
    noises = torch.randperm(rewards.shape[1], generator=generator)[:samples]
    return int(rows[RULES[rule](Candidates(rewards[rows][:, noises], capability, generator, level=level))])
