"""Rules that choose a prompt to train on, in addition to the paper's five.

A rule is a function of B candidates and of the ledger of earlier prompts. ``RULES`` has all rules by name, including
the paper's; ``harness.config.selection`` has the inputs that each needs, docs/selection.md formulas and costs.

Symbols: R are rewards of candidates' deterministic samples, mu and sigma are the capability's mean and standard
deviation, m and s those of the rewards of a group that was trained on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps

import torch
from torch import Tensor

from harness.adagrpo import SELECTION_STRATEGIES, CapabilityTracker, nearest, select_prompt
from harness.rules.histories import chances_between, chances_to_stay, variances
from harness.rules.ledger import Ledger, draw_shares

SPREAD_QUANTILE = 0.2
"""``predicted_hardest`` skips candidates whose predicted spread is below this quantile of the ledger's."""


@dataclass(frozen=True)
class Candidates:
    """Inputs of a rule: an iteration's B candidates and the history before them."""

    rewards: Tensor
    """Rewards ``[B, S]`` of S deterministic samples per candidate, from different noise; zeros if not needed."""
    capability: CapabilityTracker
    """Capability over candidates' rewards."""
    generator: torch.Generator
    """Generator for this choice alone; the same for all rules with one seed, iteration and slot."""
    embeddings: Tensor | None = None
    """Prompt embeddings ``[B, E]``, for rules that read the ledger."""
    ledger: Ledger | None = None
    prompts: Tensor | None = None
    """Numbers ``[B]`` of the prompts in the ledger, for rules that use a prompt's own history."""
    level: float = 0.0
    """Parameter of rules that have one: q, r, k or a share."""
    explore: float = 0.0
    """Share of random choices of a rule that reads the ledger, which records only prompts that were chosen."""
    strategy: str = "random"
    """Strategy that the bandit drew, see ``draw_strategy``."""
    is_repeated: bool = False
    """Whether the first candidate is an earlier prompt that was put there to be trained on again."""
    resolution: float = 0.0
    """Resolution of the reward, for ties as in ``select_prompt``."""

    def nearest(self, values: Tensor, wanted: float) -> int:
        """Index of the candidate whose value, of ``[B]``, is nearest to the wanted one; on a tie the lowest."""
        return nearest(values, wanted, self.resolution)

    @property
    def means(self) -> Tensor:
        """Mean reward of each candidate, ``[B]``."""
        return self.rewards.mean(dim=1)


Rule = Callable[[Candidates], int]
"""Function from candidates to the index of the one to train on, in [0, B)."""


def at_random(candidates: Candidates) -> int:
    """Any candidate, uniformly, with the same draws as ``random``."""
    return select_prompt(candidates.means, "random", generator=candidates.generator)


def quantile(candidates: Candidates) -> int:
    """The candidate of rank floor(q (B - 1)) by reward: q = 0 is the hardest, .5 ``medium``, 1 the easiest."""
    values = candidates.means.double()
    return candidates.nearest(values, values.quantile(candidates.level, interpolation="lower").item())


def fixed(candidates: Candidates) -> int:
    """argmin |R_i - r| for a fixed target r (the idea of AdaRFT, arXiv 2504.05520, without its moving target)."""
    return candidates.nearest(candidates.means, candidates.level)


def anchored(candidates: Candidates) -> int:
    """argmin |R_i - (mu + k sigma)|: ``curriculum`` with a target above (k > 0) or below the capability."""
    tracker = candidates.capability
    return candidates.nearest(candidates.means, tracker.mean + candidates.level * tracker.std)


def preview(candidates: Candidates) -> int:
    """``curriculum`` on samples drawn with a quarter of the steps; the capability is that of such samples, too."""
    return candidates.nearest(candidates.means, candidates.capability.mean)


