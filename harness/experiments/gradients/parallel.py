"""How parallel the updates of selection strategies are at the untrained model: what choosing can change at all."""

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from analysis.gradients.estimates import alignment, signal_to_noise, squared_norm, weighted_mean
from analysis.statistics import Resampled, Values, resampling_weights
from harness.adagrpo import SELECTION_STRATEGIES
from harness.config import compose
from harness.experiments.gradients.checkpoint import find_measured
from harness.experiments.gradients.chunks import SETS, load, plan
from harness.experiments.gradients.definition import Mechanism, MechanismConfig, require_measurable
from harness.experiments.gradients.gradients import KINDS
from harness.experiments.gradients.oracle import ONE_PROMPT

ROUNDS, WARM_UP, CHUNK = 60, 10, 6
_ON_POLICY = (
    "objective.updates_per_iteration=1",
    "objective.clip_range=null",
    "objective.kl_beta=0",
    "objective.normalisation=group",
    "rollout.window=null",
    "capability.anchor=after",
)


def load_parallel(profile: str, overrides: Sequence[str], model: str | None) -> Mechanism:
    """A measurement of mechanism's groups, as small as a probe is: of single on-policy updates, whatever the profile's.

    Raises:
        ConfigError: as ``load_mechanism``.
    """
    config = compose(
        profile, overrides=[*ONE_PROMPT, *_ON_POLICY, "experiment=probe-gradients", *overrides], model=model
    )
    require_measurable(config, profile)
    file = MechanismConfig(
        profile=profile, seed=config.seed, rounds=ROUNDS, warm_up_rounds=WARM_UP, reference_prompts=2, chunk=CHUNK
    )
    return Mechanism(Path(profile), file, config, (find_measured("base", config),))


def measure_parallel(mechanism: Mechanism, say: Callable[[str], object]) -> dict[str, Any]:
    """Cosines of strategies' expected updates with local advantages, 95 % intervals over blocks of rounds.

    Only products of different blocks are used, in which no noise has a share. ``noise``: how many updates of random
    prompts have as much signal as noise: with fewer rounds than that, intervals are wide.
    """
    chunks = plan(mechanism)
    for number, chunk in enumerate(chunks, start=1):
        if not chunk.done.exists():
            chunk.call()
            say(f"gradients: {number} of {len(chunks)} parts")
    parts, local = load(chunks, mechanism.checkpoints[0], "groups"), KINDS.index("local")
    [weights] = resampling_weights([len(parts)])
    counts = np.array([len(np.unique(part["round"])) for part in parts], dtype=float)
    sums = {
        name: np.stack([part["sums"][SETS.index(name), local] for part in parts]).astype(np.float64)
        for name in SELECTION_STRATEGIES
    }

    def product(first: str, second: str) -> Values:
        both = sums[first] @ sums[second].T
        return squared_norm((both + both.T) / 2, counts, weights)

    signal = {name: product(name, name) for name in sums}
    cosines = []
    for first, second in combinations(sums, 2):
        found = Resampled(alignment(product(first, second), signal[first], signal[second]), [len(parts)]).interval()
        cosines.append(
            {"first": first, "second": second, "value": found.estimate, "low": found.low, "high": found.high}
        )
    kind = [KINDS.index("local")] * 2
    at_random = [
        part["gram"][part["chosen"][:, SELECTION_STRATEGIES.index("random")]][:, kind[0], kind[1]] for part in parts
    ]
    squares = weighted_mean(np.array([of.sum() for of in at_random]), counts, weights)
    return {
        "rounds": ROUNDS,
        "noise": float(1 / signal_to_noise(signal["random"], squares)[0]),
        "cosines": cosines,
    }
