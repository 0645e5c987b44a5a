"""Weighted sum of rewards, which is itself a reward."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from harness.foundation.trained_reward import Normalisation, TrainedReward
from harness.rewards.base import Pending, Reward


class WeightedSum(Reward):
    """Reward that computes the formula of ``harness.foundation.trained_reward.TrainedReward``.

    Args:
        components: weight of each reward; may be negative. One of weight 0 is measured, but not computed for ``score``.
        normalisations: normalisations by name of the reward.

    Raises:
        ValueError: no component, two of the same name, a weight that is not finite, only zero weights, or a
            normalisation of a single reward of weight 1.
    """

    def __init__(
        self, components: Mapping[Reward, float], normalisations: Mapping[str, Normalisation] | None = None
    ) -> None:
        names = [reward.name for reward in components]
        if len(set(names)) < len(names):
            raise ValueError(f"rewards of a weighted sum need different names, not {', '.join(names)}")
        self._components = dict(components)
        self.formula = TrainedReward({r.name: weight for r, weight in components.items()}, normalisations)
        self.name = self.formula.name

    @property
    def parts(self) -> Sequence[Reward]:
        return tuple(self._components)

    @property
    def resolution(self) -> float:  # type: ignore[override]
        """Resolution of the sum if the errors of all components add up."""
        scales = self.formula.normalisations
        each = {reward.name: reward.resolution for reward in self._components}
        return sum(abs(weight / scales[name].scale) * each[name] for name, weight in self.weights.items())

    @property
    def weights(self) -> Mapping[str, float]:
        return self.formula.weights

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.total(self.submit(images, prompts)())

    def submit(self, images: Tensor, prompts: Sequence[str]) -> Pending:
        """Start scoring all components of non-zero weight; remote ones run in parallel with local ones."""
        # Remote rewards first, because they return at once.
        counted = sorted((r for r, weight in self._components.items() if weight), key=lambda r: not r.is_remote)
        pending = {reward.name: reward.submit(images, prompts) for reward in counted}
        return lambda: {name: pending[name]()[name] for name in self.weights}

    def total(self, components: Mapping[str, Tensor]) -> Tensor:
        total: Tensor = self.formula.total(components)
        return total

    def measure(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Compute all metrics of the components, and the sum under ``name``: ``{metric name: [B]}``."""
        measured: dict[str, Tensor] = {}
        for reward in self._components:
            measured |= reward.measure(images, prompts)
        return measured | {self.name: self.total(measured)}

    def close(self) -> None:
        for reward in self._components:
            reward.close()

    def check_prompt(self, prompt: str) -> None:
        for reward in self._components:
            reward.check_prompt(prompt)

    def check_ready(self) -> None:
        for reward in self._components:
            reward.check_ready()

    def fingerprint(self) -> str:
        """Weights and normalisations in full precision with the fingerprints of the components."""
        terms = []
        for reward, weight in self._components.items():
            n = self.formula.normalisations[reward.name]
            suffix = "" if n == Normalisation() else f"({n.offset!r},{n.scale!r})"
            terms.append(f"{weight!r}*[{reward.fingerprint()}]{suffix}")
        return "+".join(terms)
