"""Records of an iteration: the state of each slot, compute counters, a stopwatch, and averages for metrics.jsonl."""

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.config import RunConfig, num_trained_steps
from harness.models.pipelines.embedding import PromptEmbedding
from harness.rollout import Rollout, Trajectory
from harness.rules.ledger import mean_and_spread
from harness.training.scoring import PendingScores, Scores


@dataclass
class Slot:
    """One of the prompts that an iteration trains on: its B candidates, the chosen one, its rollout and scores."""

    number: int
    """Number of the slot over all processes, from 0."""
    prompts: list[str]
    text: PromptEmbedding | None = None
    """Embedding of the candidates, if they were encoded."""
    trajectories: Trajectory | None = None
    """ODE paths of the candidates, first samples of all B before second ones; None if not sampled with all steps."""
    samples: Tensor | None = None
    """``[B, S]``, rewards of the candidates; None until they are scored."""
    is_repeated: bool = False
    """Whether the first candidate is an earlier prompt that ``replay`` put there to be trained on again."""
    strategy: int = -1
    """Strategy drawn by the bandit, an index of ``SELECTION_STRATEGIES``; -1 for other selections."""
    chosen: int = 0
    pending: PendingScores = field(init=False)
    """Scores in progress: those of the candidates' ODE samples, if there are any, then the rollout's."""
    rollout: Rollout = field(init=False)
    scores: Scores = field(init=False)
    """The rollout's scores, ``[groups, G]``."""

    @property
    def prompt(self) -> str:
        """The chosen prompt."""
        return self.prompts[self.chosen]

    @property
    def rewards(self) -> Tensor | None:
        """Rewards of the candidates, ``[B]``, means over their samples."""
        return None if self.samples is None else self.samples.mean(dim=1)

    @property
    def mean(self) -> float:
        """Mean reward m of the prompt's groups, see ``harness.rules.ledger``."""
        return mean_and_spread(self.scores.total)[0]

    @property
    def spread(self) -> float:
        """Spread s of the prompt's groups, see ``harness.rules.ledger``."""
        return mean_and_spread(self.scores.total)[1]

    def rank(self, resolution: float) -> int | None:
        """Number of candidates whose reward is lower than the chosen one's by more than ``resolution``."""
        rewards = self.rewards
        return None if rewards is None else int((rewards < rewards[self.chosen] - resolution).sum())


@dataclass
class Counters:
    """Compute spent. A trained sample costs a forward and a backward pass, counted as three forwards.

    A forward is one velocity of one sample. With classifier-free guidance, in all cells of a grid alike, it takes two
    samples through the network; the doctor's estimate of hours includes this (``Architecture.forwards_per_velocity``).
    """

    sample_forwards: int = 0
    train_forwards: int = 0
    reward_calls: int = 0

    @property
    def forwards(self) -> int:
        """Total in sample-forwards; a trained sample counts as three."""
        return self.sample_forwards + 3 * self.train_forwards


def expected_cost(config: RunConfig) -> Counters:
    """Compute that one iteration will spend over all processes, as the trainer counts it."""
    rollout, objective, steps = config.rollout, config.objective, config.model.num_steps
    trained = num_trained_steps(rollout)
    if rollout.kind == "anchor_branch":
        # A branch at index i takes one step without a forward, then N - 1 - i more; for a window all indices' mean.
        left = [steps - 1 - index for index in rollout.branch_indices]
        sampled = rollout.group_size * round(sum(left) * trained / len(left))
        scored = rollout.group_size * trained
        # Siblings share the state before their step; pictures that are noised again share nothing.
        trained_samples = trained * (rollout.group_size if objective.is_forward else 1)
    else:
        sampled = rollout.group_size * steps
        scored, trained_samples = rollout.group_size, rollout.group_size * trained
    if config.scores_candidates:
        sampled += rollout.candidates * config.candidate_samples * config.candidate_steps
        scored += rollout.candidates * config.candidate_samples
    if rollout.kind == "anchor_branch" and not (config.scores_candidates and config.candidate_steps == steps):
        sampled += steps
    prompts = rollout.prompts_per_iteration
    if objective.old_log_prob == "recomputed" and not objective.is_on_policy:
        sampled += trained_samples
    # Unless updates share all samples, each sample is trained on once.
    updates = objective.updates_per_iteration if objective.update_on == "all" else 1
    if objective.kl_beta:
        sampled += updates * trained_samples
    return Counters(prompts * sampled, prompts * updates * trained_samples, prompts * scored)


@dataclass
class Stopwatch:
    """Seconds that an iteration spent in each of its phases."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Context manager that adds the time spent inside it to a phase."""
        began = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - began


def joined(structures: Sequence[Any]) -> Any:
    """Concatenate the lists of several structures of nested mappings, which must have the same keys."""
    first = structures[0]
    if isinstance(first, Mapping):
        return {key: joined([one[key] for one in structures]) for key in first}
    return [value for one in structures for value in one]


def summary_of_updates(logged: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Mean of each value that an iteration's updates logged; for ``ratio_max_deviation`` the maximum.

    Each has one value per term of a loss or per update, of all processes, and at least one. Sums are exact before
    rounding, so that the result does not depend on the order of the processes.
    """
    means = {name: math.fsum(values) / len(values) for name, values in logged.items()}
    return means | {name: max(values) for name, values in logged.items() if name.endswith("ratio_max_deviation")}


def mean(values: Sequence[float]) -> float | None:
    """Mean of values; None if there are none."""
    return mean_and_std("", values)["_mean"]


def mean_and_std(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """Mean and population std as ``{name_mean, name_std}``; both None if there are no values."""
    if not values:
        return {f"{name}_mean": None, f"{name}_std": None}
    tensor = torch.tensor(list(values), dtype=torch.float64)
    return {f"{name}_mean": tensor.mean().item(), f"{name}_std": tensor.std(correction=0).item()}
