"""AdaGRPO's two parts: the release's numbers, the paper's example, and what the formulas imply."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from harness.adagrpo import (
    SELECTION_STRATEGIES,
    CapabilityTracker,
    counts_as_equal,
    fuse_advantages,
    global_advantage,
    local_advantage,
    select_prompt,
)

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())
WEAK_GROUP = (13.53, [12.6452, 13.3292, 11.9472, 13.4154, 13.8508])
STRONG_GROUP = (14.27, [16.0734, 14.8584, 13.3442, 14.7137, 15.9946])

# Whole hundredths: rewards of a group differ by 0 or by much more than a rounding error.
reward_values = st.integers(-1000, 1000).map(lambda hundredths: hundredths / 100)
groups = st.lists(reward_values, min_size=2, max_size=24).map(lambda values: torch.tensor(values, dtype=torch.float64))


# --- The release's numbers


@pytest.mark.golden
@pytest.mark.parametrize("case", VECTORS["advantage"])
def test_advantages_equal_the_release(case: dict[str, Any]) -> None:
    rewards = torch.tensor(case["rewards"])
    local = local_advantage(rewards, case["clip_max"])
    global_ = global_advantage(rewards, case["capability_mean"], case["capability_std"], case["clip_max"])
    assert_close(local, torch.tensor(case["local"]), rtol=1e-5, atol=0)
    assert_close(global_, torch.tensor(case["global_"]), rtol=1e-5, atol=0)
    assert_close(fuse_advantages(local, global_), torch.tensor(case["fused_weight_1"]), rtol=1e-5, atol=0)


@pytest.mark.golden
@pytest.mark.parametrize("case", VECTORS["capability"])
def test_capability_and_selection_equal_the_release(case: dict[str, Any]) -> None:
    tracker = CapabilityTracker(case["decay"])
    for step in case["steps"]:
        rewards = torch.tensor(step["rewards"])
        tracker.update(rewards)
        assert tracker.mean == pytest.approx(step["mean"], rel=1e-5)
        assert tracker.std == pytest.approx(step["std"], rel=1e-5)
        assert select_prompt(rewards, "curriculum", tracker) == step["curriculum_index"]
        assert select_prompt(rewards, "easiest") == step["easiest_index"]
        assert select_prompt(rewards, "hardest") == step["hardest_index"]


# --- The paper's example groups


@pytest.mark.parametrize(
    ("group", "index", "weight"),
    [(WEAK_GROUP, 1, 5.4), (WEAK_GROUP, 3, 12.3), (STRONG_GROUP, 1, 0.96), (STRONG_GROUP, 3, 2.6)],
)
@pytest.mark.parametrize("capability_std", [0.1, 1.0, 7.0])
def test_the_weight_that_turns_each_wrong_sign_whatever_the_capability_std(
    group: tuple[float, list[float]], index: int, weight: float, capability_std: float
) -> None:
    capability_mean, values = group
    rewards = torch.tensor(values)
    local = local_advantage(rewards)
    global_ = global_advantage(rewards, capability_mean, capability_std)
    assert -(local / global_)[index].item() == pytest.approx(weight, rel=0.02)
    below, above = (fuse_advantages(local, global_, w)[index].sign() for w in (0.97 * weight, 1.03 * weight))
    assert below == local[index].sign()
    assert above == (rewards[index] - capability_mean).sign()


# --- What the formulas imply


@given(groups, reward_values, st.floats(0.05, 20))
def test_two_sided_global_advantages_sum_to_plus_one_and_minus_one(
    rewards: torch.Tensor, mean: float, std: float
) -> None:
    if not (rewards.min() < mean < rewards.max()):
        return
    advantage = global_advantage(rewards, mean, std)
    assert advantage[advantage > 0].sum().item() == pytest.approx(1)
    assert advantage[advantage < 0].sum().item() == pytest.approx(-1)
    assert (advantage.sign() == (rewards - mean).sign()).all()


def test_global_advantage_of_a_hand_made_group() -> None:
    # z = -2, 0, 1, 3: the zero stays, positives share 4, the negative stands alone.
    advantage = global_advantage(torch.tensor([6.0, 10.0, 12.0, 16.0]), mean=10.0, std=2.0)
    assert_close(advantage, torch.tensor([-1.0, 0.0, 0.25, 0.75]))
    # One-sided, std 0.5: z = 4, 8, 12 -> -4, 0, 4, of which a clip of 3 leaves 3.
    assert_close(
        global_advantage(torch.tensor([2.0, 4.0, 6.0]), mean=0.0, std=0.5, clip=3.0), torch.tensor([-3.0, 0.0, 3.0])
    )


def test_local_advantage_divides_by_the_unbiased_std_and_clips() -> None:
    assert_close(local_advantage(torch.tensor([1.0, 2.0, 3.0])), torch.tensor([-1.0, 0.0, 1.0]))
    assert_close(local_advantage(torch.tensor([1.0, 2.0, 3.0]), clip=0.25), torch.tensor([-0.25, 0.0, 0.25]))


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_advantages_are_at_least_float32_and_carry_no_gradient(dtype: torch.dtype, expected: torch.dtype) -> None:
    rewards = torch.tensor([1.0, 2.0, 4.0], dtype=dtype, requires_grad=True)
    for advantage in (local_advantage(rewards), global_advantage(rewards, 2.5, 1.0)):
        assert advantage.dtype == expected
        assert not advantage.requires_grad


# --- The tracker


def test_the_first_batch_sets_the_capability_with_the_population_variance() -> None:
    tracker = CapabilityTracker(decay=0.8)
    tracker.update(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert tracker.mean == pytest.approx(3.0)
    assert tracker.std == pytest.approx(math.sqrt(3.5))


def test_a_later_batch_moves_mean_and_variance_not_the_std() -> None:
    tracker = CapabilityTracker(decay=0.8)
    tracker.update(torch.tensor([0.0, 2.0]))  # mean 1, variance 1
    tracker.update(torch.tensor([4.0, 10.0]))  # mean 7, variance 9
    assert tracker.mean == pytest.approx(0.8 * 1 + 0.2 * 7)
    assert tracker.std == pytest.approx(math.sqrt(0.8 * 1 + 0.2 * 9))


def test_the_capability_std_has_a_floor() -> None:
    tracker = CapabilityTracker()
    tracker.update(torch.tensor([0.5]))
    assert tracker.std == pytest.approx(1e-4)


def test_a_restored_tracker_continues_bit_for_bit() -> None:
    batches = torch.randn(9, 10, generator=torch.Generator().manual_seed(1))
    straight = CapabilityTracker(0.93)
    for batch in batches:
        straight.update(batch)
    first = CapabilityTracker(0.93)
    for batch in batches[:4]:
        first.update(batch)
    resumed = CapabilityTracker(0.93)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for batch in batches[4:]:
        resumed.update(batch)
    assert resumed.state_dict() == straight.state_dict()
    empty = CapabilityTracker(0.93)
    resumed.load_state_dict(empty.state_dict())
    assert resumed.state_dict() == empty.state_dict()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"mean": 1.0, "variance": 1.0}, "keys decay, mean and variance"),
        ({"decay": 0.5, "mean": 1.0, "variance": 1.0}, r"decay 0\.5"),
        ({"decay": 0.8, "mean": 1.0, "variance": None}, "finite mean"),
        ({"decay": 0.8, "mean": math.nan, "variance": 1.0}, "finite mean"),
        ({"decay": 0.8, "mean": 1.0, "variance": -1.0}, "finite mean"),
    ],
)
def test_an_impossible_state_is_refused(state: dict[str, float | None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CapabilityTracker(0.8).load_state_dict(state)


# --- Selection


def test_curriculum_takes_the_candidate_closest_to_the_capability_not_to_the_batch() -> None:
    tracker = CapabilityTracker(decay=0.5)
    tracker.update(torch.tensor([0.0, 0.0, 0.0]))
    rewards = torch.tensor([9.0, 1.0, 2.5, 11.5])  # mean 6, so the capability moves from 0 to 3
    tracker.update(rewards)
    assert tracker.mean == pytest.approx(3.0)
    assert select_prompt(rewards, "curriculum", tracker) == 2
    # The release updates before it selects; selecting first would have taken another candidate.
    stale = CapabilityTracker(decay=0.5)
    stale.update(torch.tensor([0.0, 0.0, 0.0]))
    assert select_prompt(rewards, "curriculum", stale) == 1


@pytest.mark.parametrize(
    ("rewards", "index"),
    [([3.0, 1.0, 2.0], 2), ([4.0, 1.0, 3.0, 2.0], 3), ([5.0, 1.0, 2.0, 2.0, 7.0], 2), ([1.0, 1.0], 0), ([6.0], 0)],
)
def test_medium_takes_the_median_the_lower_of_two_and_the_first_of_equals(rewards: list[float], index: int) -> None:
    assert select_prompt(torch.tensor(rewards), "medium") == index


def test_ties_go_to_the_lowest_index() -> None:
    rewards = torch.tensor([2.0, 5.0, 1.0, 5.0, 1.0])
    tracker = CapabilityTracker(decay=0.0)
    tracker.update(torch.tensor([3.0]))
    assert select_prompt(rewards, "easiest") == 1
    assert select_prompt(rewards, "hardest") == 2
    assert select_prompt(torch.tensor([4.0, 2.0]), "curriculum", tracker) == 0


def test_random_honours_the_generator_and_reaches_every_candidate() -> None:
    rewards = torch.arange(5.0)

    def draws(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return [select_prompt(rewards, "random", generator=generator) for _ in range(100)]

    assert draws(0) == draws(0)
    assert draws(0) != draws(1)
    assert set(draws(0)) == set(range(5))


# --- Errors


@pytest.mark.parametrize(
    ("call", "said"),
    [
        *((lambda d=d: CapabilityTracker(d), r"decay .* must be in \[0, 1\)") for d in (1.0, -0.1, math.nan)),
        (lambda: select_prompt(torch.ones(2), "hard"), r"'hard'.*random, easiest, hardest, medium, curriculum"),
        (lambda: local_advantage(torch.ones(1)), "at least two"),
        (lambda: global_advantage(torch.ones(1), 0.0, 1.0), "at least two"),
        (lambda: fuse_advantages(torch.zeros(3), torch.zeros(2)), r"\[3\] and \[2\]"),
        *(
            (lambda w=w: fuse_advantages(torch.zeros(2), torch.zeros(2), w), "weight")
            for w in (-1.0, math.inf, math.nan)
        ),
    ],
)
def test_what_has_no_meaning_is_refused(call: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


def test_an_empty_tracker_has_no_capability() -> None:
    tracker = CapabilityTracker()
    with pytest.raises(ValueError, match=r"empty.*mean"):
        _ = tracker.mean
    with pytest.raises(ValueError, match=r"empty.*std"):
        _ = tracker.std
    with pytest.raises(ValueError, match="empty"):
        select_prompt(torch.tensor([1.0, 2.0]), "curriculum", tracker)
    with pytest.raises(ValueError, match="needs a tracker"):
        select_prompt(torch.tensor([1.0, 2.0]), "curriculum")


@pytest.mark.parametrize("rewards", [[1.0, math.nan], [math.inf, 1.0], [[1.0, 2.0]], 1.0, []])
def test_rewards_that_are_no_finite_vector_are_refused_everywhere(rewards: Any) -> None:
    values = torch.tensor(rewards)
    tracker = CapabilityTracker()
    with pytest.raises(ValueError, match="reward"):
        tracker.update(values)
    assert tracker.state_dict()["mean"] is None
    for strategy in SELECTION_STRATEGIES:
        with pytest.raises(ValueError, match="reward"):
            select_prompt(values, strategy, tracker)
    with pytest.raises(ValueError, match="reward"):
        local_advantage(values)
    with pytest.raises(ValueError, match="reward"):
        global_advantage(values, 0.0, 1.0)


def test_scores_closer_than_the_resolution_are_equal() -> None:
    scored_in_batches_of_five = torch.tensor([0.5] * 5 + [0.5 + 3e-7] * 3, dtype=torch.float64)
    assert local_advantage(scored_in_batches_of_five).abs().max() > 0.6
    assert not local_advantage(scored_in_batches_of_five, resolution=2e-6).any()
    # The capability lies between the two: without a resolution their signs would share out a whole advantage.
    between = 0.5 + 1e-7
    assert not global_advantage(scored_in_batches_of_five, between, 0.1, resolution=2e-6).any()
    assert local_advantage(scored_in_batches_of_five * 1e3, resolution=2e-6).any()
    assert counts_as_equal(torch.ones(3))
    with pytest.raises(ValueError, match="resolution"):
        local_advantage(scored_in_batches_of_five, resolution=-1.0)


def test_equal_samples_at_the_capability_share_no_advantage_out() -> None:
    rewards = torch.tensor([0.5 + 3e-6, 0.5 + 1e-6, 0.5, 0.2], dtype=torch.float64)
    sharp, blurred = (global_advantage(rewards, 0.5, 0.1, resolution=r) for r in (0.0, 5e-6))
    assert sharp[0] - sharp[2] > 0.7
    assert (blurred[0] - blurred[2]).abs() < 1e-4


@pytest.mark.parametrize(("strategy", "index"), [("easiest", 1), ("hardest", 0), ("medium", 0), ("curriculum", 1)])
def test_candidates_closer_than_the_resolution_are_a_tie(strategy: str, index: int) -> None:
    tracker = CapabilityTracker()
    tracker.update(torch.tensor([0.6]))
    rewards = torch.tensor([0.2, 0.7, 0.7 + 1e-7, 0.2 - 1e-7], dtype=torch.float64)
    assert select_prompt(rewards, strategy, tracker, resolution=1e-6) == index
