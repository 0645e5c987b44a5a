"""Similarity of the updates of selection strategies at the untrained model, which bounds what choosing can change."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch

from analysis.estimates import alignment, signal_to_noise, squared_norm, weighted_mean
from analysis.statistics import Resampled, Values, resampling_weights
from harness.adagrpo import SELECTION_STRATEGIES
from harness.config import RunConfig, compose
from harness.experiments.gradients.checkpoint import (
    ON_POLICY,
    ONE_PROMPT,
    SEED,
    find_measured,
    require_measurable,
)
from harness.experiments.gradients.gradients import local_advantages, update_gradients
from harness.experiments.gradients.sampling import Sampler, choose_all, make_sampler
from harness.experiments.parts import Arrays, Parts
from harness.runs.directory import RUNS, find_run
from harness.trained.checkpoints import BASE

WARM_UP, BLOCK = 10, 6


def load_parallel(profile: str, overrides: Sequence[str], model: str | None) -> RunConfig:
    """Configuration of single on-policy updates, whatever the profile's. Raises ConfigError if it is not measurable."""
    config = compose(profile, overrides=[SEED, *ONE_PROMPT, *ON_POLICY, *overrides], model=model)
    require_measurable(config, profile)
    return config


def measure_parallel(
    config: RunConfig, rounds: int, device: torch.device, say: Callable[[str], object]
) -> dict[str, Any]:
    """Cosines between strategies' expected updates of local advantages, with 95 % intervals over blocks of rounds.

    Only products of different blocks are used, to which noise does not contribute. ``noise`` is the number of updates
    on random prompts whose signal equals their noise, NaN if it is lost in the noise: with fewer rounds than that,
    intervals are wide.

    Args:
        config: result of ``load_parallel``.
        rounds: number of draws of candidates, of which each strategy trains on one; at least two blocks of them.
        device: device to compute on.
        say: called with lines of progress.
    """
    sampler = make_sampler(config, find_measured(BASE, config), device)
    parts = Parts(RUNS / "probe-gradients" / find_run(config).run_id, rounds, "rounds of gradients", say)
    first, end = 1 + WARM_UP, 1 + WARM_UP + rounds
    rewards = parts.get(f"candidates-{rounds}", 0, partial(_candidates, range(1, end), sampler))["rewards"]
    chosen = choose_all(torch.from_numpy(rewards), config)
    blocks = [range(start, min(start + BLOCK, end)) for start in range(first, end, BLOCK)]
    # Choices depend on the decay, which is not part of the run's id, since the run itself chooses at random.
    names = [f"groups-{of.start}-{of.stop}-decay-{config.capability.decay}" for of in blocks]
    groups = [
        parts.get(name, len(of), partial(_updates, of, sampler, chosen)) for name, of in zip(names, blocks, strict=True)
    ]
    [weights] = resampling_weights([len(blocks)])
    counts = np.array([len(of) for of in blocks], dtype=float)
    by_strategy = zip(SELECTION_STRATEGIES, np.stack([part["sums"] for part in groups], axis=1), strict=True)
    sums = {name: of.astype(np.float64) for name, of in by_strategy}

    def product(first: str, second: str) -> Values:
        both = sums[first] @ sums[second].T
        return squared_norm((both + both.T) / 2, counts, weights)

    signal = {name: product(name, name) for name in sums}
    cosines = []
    for one, other in combinations(sums, 2):
        found = Resampled(alignment(product(one, other), signal[one], signal[other]), [len(blocks)]).interval()
        cosines.append({"first": one, "second": other, "value": found.estimate, "low": found.low, "high": found.high})
    squares = weighted_mean(np.array([part["squares"] for part in groups]), counts, weights)
    noise = float(1 / signal_to_noise(signal["random"], squares)[0])
    return {
        "rounds": rounds,
        "noise": noise if noise > 0 else math.nan,
        "cosines": cosines,
    }


def _candidates(rounds: range, sampler: Sampler) -> Arrays:
    return {"rewards": torch.stack([sampler.candidate_rewards(number) for number in rounds]).numpy()}


def _updates(rounds: range, sampler: Sampler, chosen: Sequence[Mapping[str, int]]) -> Arrays:
    """``sums`` ``[strategies, parameters]`` of updates; ``squares``, sum of random prompts' squared lengths."""
    sums, squares, clip = torch.zeros(()), 0.0, sampler.config.objective.advantage_clip
    for number in rounds:
        choices = chosen[number - 1]
        gradients = {}
        for candidate in sorted(set(choices.values())):
            sampled = sampler.of_candidate(number, candidate)
            [gradients[candidate]] = update_gradients(sampled.scores, local_advantages(sampled.rewards, clip))
        sums = sums + torch.stack([gradients[choices[name]] for name in SELECTION_STRATEGIES])
        squares += gradients[choices["random"]].square().sum().item()
    return {"sums": sums.float().numpy(), "squares": np.array(squares)}
