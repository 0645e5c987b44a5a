"""Rules on prompts that come back: replay, a posterior of a prompt's own history, a bandit."""

import pytest
import torch
from torch.testing import assert_close

from harness.adagrpo import SELECTION_STRATEGIES, select_prompt
from harness.rules.ledger import Ledger, draw_shares, prompt_number
from harness.rules.selection import RULES, Candidates, draw_strategy
from tests.harness.test_selection import ONE, candidates, linear_ledger, remember, tracker


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
    chosen = [
        RULES["beta"](Candidates(torch.zeros(3, 1), tracker(0.5), generator, prompts=torch.arange(3), ledger=ledger))
        for generator in (torch.Generator().manual_seed(seed) for seed in range(600))
    ]
    assert all(150 < chosen.count(index) < 250 for index in range(3))


def test_replay_takes_the_widest_of_the_prompts_that_have_rested() -> None:
    ledger = Ledger()
    remember(ledger, 1, [0.5, 0.5], [0.9, 0.3], [1, 2])
    remember(ledger, 2, [0.5, 0.5], [0.1, 0.5], [1, 3])
    remember(ledger, 5, [0.5], [1.0], [4])
    assert [ledger.worth_repeating(7, place) for place in range(2)] == [2, None]
    assert [ledger.worth_repeating(8, place) for place in range(4)] == [3, 2, 1, None]
    assert ledger.worth_repeating(11, 0) == 4


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
