"""Rules that choose a prompt to train on beside the paper's five.

A rule is a function of what may be seen of B candidates, and of what the ledger remembers of those before them;
``RULES`` has all of them by name, the paper's among them. What each asks for stands in ``harness.config.selection``;
formulas and costs are in docs/selection.md.

Symbols: R are rewards of candidates' deterministic samples, mu and sigma are the capability's, m and s mean and
standard deviation of the rewards of a group that was trained on.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.adagrpo import SELECTION_STRATEGIES, CapabilityTracker, nearest, select_prompt
from harness.rules.histories import chances_between, chances_to_stay, variances
from harness.rules.ledger import Ledger, draw_shares

SPREAD_QUANTILE = 0.2
"""``predicted_hardest`` passes over candidates whose predicted spread is below this quantile of the ledger's."""


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
    prompts: Tensor | None = None
    """``[B]``, numbers that the ledger tells prompts by, for rules on a prompt's own history."""
    level: float = 0.0
    """q, r, k or share of the rules that have one."""
    explore: float = 0.0
    """Share of choices that a rule which reads the ledger leaves to chance: it learns only of prompts it chose."""
    strategy: str = "random"
    """The bandit's, see ``draw_strategy``."""
    is_repeated: bool = False
    """Whether the first one was put there to be trained on again."""
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


def beta(candidates: Candidates) -> int:
    """argmin |p_i - 1/2|, p_i drawn from Beta(1 + above_i, 1 + below_i) of the prompt's own history.

    MoPPS' posterior (arXiv 2507.04632), but above and below count rewards of a prompt's groups above mu_m and not,
    where MoPPS counts right and wrong answers; they are forgotten by age in iterations, not by visits; siblings, which
    share a path, count in full; and ``choice.explore`` of the choices are left to chance. A prompt never trained on
    has a uniform p: among such alone the rule is ``random``.
    """
    ledger, prompts = _history(candidates)
    if _is_left_to_chance(candidates):
        return at_random(candidates)
    return nearest(draw_shares(ledger.shares_of(prompts), candidates.generator), 0.5)


def skipping(candidates: Candidates) -> int:
    """The first candidate that is not skipped, with the chances of ``chances_to_stay``; any, if all are.

    GRESO's rule (arXiv 2506.02177) for continuous rewards, for one prompt a slot in place of a batch that is filled,
    without the filter after sampling (``choice.floor`` is one).
    """
    ledger, prompts = _history(candidates)
    generator = candidates.generator
    dice = torch.rand(len(prompts), generator=generator, device=generator.device).cpu()
    if not len(ledger.outcomes):
        return at_random(candidates)
    stays = (dice < chances_to_stay(ledger, prompts)).nonzero()
    return int(stays[0]) if len(stays) else at_random(candidates)


def belief(candidates: Candidates) -> int:
    """argmax of ``chances_between``: DPS' rule (arXiv 2603.10887) for continuous rewards.

    ``choice.explore`` of the choices are left to chance, which DPS does not do. Prompts that were never trained on are
    equal: among such the first, which is any.
    """
    ledger, prompts = _history(candidates)
    if not len(ledger.outcomes) or _is_left_to_chance(candidates):
        return at_random(candidates)
    chances = chances_between(ledger, prompts)
    return nearest(chances, chances.max())


def variance(candidates: Candidates) -> int:
    """Any candidate, with a chance in proportion to (v_i + mean(v) / 10)^(1/2), v of ``variances``.

    What is known of CGPO (arXiv 2605.17807): prompts of larger group variance are drawn more often. Its formula was not
    to be had, nor are prompts balanced by categories. ``choice.explore`` of the choices are left to chance.
    """
    ledger, prompts = _history(candidates)
    if not len(ledger.outcomes) or _is_left_to_chance(candidates):
        return at_random(candidates)
    v, generator = variances(ledger, prompts), candidates.generator
    shares = (v + v.mean() / 10 + 1e-12).sqrt().cumsum(0)
    dice = torch.rand(1, generator=generator, device=generator.device, dtype=torch.float64).cpu()
    return int((shares < dice * shares[-1]).sum())


def replay(candidates: Candidates) -> int:
    """A prompt of before, if one was put there (``choice.level`` of the slots, once one has rested), else any.

    It is the one with the largest s when last trained on, of those not trained on for ``harness.rules.ledger.COOLDOWN``
    iterations; the k-th slot takes the k-th. Prompt Replay's idea (arXiv 2603.21177), with spread for its pass rate
    near one half, and without its cap on reuses. Its path and its groups are sampled anew.
    """
    return 0 if candidates.is_repeated else at_random(candidates)


def bandit(candidates: Candidates) -> int:
    """What one of the paper's five strategies takes: the one that ``draw_strategy`` drew."""
    return _papers(candidates.strategy)(candidates)


def draw_strategy(ledger: Ledger, explore: float, generator: torch.Generator) -> int:
    """Index of one of ``SELECTION_STRATEGIES``, by discounted Thompson sampling (Raj and Kalyani, arXiv 1707.09727).

    argmax of draws from Beta(1 + S_k, 1 + F_k), S_k and F_k the sums of x and 1 - x over the strategy's outcomes, each
    times ``forgetting`` to the power of its age. x is the rank of the group's spread among all in the ledger, in
    [0, 1], so that it needs no unit. In ``explore`` of the draws any strategy. Spread is what a group has to teach, not
    what it taught: a strategy may win here and still train worse.
    """
    count = len(SELECTION_STRATEGIES)
    if torch.rand(1, generator=generator, device=generator.device) < explore:
        return int(torch.randint(count, (1,), generator=generator, device=generator.device))
    return int(draw_shares(ledger.merits_of(count), generator).argmax())


def _history(candidates: Candidates) -> tuple[Ledger, Tensor]:
    """The ledger, and the candidates' numbers in it."""
    if candidates.ledger is None or candidates.prompts is None:
        raise ValueError("this rule needs a ledger and the candidates' numbers")
    return candidates.ledger, candidates.prompts


def _is_left_to_chance(candidates: Candidates) -> bool:
    generator = candidates.generator
    return bool(torch.rand(1, generator=generator, device=generator.device) < candidates.explore)


def _by_ledger(candidates: Candidates, value: Callable[[Ledger, Tensor], tuple[Tensor, float]]) -> int:
    """The candidate whose value is nearest to the wanted one; any, as long as the ledger knows too little."""
    ledger, embeddings = candidates.ledger, candidates.embeddings
    if ledger is None or embeddings is None:
        raise ValueError("this rule needs a ledger and the candidates' embeddings")
    if not ledger.can_predict or _is_left_to_chance(candidates):
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
        beta,
        skipping,
        belief,
        variance,
        replay,
        bandit,
    )
}
"""Values of ``selection``."""
