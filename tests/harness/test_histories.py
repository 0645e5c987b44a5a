"""Rules on prompts that come back: replay, a posterior of a prompt's own history, a bandit."""

import pytest
import torch
from torch.testing import assert_close

from harness.adagrpo import SELECTION_STRATEGIES, select_prompt
from harness.rules.histories import (
    BETWEEN,
    TOO_EASY,
    TOO_HARD,
    chances_between,
    chances_to_stay,
    rates,
    variances,
    visit_states,
)
from harness.rules.ledger import Ledger, draw_shares, prompt_number
from harness.rules.selection import RULES, Candidates, draw_strategy
from tests.harness.test_selection import ONE, candidates, linear_ledger, remember, tracker


def chosen(rule: str, ledger: Ledger, prompts: list[int], seed: int = 0) -> int:
    generator = torch.Generator().manual_seed(seed)
    rewards, numbers = torch.zeros(len(prompts), 1), torch.tensor(prompts)
    return RULES[rule](Candidates(rewards, tracker(0.5), generator, prompts=numbers, ledger=ledger))


def test_a_prompt_s_number_is_a_double_s_and_its_hash_s() -> None:
    assert prompt_number("abc") == 0xBA7816BF8F01C  # sha256, FIPS 180-2
    assert int(torch.tensor(prompt_number("abc"), dtype=torch.float64)) == prompt_number("abc")


def test_rewards_count_as_above_or_below_what_was_trained_before() -> None:
    ledger = Ledger()
    first = ledger.outcome_of(torch.tensor([[0.0, 0.2], [0.4, 1.0]]))
    assert first == pytest.approx([0.4, (0.02**0.5 + 0.18**0.5) / 2, 0, 0, -1])
    remember(ledger, 1, [0.2, 0.6], [0.1, 0.1], [1, 2])  # mu_m is .4
    assert ledger.outcome_of(torch.tensor([[0.0, 0.3], [0.5, 0.2]]), 3)[2:] == [1, 3, 3]


def test_a_prompt_is_judged_by_its_own_history_and_the_latest_counts_most() -> None:
    ledger = Ledger(forgetting=0.5)
    remember(ledger, 1, [0.5], [0.1], [7], above=[4], below=[0])
    remember(ledger, 2, [0.5], [0.1], [8], above=[1], below=[3])
    remember(ledger, 3, [0.5], [0.1], [7], above=[0], below=[4])
    expected = torch.tensor([[1, 4], [0.5, 1.5], [0, 0]], dtype=torch.float64)
    assert_close(ledger.shares_of(torch.tensor([7, 8, 9])), expected)


def test_posteriors_are_betas() -> None:
    drawn = draw_shares(torch.tensor([[3.0, 1.0]]).expand(20_000, 2), torch.Generator().manual_seed(0))
    assert drawn.mean().item() == pytest.approx(4 / 6, abs=0.005)
    assert drawn.var().item() == pytest.approx(4 * 2 / (6**2 * 7), rel=0.05)


def test_among_prompts_never_seen_beta_takes_each_as_often() -> None:
    ledger = linear_ledger()
    drawn = [chosen("beta", ledger, [0, 1, 2], seed) for seed in range(600)]
    assert all(150 < drawn.count(index) < 250 for index in range(3))


def test_replay_takes_the_widest_of_the_prompts_that_have_rested() -> None:
    ledger = Ledger()
    remember(ledger, 1, [0.5, 0.5], [0.9, 0.3], [1, 2])
    remember(ledger, 2, [0.5, 0.5], [0.1, 0.5], [1, 3])
    remember(ledger, 5, [0.5], [1.0], [4])
    assert [ledger.worth_repeating(7, place) for place in range(2)] == [2, None]
    assert [ledger.worth_repeating(8, place) for place in range(4)] == [3, 2, 1, None]
    assert ledger.worth_repeating(11, 0) == 4


def visited(*visits: tuple[int, int, float, float]) -> Ledger:
    """Iteration, prompt, m and s of each visit; mu_m is the m of the last."""
    ledger = Ledger(decay=0.0)
    for iteration, prompt, m, s in visits:
        remember(ledger, iteration, [m], [s], [prompt])
    return ledger


def test_a_visit_is_flat_by_its_spread_and_hard_or_easy_by_its_level() -> None:
    ledger = visited((1, 1, 0.1, 0.0), (1, 2, 0.9, 0.0), (2, 3, 0.5, 0.3), (2, 4, 0.1, 0.4), (3, 5, 0.5, 0.5))
    assert visit_states(ledger).tolist() == [TOO_HARD, TOO_EASY, BETWEEN, BETWEEN, BETWEEN]


