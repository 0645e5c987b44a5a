"""Rules that choose a prompt to train on beside the paper's five, and what they remember of those trained before.

Like ``harness.adagrpo`` this file needs nothing but torch. A rule is a function of what may be seen of B candidates;
``RULES`` has all of them by name, the paper's among them. What each asks for stands in ``harness.config.selection``;
formulas and costs are in docs/selection.md.

Symbols: R are rewards of candidates' deterministic samples, mu and sigma are the capability's, m and s mean and
standard deviation of the rewards of a group that was trained on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.adagrpo import SELECTION_STRATEGIES, CapabilityTracker, nearest, select_prompt

MIN_OUTCOMES = 16
"""Trained prompts before the ledger predicts anything; rules that need a prediction choose at random until then."""
SPREAD_QUANTILE = 0.2
"""``predicted_hardest`` passes over candidates whose predicted spread is below this quantile of the ledger's."""
_PENALTIES = (0.03, 0.3, 3.0, 30.0, 300.0)
"""Ridge penalties to choose from, in units of one outcome at the mean squared distance from the mean embedding."""


@dataclass(frozen=True)
class Prediction:
    """What is expected of B prompts, each a Gaussian: mean and standard deviation ``[B]``, float64."""

    mean: Tensor
    std: Tensor


class Ridge:
    """Weighted ridge regression in closed form, its penalty chosen by leave-one-out error.

    With centred inputs X, scaled to a mean squared norm of 1, weights W and K = X X^T::

        f(q) = mean(y) + k(q)^T W^1/2 (W^1/2 K W^1/2 + lambda I)^-1 W^1/2 (y - mean(y))
        std(q)^2 = sigma^2 / lambda * (k(q, q) - k(q)^T W^1/2 (W^1/2 K W^1/2 + lambda I)^-1 W^1/2 k(q))

    which is the posterior of a linear function with a Gaussian prior, sigma^2 being the mean squared leave-one-out
    residual (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2.1 and 5.4). It says how uncertain the
    expected value is; the noise of an outcome comes on top.

    Args:
        inputs: ``[n, E]``, n >= 2.
        weights: ``[n]``, above 0.
    """

    def __init__(self, inputs: Tensor, weights: Tensor) -> None:
        inputs, self._weights = inputs.double(), weights.double()
        self._shares = self._weights / self._weights.sum()
        self._centre = self._shares @ inputs
        x = inputs - self._centre
        self._scale = (self._shares @ x.square().sum(1)).sqrt().clamp(min=1e-12)
        self._x, self._root = x / self._scale, self._weights.sqrt()
        values, self._vectors = torch.linalg.eigh(self._root[:, None] * (self._x @ self._x.T) * self._root)
        self._values = values.clamp(min=0)

    def predict(self, targets: Tensor, queries: Tensor) -> Prediction:
        """What is expected at queries ``[B, E]``, of targets ``[n]``."""
        targets, q = targets.double(), (queries.double() - self._centre) / self._scale
        level = self._shares @ targets
        y = self._root * (targets - level)
        rotated = self._vectors.T @ y

        def leave_one_out(penalty: float) -> Tensor:
            shrinking = self._values / (self._values + penalty)
            leverage = self._vectors.square() @ shrinking + self._shares
            residuals = (y - self._vectors @ (shrinking * rotated)) / (1 - leverage).clamp(min=1e-6)
            return residuals.square().sum() / self._weights.sum()

        errors = torch.stack([leave_one_out(penalty) for penalty in _PENALTIES])
        best = len(_PENALTIES) - 1 - int(errors.flip(0).argmin())  # of equal ones the largest
        penalty = _PENALTIES[best]
        cross = (q @ self._x.T * self._root) @ self._vectors
        mean = level + cross @ (rotated / (self._values + penalty))
        reduction = (cross.square() / (self._values + penalty)).sum(1)
        variance = errors[best] / penalty * (q.square().sum(1) - reduction).clamp(min=0)
        return Prediction(mean, variance.sqrt())


