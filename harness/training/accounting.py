"""What an iteration cost and what happened in it: counters, stopwatch, and the line of metrics.jsonl."""

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
from harness.training.processes import Processes
from harness.training.scoring import PendingScores, Scores


@dataclass
class Slot:
    """One of an iteration's prompts to be: B candidates, the one that was chosen, and what became of it."""

    number: int
    """Over all processes, from 0."""
    prompts: list[str]
    text: PromptEmbedding | None = None
    """Embedding of the candidates, if they were encoded."""
    trajectories: Trajectory | None = None
    """The candidates' whole ODE paths, B of first samples before those of second ones; None if there are none."""
    samples: Tensor | None = None
    """``[B, S]``, rewards of the candidates, once they are there."""
    is_repeated: bool = False
    """Whether the first candidate is one of before, put there to be trained on again."""
    strategy: int = -1
    """The bandit's, of ``SELECTION_STRATEGIES``; -1 for other selections."""
    chosen: int = 0
    pending: PendingScores = field(init=False)
    """Scores under way: of the candidates' ODE samples, where choosing needs them, then of the rollout."""
    rollout: Rollout = field(init=False)
    scores: Scores = field(init=False)
    """The rollout's scores, ``[groups, G]``."""

    @property
    def prompt(self) -> str:
        """The chosen one."""
        return self.prompts[self.chosen]

    @property
    def rewards(self) -> Tensor | None:
        """``[B]`` of the candidates, means over their samples."""
        return None if self.samples is None else self.samples.mean(dim=1)

    @property
    def mean(self) -> float:
        """m, see ``harness.rules.ledger``."""
        return mean_and_spread(self.scores.total)[0]

    @property
    def spread(self) -> float:
        """s, see there."""
        return mean_and_spread(self.scores.total)[1]

    def rank(self, resolution: float) -> int | None:
        """How many candidates have a reward lower than the chosen one's by more than ``resolution``."""
        rewards = self.rewards
        return None if rewards is None else int((rewards < rewards[self.chosen] - resolution).sum())


@dataclass
class Counters:
    """Compute spent, over all processes. A trained sample costs a forward and a backward: three forwards' worth.

    What is counted are velocities of a sample. With classifier-free guidance each, in all cells of a grid alike,
    is two samples in the network (``Architecture.forwards_per_velocity``, in the doctor's hours).
    """

    sample_forwards: int = 0
    train_forwards: int = 0
    reward_calls: int = 0

    def add(self, other: Mapping[str, int]) -> None:
        """Add counts by name."""
        for name, count in other.items():
            setattr(self, name, getattr(self, name) + count)

    @property
    def forwards(self) -> int:
        """Forwards of a sample through the network, a trained one counting three."""
        return self.sample_forwards + 3 * self.train_forwards


def expected_cost(config: RunConfig) -> Counters:
    """What one iteration will spend, over all processes: the trainer's own counts, before it runs."""
    rollout, objective, steps = config.rollout, config.objective, config.model.num_steps
    trained = num_trained_steps(rollout)
    if rollout.kind == "anchor_branch":
        # A branch at index i has taken one step without a forward and has N - 1 - i left; a window is at any place.
        left = [steps - 1 - index for index in rollout.branch_indices]
        sampled = rollout.group_size * round(sum(left) * trained / len(left))
        scored, trained_samples = rollout.group_size * trained, trained
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
    # Where updates share nothing, each sample is trained on once.
    updates = objective.updates_per_iteration if objective.update_on == "all" else 1
    if objective.kl_beta:
        sampled += updates * trained_samples
    return Counters(prompts * sampled, prompts * updates * trained_samples, prompts * scored)


@dataclass
class Stopwatch:
    """Seconds by phase of one iteration."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent within to a phase."""
        began = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - began


def across_processes(
    values: Mapping[str, Sequence[Any]], spent: Counters, processes: Processes
) -> tuple[dict[str, list[Any]], dict[str, int]]:
    """Bring together what each process logged; equal on every process.

    Args:
        values: lists to be joined, in the order of processes; the same names in all of them.
        spent: counts to be added up.
        processes: all of them.
    """
    everyone = processes.gather_objects((values, vars(spent)), "gathering what is logged")
    joined = {key: [value for one in everyone for value in one[0][key]] for key in values}
    return joined, {key: sum(one[1][key] for one in everyone) for key in vars(spent)}


def averages_of(values: Mapping[str, Sequence[float]], section: str) -> dict[str, float]:
    """Means of the lists whose names begin with a section's, without it."""
    starts = f"{section} "
    return {k.removeprefix(starts): sum(own) / len(own) for k, own in values.items() if k.startswith(starts)}


def summary_of_updates(logged: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Means of what an iteration's updates logged, a value per term of a loss; of ``ratio_max_deviation`` the largest.

    Sums are exact before they are rounded, so that nothing depends on the order in which processes are joined.

    Args:
        logged: over all processes, by name; at least one value each.
    """
    means = {name: math.fsum(values) / len(values) for name, values in logged.items()}
    return means | {name: max(values) for name, values in logged.items() if name.endswith("ratio_max_deviation")}


def mean(values: Sequence[float]) -> float | None:
    """Mean; None for no values."""
    return mean_and_std("", values)["_mean"]


def mean_and_std(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """``{name_mean, name_std}``, population std; None for no values."""
    if not values:
        return {f"{name}_mean": None, f"{name}_std": None}
    tensor = torch.tensor(list(values), dtype=torch.float64)
    return {f"{name}_mean": tensor.mean().item(), f"{name}_std": tensor.std(correction=0).item()}