def test_what_was_flat_in_a_row_is_skipped_ever_more_often() -> None:
    ledger = visited(
        (1, 1, 0.1, 0.0),
        (2, 1, 0.1, 0.0),
        (3, 2, 0.9, 0.0),
        (4, 3, 0.1, 0.0),
        (5, 3, 0.2, 0.4),
        *[(6, 9, 0.5, 0.5)] * 12,
    )
    # Of 17 spreads 4 are 0: the .2 quantile is 0. From iteration 2 on prompts have come back. All visits are too hard
    # at 2 and 4, none at 3, 5 and 6; 6 counts once.
    hard = 0.5 - 0.01 + 0.01 - 0.01 + 0.01 + 0.01
    easy = 0.5 + 0.01 - 0.01 + 0.01 + 0.01 + 0.01
    assert rates(ledger) == pytest.approx({TOO_HARD: hard, TOO_EASY: easy})
    stay = chances_to_stay(ledger, torch.tensor([1, 2, 3, 9, 77]))
    assert stay.tolist() == pytest.approx([hard**2, easy, 1, 1, 1])
    for _ in range(20):
        ledger.record(7, torch.zeros(1, 3), torch.tensor([[0.1, 0.0, 0, 0, -1]]).double(), torch.tensor([1]))
    assert chances_to_stay(ledger, torch.tensor([1])).item() == 0.01


def test_skipping_takes_the_first_that_stays() -> None:
    many = [(1, prompt, 0.1, 0.0) for prompt in (1, 2) for _ in range(8)]
    ledger = visited(*many, *[(2, 9, 0.5, 0.5)] * 64)
    assert visit_states(ledger)[:16].tolist() == [TOO_HARD] * 16
    draws = {
        prompts: [chosen("skipping", ledger, [*prompts], seed) for seed in range(50)]
        for prompts in ((1, 77, 2), (9, 1, 77), (1, 2, 1))
    }
    assert draws[1, 77, 2].count(1) >= 48
    assert draws[9, 1, 77] == [0] * 50
    assert set(draws[1, 2, 1]) == {0, 1, 2}


def test_a_belief_follows_what_was_observed_and_fades() -> None:
    ledger = visited((1, 1, 0.5, 0.5), (2, 2, 0.5, 0.0), (2, 3, 0.5, 0.6))
    # Prompt 1: counts 1 but 4/3 in the row between, so .4 after a step; then 7/6 in that row: 7/19. Prompt 2, too
    # hard: the other rows then have (1 - .4) / 2; prompt 3 .4; others 1/3.
    found = chances_between(ledger, torch.tensor([1, 2, 3, 77]))
    assert found.tolist() == pytest.approx([7 / 19, 0.3, 0.4, 1 / 3])
    assert chosen("belief", ledger, [77, 1, 3, 2]) == 2


def test_prompts_of_larger_variance_are_drawn_more_often() -> None:
    ledger = visited((1, 1, 0.5, 0.4), (2, 1, 0.5, 0.2), (3, 2, 0.5, 0.1))
    v = variances(ledger, torch.tensor([1, 2, 77]))
    assert v.tolist() == pytest.approx([0.8 * 0.16 + 0.2 * 0.04, 0.01, (0.136 + 0.01) / 2])
    shares = (v + v.mean() / 10).sqrt()
    drawn = [chosen("variance", ledger, [1, 2, 77], seed) for seed in range(1500)]
    for index, share in enumerate((shares / shares.sum()).tolist()):
        assert drawn.count(index) / 1500 == pytest.approx(share, abs=0.04)


def test_a_strategy_s_merit_is_the_rank_of_its_spreads() -> None:
    ledger = Ledger(forgetting=0.5)
    remember(ledger, 1, [0.5, 0.5], [0.1, 0.2], [1, 2], strategy=[0, 1])
    remember(ledger, 2, [0.5, 0.5], [0.2, 0.4], [3, 4], strategy=[1, 4])
    # Ranks .125, .5, .5 and .875; those of the first iteration count half.
    expected = [[0.0625, 0.4375], [0.75, 0.75], [0, 0], [0, 0], [0.875, 0.125]]
    assert_close(ledger.merits_of(5), torch.tensor(expected, dtype=torch.float64))


def test_the_bandit_takes_what_has_paid_and_tries_the_others() -> None:
    ledger = Ledger()
    for iteration in range(1, 61):
        remember(ledger, iteration, [0.5, 0.5], [0.3, 0.1], [1, 2], strategy=[2, iteration % 2 * 3])

    def drawn(known: Ledger, explore: float) -> list[int]:
        return [draw_strategy(known, explore, torch.Generator().manual_seed(seed)) for seed in range(100)]

    assert drawn(ledger, 0.0).count(2) > 50  # two others were never tried
    assert set(drawn(ledger, 1.0)) == set(drawn(Ledger(), 0.0)) == set(range(5))
    for strategy in SELECTION_STRATEGIES[1:]:
        same = select_prompt(torch.tensor(ONE)[:, 0], strategy, tracker(0.3, 0.5))
        assert RULES["bandit"](candidates(ONE, strategy=strategy)) == same