@dataclass
class Ledger:
    """Outcomes of the prompts trained on, the newest ``capacity``, and what they predict of prompts never seen.

    Args:
        decay: of ``capability``, the moving averages of m over the trained prompts of an iteration.
        forgetting: weight of an outcome, to the power of its age in iterations.
        capacity: outcomes kept.
    """

    decay: float = 0.8
    forgetting: float = 0.98
    capacity: int = 256
    embeddings: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))
    """``[n, E]``, of frozen text encoders."""
    outcomes: Tensor = field(default_factory=lambda: torch.zeros(0, 3, dtype=torch.float64))
    """``[n, 3]``: iteration, m, s."""

    def __post_init__(self) -> None:
        self.capability = CapabilityTracker(self.decay)
        self._ridge: Ridge | None = None

    def record(self, iteration: int, embeddings: Tensor, means: Tensor, spreads: Tensor) -> None:
        """Note what became of an iteration's prompts: embeddings ``[P, E]``, m ``[P]``, s ``[P]``."""
        rows = torch.stack([torch.full_like(means, iteration), means, spreads], dim=1).cpu().double()
        known = self.embeddings if len(self.embeddings) else embeddings[:0].cpu().double()
        self.embeddings = torch.cat([known, embeddings.detach().cpu().double()])[-self.capacity :]
        self.outcomes = torch.cat([self.outcomes, rows])[-self.capacity :]
        self._ridge = None
        self.capability.update(means)

    @property
    def can_predict(self) -> bool:
        """Whether it has seen enough."""
        return len(self.outcomes) >= MIN_OUTCOMES

    def mean_of(self, embeddings: Tensor) -> Prediction:
        """Expected m of prompts with embeddings ``[B, E]``."""
        return self._predict(self.outcomes[:, 1], embeddings)

    def spread_of(self, embeddings: Tensor) -> Prediction:
        """Expected s."""
        return self._predict(self.outcomes[:, 2], embeddings)

    def spread_quantile(self, share: float) -> float:
        """The quantile of s over the outcomes kept; 0 before the ledger can predict."""
        return self.outcomes[:, 2].quantile(share).item() if self.can_predict else 0.0

    def _predict(self, targets: Tensor, embeddings: Tensor) -> Prediction:
        if self._ridge is None:
            ages = self.outcomes[-1, 0] - self.outcomes[:, 0]
            self._ridge = Ridge(self.embeddings, self.forgetting**ages)
        return self._ridge.predict(targets, embeddings.cpu())

    def state_dict(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {
            "embeddings": self.embeddings,
            "outcomes": self.outcomes,
            "capability": self.capability.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``, bit for bit."""
        self.embeddings, self.outcomes, self._ridge = state["embeddings"], state["outcomes"], None
        self.capability.load_state_dict(state["capability"])


@dataclass(frozen=True)
class Candidates:
    """What a rule may see of an iteration's B candidates, and of what came before."""

    rewards: Tensor
    """``[B, S]``: S deterministic samples of each, from different initial noise; zeros where a rule asks for none."""
    capability: CapabilityTracker
    """Over candidates' rewards."""
    generator: torch.Generator
    """For this choice alone: the same for all rules with one seed, iteration and slot."""
    embeddings: Tensor | None = None
    """``[B, E]``, for rules that read the ledger."""
    ledger: Ledger | None = None
    level: float = 0.0
    """q, r or k of the rules that have one."""
    explore: float = 0.0
    """Share of choices that a rule which reads the ledger leaves to chance: it learns only of prompts it chose."""
    resolution: float = 0.0
    """Rewards this close are a tie, as in ``select_prompt``."""

    def nearest(self, values: Tensor, wanted: float) -> int:
        """The candidate whose value ``[B]`` is nearest to the wanted one; on a tie the lowest index."""
        return nearest(values, wanted, self.resolution)

    @property
    def means(self) -> Tensor:
        """``[B]``."""
        return self.rewards.mean(dim=1)


Rule = Callable[[Candidates], int]
"""From candidates to the index of the one to train on, in [0, B)."""


def at_random(candidates: Candidates) -> int:
    """Any candidate, uniformly: the same as ``random`` draws."""
    return select_prompt(candidates.means, "random", generator=candidates.generator)


def quantile(candidates: Candidates) -> int:
    """The candidate of rank floor(q (B - 1)) by reward: q = 0 is the hardest, .5 ``medium``, 1 the easiest."""
    values = candidates.means.double()
    return candidates.nearest(values, values.quantile(candidates.level, interpolation="lower").item())


def fixed(candidates: Candidates) -> int:
    """argmin |R_i - r|: a target that does not move (AdaRFT's idea, arXiv 2504.05520, without its moving target)."""
    return candidates.nearest(candidates.means, candidates.level)


def anchored(candidates: Candidates) -> int:
    """argmin |R_i - (mu + k sigma)|: ``curriculum`` with a target above (k > 0) or below the capability."""
    tracker = candidates.capability
    return candidates.nearest(candidates.means, tracker.mean + candidates.level * tracker.std)


def preview(candidates: Candidates) -> int:
    """``curriculum`` on samples made with a quarter of the steps; capability is that of such samples, too."""
    return candidates.nearest(candidates.means, candidates.capability.mean)


def screened(candidates: Candidates) -> int:
    """argmax of the standard deviation over S = 2 samples, |R_1 - R_2| / sqrt 2: spread instead of level.

    The samples differ by initial noise, the siblings of a trained group by the noise of one stochastic step: whether
    one tells anything of the other is to be measured first (docs/selection.md).
    """
    spreads = candidates.rewards.double().std(dim=1, correction=1)
    return candidates.nearest(spreads, spreads.max().item())


def predicted(candidates: Candidates) -> int:
    """argmin |E[m_i] - mu_m|, mu_m the ledger's capability: ``curriculum`` by prediction, without a sample.

    The idea is prompt curriculum learning's (arXiv 2510.01135), with ridge regression for its value network and a
    moving capability for its one half.
    """
    return _by_ledger(candidates, lambda ledger, x: (ledger.mean_of(x).mean, ledger.capability.mean))


def predicted_hardest(candidates: Candidates) -> int:
    """argmin E[m_i] among candidates whose expected spread is at least the ledger's ``SPREAD_QUANTILE``; of all, if
    none has that."""

    def value(ledger: Ledger, x: Tensor) -> tuple[Tensor, float]:
        means = ledger.mean_of(x).mean
        enough = ledger.spread_of(x).mean >= ledger.spread_quantile(SPREAD_QUANTILE)
        means = means.where(enough, torch.inf) if enough.any() else means
        return means, means.min().item()

    return _by_ledger(candidates, value)


def predicted_spread(candidates: Candidates) -> int:
    """argmax E[s_i]: where a group is expected to have something to compare."""

    def value(ledger: Ledger, x: Tensor) -> tuple[Tensor, float]:
        spreads = ledger.spread_of(x).mean
        return spreads, spreads.max().item()

    return _by_ledger(candidates, value)


def thompson(candidates: Candidates) -> int:
    """``predicted`` with a draw from each candidate's posterior instead of its mean: uncertain prompts get tried."""

    def value(ledger: Ledger, x: Tensor) -> tuple[Tensor, float]:
        posterior = ledger.mean_of(x)
        generator = candidates.generator
        noise = torch.randn(len(x), generator=generator, dtype=torch.float64, device=generator.device).cpu()
        return posterior.mean + posterior.std * noise, ledger.capability.mean

    return _by_ledger(candidates, value)


def _by_ledger(candidates: Candidates, value: Callable[[Ledger, Tensor], tuple[Tensor, float]]) -> int:
    """The candidate whose value is nearest to the wanted one; any, as long as the ledger knows too little."""
    ledger, embeddings = candidates.ledger, candidates.embeddings
    if ledger is None or embeddings is None:
        raise ValueError("this rule needs a ledger and the candidates' embeddings")
    generator = candidates.generator
    if not ledger.can_predict or torch.rand(1, generator=generator, device=generator.device) < candidates.explore:
        return at_random(candidates)
    return nearest(*value(ledger, embeddings))


def _papers(strategy: str) -> Rule:
    return lambda candidates: select_prompt(
        candidates.means, strategy, candidates.capability, candidates.generator, candidates.resolution
    )


RULES: dict[str, Rule] = {strategy: _papers(strategy) for strategy in SELECTION_STRATEGIES} | {
    rule.__name__: rule
    for rule in (
        quantile,
        fixed,
        anchored,
        preview,
        screened,
        predicted,
        predicted_hardest,
        predicted_spread,
        thompson,
    )
}
"""Values of ``selection``."""
