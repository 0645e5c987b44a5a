"""Ledger of the outcomes of trained prompts, and predictions for prompts to come.

Symbols: m and s are mean and standard deviation of the rewards of a prompt's groups, mu_m is the moving average of m.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.adagrpo import CapabilityTracker

MIN_OUTCOMES = 16
"""Outcomes needed before the ledger predicts anything; rules that need a prediction choose at random until then."""
COOLDOWN = 5
"""Number of iterations that a prompt rests before ``replay`` may take it again."""
_PENALTIES = (0.03, 0.3, 3.0, 30.0, 300.0)
"""Ridge penalties to choose from, in units of one outcome at the mean squared distance from the mean embedding."""


@dataclass(frozen=True)
class Prediction:
    """Gaussian prediction for each of B prompts: mean and standard deviation ``[B]``, float64."""

    mean: Tensor
    std: Tensor


class Ridge:
    """Weighted ridge regression in closed form, with the penalty chosen by leave-one-out error.

    With centred inputs X, scaled to a mean squared norm of 1, weights W and K = X X^T::

        f(q) = mean(y) + k(q)^T W^1/2 (W^1/2 K W^1/2 + lambda I)^-1 W^1/2 (y - mean(y))
        std(q)^2 = sigma^2 / lambda * (k(q, q) - k(q)^T W^1/2 (W^1/2 K W^1/2 + lambda I)^-1 W^1/2 k(q))

    This is the posterior of a linear function with a Gaussian prior, where sigma^2 is the mean squared leave-one-out
    residual (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2.1 and 5.4). std is the uncertainty of
    the expected value; it does not include the noise of an outcome.

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
        """Predict at queries ``[B, E]`` from the targets ``[n]`` of the inputs."""
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
        best = len(_PENALTIES) - 1 - int(errors.flip(0).argmin())  # the largest in case of a tie
        penalty = _PENALTIES[best]
        cross = (q @ self._x.T * self._root) @ self._vectors
        mean = level + cross @ (rotated / (self._values + penalty))
        reduction = (cross.square() / (self._values + penalty)).sum(1)
        variance = errors[best] / penalty * (q.square().sum(1) - reduction).clamp(min=0)
        return Prediction(mean, variance.sqrt())


def prompt_number(prompt: str) -> int:
    """Number by which the ledger identifies a prompt: the first 52 bits of its sha256, which a double holds exactly."""
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8]) >> 12


def draw_shares(counts: Tensor, generator: torch.Generator) -> Tensor:
    """Draw ``[B]`` from the posteriors Beta(1 + successes, 1 + failures) of counts ``[B, 2]``."""
    seed = torch.randint(2**62, (1,), generator=generator, device=generator.device).item()
    successes, failures = (counts + 1).unbind(1)
    return torch.from_numpy(np.random.default_rng(int(seed)).beta(successes.numpy(), failures.numpy()))


def mean_and_spread(rewards: Tensor) -> tuple[float, float]:
    """m and s of a prompt's groups ``[groups, G]``: the mean of all rewards, and the mean of the groups' stds."""
    return rewards.mean().item(), rewards.std(dim=1, correction=1).mean().item()


