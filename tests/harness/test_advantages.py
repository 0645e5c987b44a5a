"""Corrections of a group's advantages by the capability, beside the paper's: hand-computed, and what they never do."""

import math

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from harness.adagrpo import local_advantage
from harness.config import ROOT
from harness.rules.advantages import FUSIONS, Group, fuse

OURS = sorted(set(FUSIONS) - {"fused", "rescaled"})
values = st.lists(st.integers(-100, 100).map(lambda n: n / 100), min_size=2, max_size=12)


def group(rewards: list[float], mean: float, std: float) -> Group:
    tensor = torch.tensor(rewards, dtype=torch.float64)
    return Group(local_advantage(tensor, math.inf, 0.0), tensor, mean, std, clip=math.inf, resolution=0.0)


# Mean 2, std 1; the capability is 2.5 with std 2.
@pytest.mark.parametrize(
    ("kind", "weight", "expected"),
    [
        ("uncentred", 1.0, [-0.75, -0.25, 0.25]),
        ("uncentred", 0.5, [-0.875, -0.125, 0.625]),
        # L = (1/3) / (1/3 + 3) = .1, so the baseline is 2.05; half of it with w = .5.
        ("shrinkage", 1.0, [-1.05, -0.05, 0.95]),
        ("shrinkage", 0.5, [-1.025, -0.025, 0.975]),
        ("ema_std", 1.0, [-0.5, 0.0, 0.5]),
        ("ema_std", 0.5, [-0.75, 0.0, 0.75]),
        ("gated", 1.0, [-1.0, 0.0, 1.0]),
        ("rescaled", 2.0, [-2.0, 0.0, 2.0]),  # 1 + 2 * 1 / 2
    ],
)
def test_a_hand_made_group(kind: str, weight: float, expected: list[float]) -> None:
    made = fuse(group([1, 2, 3], 2.5, 2.0), kind, weight)
    assert_close(made, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def test_what_the_gate_shuts_out() -> None:
    # All above the capability: those below their own mean are not pushed down.
    assert_close(fuse(group([1, 2, 3], 0.0, 1.0), "gated", 1.0), torch.tensor([0.0, 0, 1]).double(), atol=1e-6, rtol=0)
    assert_close(fuse(group([1, 2, 3], 9.0, 1.0), "gated", 0.5), torch.tensor([-1, 0, 0.5]).double(), atol=1e-6, rtol=0)


@given(values, st.floats(-1, 1), st.floats(0.01, 2), st.sampled_from(OURS))
def test_weight_0_is_the_local_advantage_and_better_samples_never_have_less(
    rewards: list[float], mean: float, std: float, kind: str
) -> None:
    made = group(rewards, mean, std)
    assert_close(fuse(made, kind, 0.0), made.local, atol=1e-5, rtol=1e-5)
    order = made.rewards.argsort()
    assert (fuse(made, kind, 1.0)[order].diff() >= -1e-6).all()


@given(values, st.floats(-1, 1), st.floats(0.01, 2), st.sampled_from(sorted(FUSIONS)), st.floats(0, 1))
def test_the_control_has_the_direction_of_local_and_the_length_of_the_kind(
    rewards: list[float], mean: float, std: float, kind: str, weight: float
) -> None:
    made = group(rewards, mean, std)
    advantages, control = fuse(made, kind, weight), fuse(made, kind, weight, same_length=True)
    if made.local.norm() > 0:
        assert_close(control.norm(), advantages.norm(), atol=1e-6, rtol=1e-6)
        assert_close(control * made.local.norm(), made.local * control.norm(), atol=1e-6, rtol=1e-6)
    else:
        assert not control.any()


def test_a_group_of_equal_rewards_has_a_level_but_nothing_to_compare() -> None:
    equal = group([0.75, 0.75, 0.75], 0.5, 0.25)
    assert_close(fuse(equal, "uncentred", 1.0), torch.ones(3).double(), atol=1e-6, rtol=0)
    for kind in set(FUSIONS) - {"uncentred"}:
        assert not fuse(equal, kind, 1.0).any()


def test_how_many_signs_of_the_papers_example_groups_each_kind_corrects() -> None:
    """The table of docs/fusion.md: of 4 that differ from the sign against the capability."""
    table = pd.read_csv(ROOT / "results" / "paper" / "example_groups.csv")

    def corrected(kind: str, std: float) -> int:
        found = 0
        for _, rows in table.groupby("group"):
            rewards, mean = torch.tensor(rows["reward"].to_numpy()), rows["capability_mean"].iloc[0]
            made = Group(local_advantage(rewards), rewards, mean, std)
            wrong = made.local * (rewards - mean) < 0
            found += int((wrong & (fuse(made, kind, 1.0) * (rewards - mean) > 0)).sum())
        return found

    assert {kind: corrected(kind, 1.0) for kind in ("fused", "uncentred", "gated", "ema_std")} == {
        "fused": 1,
        "uncentred": 4,
        "gated": 0,  # 0 is no sign
        "ema_std": 0,
    }
    assert [corrected("shrinkage", std) for std in (0.5, 1.0, 1.5, 3.0)] == [4, 2, 1, 0]
