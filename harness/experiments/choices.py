"""Choices that selection rules would make among measured prompts, before anything is trained."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from analysis.probing.summary import NO_SPREAD
from harness.adagrpo import SELECTION_STRATEGIES, CapabilityTracker
from harness.config import RunConfig
from harness.config.selection import Needs, needs_of
from harness.prompts.lists import generator_for
from harness.rules.ledger import Ledger
from harness.rules.plugins import rule_of
from harness.rules.selection import Candidates


class Compared(NamedTuple):
    """A rule that needs no history, with its level if it has one."""

    rule: str
    level: float | None = None
    source: str | None = None
    """Reference of the rule, if it is a plug-in."""
    asked: int = 1
    """Number of samples that a plug-in requires."""

    @property
    def name(self) -> str:
        """Name in tables."""
        return self.rule if self.level is None else f"{self.rule} {self.level:g}"

    @property
    def samples(self) -> int:
        """Number of deterministic samples of each candidate that the rule receives; 1 for a rule that reads none."""
        return max(1, self.needs.samples)

    @property
    def needs(self) -> Needs:
        """Requirements of the rule."""
        return needs_of(self.rule) if self.source is None else Needs(self.asked, reads_capability=True)

    def count(self, candidates: int) -> int:
        """Number of candidates where other rules have B, such that all rules that read samples cost the same."""
        return max(1, candidates // self.samples)

    def forwards(self, candidates: int, num_steps: int) -> int:
        """Sample forward passes per trained prompt beyond those of random selection."""
        needs = self.needs
        drawn = self.count(candidates) * needs.samples
        if needs.step_share < 1:
            return drawn * max(1, int(num_steps * needs.step_share))
        # One of the samples is the path that siblings branch off.
        return max(0, drawn - 1) * num_steps

    def choose(
        self,
        rewards: Tensor,
        capability: CapabilityTracker,
        generator: torch.Generator,
        ledger: Ledger | None = None,
        embeddings: Tensor | None = None,
    ) -> int:
        """Index of the candidate that the rule takes, from rewards ``[B, S]``, or from embeddings and a ledger."""
        level = self.level or 0.0
        return rule_of(self.rule, self.source)(
            Candidates(rewards, capability, generator, embeddings=embeddings, ledger=ledger, level=level)
        )


COMPARED = (
    *(Compared(rule) for rule in SELECTION_STRATEGIES),
    Compared("quantile", 0.25),
    Compared("anchored", -1.0),
    Compared("anchored", 1.0),
    Compared("screened"),
)
ROUNDS = 2000
ROUNDS_OF_ONE = 200
_RESAMPLES = 20


class Chosen(NamedTuple):
    """A rule's choice, on average over draws of candidates.

    Attributes:
        mean: expected reward of the chosen prompt.
        spread: expected standard deviation within a group of that prompt.
        flat: share of its groups without spread, which teach nothing.
        mean_error, spread_error: standard errors from the sample of measured prompts (bootstrap).
        gain: relative excess of the spread over that of all prompts.
        gain_error: its standard error, with the same prompts in numerator and denominator.
        forwards: sample forward passes per trained prompt beyond those of random selection.
    """

    mean: float
    spread: float
    flat: float
    mean_error: float
    spread_error: float
    gain: float
    gain_error: float
    forwards: int


def compared_with(config: RunConfig) -> tuple[Compared, ...]:
    """``COMPARED``, and the plug-in that a configuration chooses prompts with, unless that needs history."""
    own = config.plugins.get(config.selection)
    if own is None or own.reads_ledger:
        return COMPARED
    return (*COMPARED, Compared(config.selection, source=own.source, asked=own.samples))


def choices(
    rewards: Tensor, groups: Tensor, candidates: int, num_steps: int, rules: Sequence[Compared] = COMPARED
) -> Mapping[str, Chosen]:
    """Choice of each rule among B prompts drawn at random; the capability is that of all prompts.

    Rules that read two samples per candidate have half as many candidates, so that all cost the same.

    Args:
        rewards: ``[prompts, noises]``, rewards of deterministic samples; at least B prompts and 2 noises.
        groups: ``[prompts, groups, G]``, rewards of siblings drawn as in training.
        candidates: B.
        num_steps: number of Euler steps of a sample.
        rules: rules to compare.
    """
    spreads = groups.std(dim=2, correction=1)
    values = torch.stack([rewards.mean(1), spreads.mean(1), (spreads <= NO_SPREAD).double().mean(1)], 1)
    capability = CapabilityTracker()
    capability.update(rewards.flatten())
    generator = generator_for("choices")
    found = {}
    for compared in rules:
        choose = partial(_choose, compared, rewards, compared.count(candidates), capability, generator)
        everyone = torch.arange(len(rewards))
        estimate = values[[choose(everyone) for _ in range(ROUNDS)]].mean(0)
        resampled, gains = [], []
        for _ in range(_RESAMPLES):
            drawn = torch.randint(len(rewards), (len(rewards),), generator=generator)
            resampled.append(values[[choose(drawn) for _ in range(ROUNDS_OF_ONE)]].mean(0))
            gains.append((resampled[-1] / values[drawn].mean(0))[1])
        mean_error, spread_error, _ = torch.stack(resampled).std(dim=0).tolist()
        mean, spread, flat = estimate.tolist()
        gain, gain_error = spread / values[:, 1].mean().item() - 1, torch.stack(gains).std().item()
        forwards = compared.forwards(candidates, num_steps)
        found[compared.name] = Chosen(mean, spread, flat, mean_error, spread_error, gain, gain_error, forwards)
    return found


def _choose(
    compared: Compared,
    rewards: Tensor,
    count: int,
    capability: CapabilityTracker,
    generator: torch.Generator,
    prompts: Tensor,
) -> int:
    """Draw ``count`` of the prompts ``[n]``, each with as many rewards as the rule reads; return the one it takes."""
    rows = prompts[torch.randperm(len(prompts), generator=generator)[:count]]
    noises = torch.randperm(rewards.shape[1], generator=generator)[: compared.samples]
    return int(rows[compared.choose(rewards[rows][:, noises], capability, generator)])
