"""What an iteration cost and what happened in it: counters, stopwatch, and the line of metrics.jsonl."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import gather_object


@dataclass
class Counters:
    """Compute spent, over all processes. A trained sample costs a forward and a backward: three forwards' worth."""

    sample_forwards: int = 0
    train_forwards: int = 0
    reward_calls: int = 0

    def add(self, other: Mapping[str, int]) -> None:
        """Add counts by name."""
        for name, count in other.items():
            setattr(self, name, getattr(self, name) + count)


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
    values: Mapping[str, Sequence[Any]], averages: Mapping[str, Mapping[str, float]], spent: Counters
) -> tuple[dict[str, list[Any]], dict[str, dict[str, float]], dict[str, int]]:
    """Bring together what each process logged; equal on every process.

    Args:
        values: lists to be joined, in the order of processes.
        averages: sections of numbers to be averaged over processes.
        spent: counts to be added up.
    """
    everyone = gather_object([(values, averages, vars(spent))])
    joined = {key: [value for one in everyone for value in one[0][key]] for key in values}
    averaged = {
        section: {key: sum(one[1][section][key] for one in everyone) / len(everyone) for key in numbers}
        for section, numbers in averages.items()
    }
    return joined, averaged, {key: sum(one[2][key] for one in everyone) for key in vars(spent)}


def mean_and_std(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """``{name_mean, name_std}``, population std; None for no values."""
    if not values:
        return {f"{name}_mean": None, f"{name}_std": None}
    tensor = torch.tensor(list(values), dtype=torch.float64)
    return {f"{name}_mean": tensor.mean().item(), f"{name}_std": tensor.std(correction=0).item()}