def screened(candidates: Candidates) -> int:
    """argmax of the standard deviation over S = 2 samples, |R_1 - R_2| / sqrt 2: spread instead of level.

    The samples differ by initial noise, the siblings of a trained group by the noise of one stochastic step; whether
    one spread predicts the other is to be measured first (docs/selection.md).
    """
    spreads = candidates.rewards.double().std(dim=1, correction=1)
    return candidates.nearest(spreads, spreads.max().item())


def _is_left_to_chance(candidates: Candidates) -> bool:
    generator = candidates.generator
    return bool(torch.rand(1, generator=generator, device=generator.device) < candidates.explore)


def _by_prediction(value: Callable[[Candidates, Ledger, Tensor], tuple[Tensor, float]]) -> Rule:
    """Rule that takes the candidate whose value, predicted from the ledger by embeddings ``[B, E]``, is nearest to the
    wanted one; a random one while the ledger cannot predict."""

    @wraps(value)
    def rule(candidates: Candidates) -> int:
        ledger, embeddings = candidates.ledger, candidates.embeddings
        assert ledger is not None
        assert embeddings is not None
        if not ledger.can_predict or _is_left_to_chance(candidates):
            return at_random(candidates)
        return nearest(*value(candidates, ledger, embeddings))

    return rule


@_by_prediction
def predicted(candidates: Candidates, ledger: Ledger, x: Tensor) -> tuple[Tensor, float]:
    """argmin |E[m_i] - mu_m|, where mu_m is the ledger's capability: ``curriculum`` by prediction, without samples.

    The idea is from prompt curriculum learning (arXiv 2510.01135), with ridge regression in place of its value network
    and a moving capability in place of its target 1/2.
    """
    return ledger.mean_of(x).mean, ledger.capability.mean


@_by_prediction
def predicted_hardest(candidates: Candidates, ledger: Ledger, x: Tensor) -> tuple[Tensor, float]:
    """argmin E[m_i] among candidates whose predicted spread is at least the ledger's ``SPREAD_QUANTILE``; among all
    candidates if there is none."""
    means = ledger.mean_of(x).mean
    enough = ledger.spread_of(x).mean >= ledger.spread_quantile(SPREAD_QUANTILE)
    means = means.where(enough, torch.inf) if enough.any() else means
    return means, means.min().item()


@_by_prediction
def predicted_spread(candidates: Candidates, ledger: Ledger, x: Tensor) -> tuple[Tensor, float]:
    """argmax E[s_i]: the candidate whose groups have the largest predicted spread."""
    spreads = ledger.spread_of(x).mean
    return spreads, spreads.max().item()


@_by_prediction
def thompson(candidates: Candidates, ledger: Ledger, x: Tensor) -> tuple[Tensor, float]:
    """``predicted`` with a draw from each candidate's posterior instead of its mean, to try uncertain prompts, too."""
    posterior, generator = ledger.mean_of(x), candidates.generator
    noise = torch.randn(len(x), generator=generator, dtype=torch.float64, device=generator.device).cpu()
    return posterior.mean + posterior.std * noise, ledger.capability.mean


def beta(candidates: Candidates) -> int:
    """argmin |p_i - 1/2|, p_i drawn from Beta(1 + above_i, 1 + below_i) of the prompt's own history.

    The posterior of MoPPS (arXiv 2507.04632), except that above and below count rewards of a prompt's groups that are
    above mu_m or not, where MoPPS counts right and wrong answers; that counts decay by age in iterations, not by
    visits; that siblings, which share a path, count in full; and that a share ``choice.explore`` of the choices is
    random. A prompt that was never trained on has a uniform p; among such prompts alone the rule equals ``random``.
    """
    ledger, prompts = _history(candidates)
    if _is_left_to_chance(candidates):
        return at_random(candidates)
    return nearest(draw_shares(ledger.shares_of(prompts), candidates.generator), 0.5)