@dataclass
class Ledger:
    """The latest outcomes of trained prompts, and predictions from them for other prompts.

    Args:
        decay: decay of ``capability``, the moving averages of m over the trained prompts of each iteration.
        forgetting: base of an outcome's weight, whose exponent is the age of the outcome in iterations.
        capacity: number of outcomes kept.
    """

    decay: float = 0.8
    forgetting: float = 0.98
    capacity: int = 256
    embeddings: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))
    """Prompt embeddings ``[n, E]`` of frozen text encoders."""
    outcomes: Tensor = field(default_factory=lambda: torch.zeros(0, 6, dtype=torch.float64))
    """``[n, 6]``: iteration, m, s, number of rewards above mu_m as it was before the iteration, number of the others,
    and the bandit's strategy or -1. Both numbers are 0 in the first iteration, which has no mu_m before it."""
    prompts: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """Prompt numbers ``[n]``, see ``prompt_number``."""

    def __post_init__(self) -> None:
        self.capability = CapabilityTracker(self.decay)
        self._ridge: Ridge | None = None

    def outcome_of(self, rewards: Tensor, strategy: int = -1) -> list[float]:
        """The five values after the iteration in a prompt's row of ``outcomes``, from its rewards ``[groups, G]``."""
        above = 0 if self.capability.is_empty else int((rewards > self.capability.mean).sum())
        counted = 0 if self.capability.is_empty else rewards.numel()
        return [*mean_and_spread(rewards), above, counted - above, strategy]

    def record(self, iteration: int, embeddings: Tensor, outcomes: Tensor, prompts: Tensor) -> None:
        """Record P prompts of an iteration: embeddings ``[P, E]``, their ``outcome_of`` ``[P, 5]``, numbers ``[P]``."""
        rows = torch.cat([torch.full_like(outcomes[:, :1], iteration), outcomes], dim=1).cpu().double()
        known = self.embeddings if len(self.embeddings) else embeddings[:0].cpu().double()
        self.embeddings = torch.cat([known, embeddings.detach().cpu().double()])[-self.capacity :]
        self.outcomes = torch.cat([self.outcomes, rows])[-self.capacity :]
        self.prompts = torch.cat([self.prompts, prompts.cpu()])[-self.capacity :]
        self._ridge = None
        self.capability.update(outcomes[:, 0])

    @property
    def can_predict(self) -> bool:
        """Whether there are at least ``MIN_OUTCOMES`` outcomes."""
        return len(self.outcomes) >= MIN_OUTCOMES

    def mean_of(self, embeddings: Tensor) -> Prediction:
        """Predicted m of prompts with embeddings ``[B, E]``."""
        return self._predict(self.outcomes[:, 1], embeddings)

    def spread_of(self, embeddings: Tensor) -> Prediction:
        """Predicted s of prompts with embeddings ``[B, E]``."""
        return self._predict(self.outcomes[:, 2], embeddings)

    def spread_quantile(self, share: float) -> float:
        """Quantile of s over the outcomes in the ledger; 0 before the ledger can predict."""
        return self.outcomes[:, 2].quantile(share).item() if self.can_predict else 0.0

    def shares_of(self, prompts: Tensor) -> Tensor:
        """Numbers of each prompt's own rewards above mu_m and of the others, weighted by age: ``[B, 2]``."""
        return (self._weights * (prompts[:, None] == self.prompts)) @ self.outcomes[:, 3:5]

    def merits_of(self, strategies: int) -> Tensor:
        """Successes and failures of each of the bandit's strategies, weighted by age: ``[K, 2]``.

        The success of an outcome is the share of outcomes with a smaller s, equal ones counting half; failure the rest.
        """
        s = self.outcomes[:, 2]
        rank = ((s[:, None] > s).double() + (s[:, None] == s).double() / 2).mean(1)
        own = self._weights * (torch.arange(strategies)[:, None] == self.outcomes[:, 5])
        return own @ torch.stack([rank, 1 - rank], dim=1)

    def worth_repeating(self, iteration: int, place: int) -> int | None:
        """Number of the prompt with the ``place``-th largest latest s, from 0, among those not trained on recently.

        None if there are too few. As the largest of noisy values, its next s tends to be smaller.
        """
        latest = dict(zip(self.prompts.tolist(), self.outcomes.tolist(), strict=True))
        rested = [(-row[2], prompt) for prompt, row in latest.items() if iteration - row[0] > COOLDOWN]
        return sorted(rested)[place][1] if place < len(rested) else None

    @property
    def _weights(self) -> Tensor:
        return self.forgetting ** (self.outcomes[-1:, 0] - self.outcomes[:, 0])

    def _predict(self, targets: Tensor, embeddings: Tensor) -> Prediction:
        if self._ridge is None:
            self._ridge = Ridge(self.embeddings, self._weights)
        return self._ridge.predict(targets, embeddings.cpu())

    def state_dict(self) -> dict[str, Any]:
        """The ledger's whole state, for a checkpoint."""
        return {
            "embeddings": self.embeddings,
            "outcomes": self.outcomes,
            "prompts": self.prompts,
            "capability": self.capability.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state from ``state_dict``, bit for bit, except the capability's decay, which stays."""
        self.embeddings, self.outcomes, self.prompts = state["embeddings"], state["outcomes"], state["prompts"]
        self._ridge = None
        self.capability.load_state_dict({**state["capability"], "decay": self.capability.decay})
