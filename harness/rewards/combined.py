"""A weighted sum of rewards, itself a reward."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from harness.rewards.base import Reward


class WeightedSum(Reward):
    """score = sum over components of weight x score. Weights apply to the scores as they are: no rescaling."""

    def __init__(self, components: Mapping[Reward, float]) -> None:
        """Combine rewards.

        Args:
            components: weight of each reward; may be negative. A component of weight 0 is measured at evaluation, but
                not computed for ``score``.

        Raises:
            ValueError: no component, two of the same name, a weight that is not finite, or only zero weights.
        """
        names = [reward.name for reward in components]
        if len(set(names)) < len(names):
            raise ValueError(f"rewards of a weighted sum need different names, not {', '.join(names)}")
        for reward, weight in components.items():
            if not math.isfinite(weight):
                raise ValueError(f"weight of reward {reward.name!r} must be finite, not {weight}")
        if not any(components.values()):
            raise ValueError(f"a weighted sum needs a weight other than 0; given: {', '.join(names) or 'no reward'}")
        self._components = dict(components)
        terms = [f"{weight:+g}*{reward.name}" for reward, weight in components.items()]
        self.name = "".join(terms).replace("+1*", "+").replace("-1*", "-").removeprefix("+")
        self.low = sum(min(weight * reward.low, weight * reward.high) for reward, weight in components.items())
        self.high = sum(max(weight * reward.low, weight * reward.high) for reward, weight in components.items())

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score each image, see ``Reward.score``; raises what a component raises."""
        return self._total(
            {reward.name: reward.score(images, prompts) for reward, weight in self._components.items() if weight}
        )

    def measure(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Everything that the components measure, and the sum under ``name``: ``{metric name: [B]}``."""
        measured: dict[str, Tensor] = {}
        for reward in self._components:
            measured |= reward.measure(images, prompts)
        return measured | {self.name: self._total(measured)}

    def check_prompt(self, prompt: str) -> None:
        """Raise what a component raises."""
        for reward in self._components:
            reward.check_prompt(prompt)

    def check_ready(self) -> None:
        """Raise what a component raises."""
        for reward in self._components:
            reward.check_ready()

    def fingerprint(self) -> str:
        """Weights in full precision and fingerprints of the components."""
        return "+".join(f"{weight!r}*[{reward.fingerprint()}]" for reward, weight in self._components.items())

    def _total(self, scores: Mapping[str, Tensor]) -> Tensor:
        weighted = [weight * scores[reward.name] for reward, weight in self._components.items() if weight]
        total = weighted[0]
        for term in weighted[1:]:
            total = total + term
        return total