def skipping(candidates: Candidates) -> int:
    """The first candidate that is not skipped, with the probabilities of ``chances_to_stay``; a random one if all are.

    GRESO's rule (arXiv 2506.02177) for continuous rewards, for one prompt per slot instead of filling a batch, and
    without its filter after sampling (``choice.floor`` is such a filter).
    """
    ledger, prompts = _history(candidates)
    generator = candidates.generator
    dice = torch.rand(len(prompts), generator=generator, device=generator.device).cpu()
    if not len(ledger.outcomes):
        return at_random(candidates)
    stays = (dice < chances_to_stay(ledger, prompts)).nonzero()
    return int(stays[0]) if len(stays) else at_random(candidates)


def belief(candidates: Candidates) -> int:
    """argmax of ``chances_between``: the rule of DPS (arXiv 2603.10887) for continuous rewards.

    Unlike in DPS, a share ``choice.explore`` of the choices is random. Prompts that were never trained on are equal;
    among them the first candidate is taken, which is a random one.
    """
    ledger, prompts = _history(candidates)
    if not len(ledger.outcomes) or _is_left_to_chance(candidates):
        return at_random(candidates)
    chances = chances_between(ledger, prompts)
    return nearest(chances, chances.max())


def variance(candidates: Candidates) -> int:
    """A random candidate with probability proportional to (v_i + mean(v) / 10)^(1/2), v from ``variances``.

    After CGPO (arXiv 2605.17807), which draws prompts of larger group variance more often; its formula was not
    available, and prompts are not balanced by category. A share ``choice.explore`` of the choices is uniform.
    """
    ledger, prompts = _history(candidates)
    if not len(ledger.outcomes) or _is_left_to_chance(candidates):
        return at_random(candidates)
    v, generator = variances(ledger, prompts), candidates.generator
    shares = (v + v.mean() / 10 + 1e-12).sqrt().cumsum(0)
    dice = torch.rand(1, generator=generator, device=generator.device, dtype=torch.float64).cpu()
    return int((shares < dice * shares[-1]).sum())


def replay(candidates: Candidates) -> int:
    """An earlier prompt if the slot has one (``choice.level`` of the slots, once any has rested), else a random one.

    It is the prompt with the largest latest s among those not trained on for ``harness.rules.ledger.COOLDOWN``
    iterations; slot k takes the k-th. The idea is from Prompt Replay (arXiv 2603.21177), with spread in place of a pass
    rate near 1/2, and without its cap on reuses. The prompt's path and groups are sampled anew.
    """
    return 0 if candidates.is_repeated else at_random(candidates)


def bandit(candidates: Candidates) -> int:
    """The choice of one of the paper's five strategies, drawn by ``draw_strategy``."""
    return _papers(candidates.strategy)(candidates)


def draw_strategy(ledger: Ledger, explore: float, generator: torch.Generator) -> int:
    """Draw an index of ``SELECTION_STRATEGIES`` by discounted Thompson sampling (Raj and Kalyani, arXiv 1707.09727).

    argmax of draws from Beta(1 + S_k, 1 + F_k), where S_k and F_k are the sums of x and 1 - x over the strategy's
    outcomes, each times ``forgetting`` to the power of its age. x is the rank of the group's spread among all in the
    ledger, in [0, 1], and has no unit. A share ``explore`` of the draws is uniform. Spread is only what can be learned
    from a group: a strategy may win here and still train worse.
    """
    count = len(SELECTION_STRATEGIES)
    if torch.rand(1, generator=generator, device=generator.device) < explore:
        return int(torch.randint(count, (1,), generator=generator, device=generator.device))
    return int(draw_shares(ledger.merits_of(count), generator).argmax())


def _history(candidates: Candidates) -> tuple[Ledger, Tensor]:
    """The ledger and the candidates' numbers in it."""
    assert candidates.ledger is not None
    assert candidates.prompts is not None
    return candidates.ledger, candidates.prompts


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
        beta,
        skipping,
        belief,
        variance,
        replay,
        bandit,
    )
}
"""Rules by ``selection``."""
