"""The scalar reward that a run is trained on, defined once: its formula and the name under which it is logged.

Training, sweeps and the analysis all take both from here. Nothing heavy is imported.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from harness.foundation.errors import ConfigError


@dataclass(frozen=True)
class Normalisation:
    """score -> (score - offset) / scale, with fixed numbers, so that a score means the same throughout a run."""

    offset: float = 0.0
    scale: float = 1.0

    def __call__(self, scores: Any) -> Any:
        """Normalised scores: numbers or tensors, in the reward's own unit before and dimensionless after."""
        return (scores - self.offset) / self.scale


class TrainedReward:
    """Weighted sum of normalised rewards: sum over rewards of weight x (score - offset) / scale.

    Neither value nor name depends on the order of the weights, and so neither does a run's identity.

    Args:
        weights: weight of each reward, by name. A reward of weight 0 is measured, but not added.
        normalisations: normalisation of each reward, by name; offset 0 and scale 1 where none is given.

    Raises:
        ValueError: a weight is not finite, all weights are 0, or a single reward of weight 1 has a normalisation.
    """

    def __init__(self, weights: Mapping[str, float], normalisations: Mapping[str, Normalisation] | None = None) -> None:
        for name, weight in weights.items():
            if not math.isfinite(weight):
                raise ValueError(f"weight of reward {name!r} must be finite, not {weight}")
        if not any(weights.values()):
            raise ValueError(f"a weighted sum needs a weight other than 0; given: {', '.join(weights) or 'no reward'}")
        ordered = sorted(weights.items(), key=lambda item: (-abs(item[1]), item[0]))
        self.weights = {name: weight for name, weight in ordered if weight}
        """Weights other than 0, by reward; the largest magnitude first."""
        given = normalisations or {}
        self.normalisations = {name: given.get(name, Normalisation()) for name in weights}
        self._terms = [f"{weight:+g}*{name}".replace("+1*", "+").replace("-1*", "-") for name, weight in ordered]
        self.name = "".join(self._terms).removeprefix("+")
        """Name of the sum in every log, such as "ocr" or "ocr+0.5*colour"."""
        if self.name in weights and self.normalisations[self.name] != Normalisation():
            # The raw score of the reward and the normalised sum would have the same name in every log.
            raise ValueError(f"rewards.{self.name}: offset and scale are for sums of several rewards")

    def total(self, scores: Mapping[str, Any]) -> Any:
        """Compute the sum from scores by reward name: numbers, or tensors of one shape.

        Raises:
            ConfigError: a score is missing; the message names it and those that are present.
        """
        if missing := self.weights.keys() - scores.keys():
            raise ConfigError(
                f"no score {min(missing)!r} for the trained reward {self.name}; there are {_listed(scores)}"
            )
        terms = [weight * self.normalisations[name](scores[name]) for name, weight in self.weights.items()]
        return sum(terms[1:], terms[0])

    def logged_as(self, metrics: Collection[str]) -> str:
        """Name of the sum among an evaluation's metrics; older runs named it in the order of their file.

        Raises:
            ConfigError: the sum is not among them; the message names those that are present.
        """
        if self.name in metrics:
            return self.name
        names = {"".join(terms).removeprefix("+") for terms in permutations(self._terms)}
        for metric in metrics:
            if metric in names:
                return metric
        raise ConfigError(f"no metric {self.name!r}, the trained reward; there are {_listed(metrics)}")


def trained_reward(config: Mapping[str, Any]) -> TrainedReward:
    """Trained reward of a run's configuration as in config.yaml, with sections as mappings."""
    normalisations = {
        name: Normalisation(settings.get("offset", 0.0), settings.get("scale", 1.0))
        for name, settings in (config.get("rewards") or {}).items()
    }
    return TrainedReward(config["reward"], normalisations)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
