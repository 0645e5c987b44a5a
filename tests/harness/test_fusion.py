"""What fusion does to a group, by algebra and in numbers, and the control that only rescales (docs/fusion.md)."""

import math

import pandas as pd
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from harness.adagrpo import fuse_advantages, global_advantage, local_advantage, rescale_advantages
from harness.config import ROOT, compose, run_id
from harness.config.cells import cell_name
from harness.transitions import SDETransition
from tests.harness.conftest import advantages_of

# Whole hundredths, as in the tests of adagrpo.py: rewards differ by 0 or by much more than a rounding error.
reward_values = st.integers(-1000, 1000).map(lambda hundredths: hundredths / 100)
groups = st.lists(reward_values, min_size=2, max_size=16).map(lambda values: torch.tensor(values, dtype=torch.float64))
weights = st.floats(0, 15)
stds = st.floats(0.05, 20)


def unclipped(rewards: Tensor, mean: float, std: float, weight: float) -> Tensor:
    local = local_advantage(rewards, math.inf)
    return fuse_advantages(local, global_advantage(rewards, mean, std, math.inf), weight)


def spread(rewards: Tensor, mean: float) -> tuple[float, float]:
    """T+ and T-: what lies above and below the capability mean."""
    return (rewards - mean).clamp_min(0).sum().item(), (mean - rewards).clamp_min(0).sum().item()


# --- Algebra


@given(groups, reward_values, stds)
def test_a_two_sided_global_advantage_is_a_line_and_a_kink_at_the_capability(
    rewards: Tensor, mean: float, std: float
) -> None:
    above, below = spread(rewards, mean)
    assume(above > 1e-3 and below > 1e-3)
    line = (1 / above + 1 / below) / 2 * (rewards - mean)
    kink = (1 / above - 1 / below) / 2 * (rewards - mean).abs()
    assert_close(global_advantage(rewards, mean, std, math.inf), line + kink, rtol=1e-5, atol=1e-6)
    # Steeper on the side that holds less: the side of the minority.
    assert above - below == pytest.approx(len(rewards) * (rewards.mean().item() - mean), abs=1e-9)


@given(groups, reward_values, stds, weights)
def test_fused_advantages_sum_to_zero_so_fusion_shifts_no_group(
    rewards: Tensor, mean: float, std: float, weight: float
) -> None:
    fused = unclipped(rewards, mean, std, weight)
    assert fused.sum().item() == pytest.approx(0, abs=1e-5 * max(1.0, fused.abs().max().item()))


@given(groups, reward_values, stds, weights)
def test_fused_advantages_rise_with_the_reward(rewards: Tensor, mean: float, std: float, weight: float) -> None:
    ordered = rewards.sort().values
    assert (unclipped(ordered, mean, std, weight).diff() >= -1e-9).all()


@given(groups, stds, weights, st.booleans())
def test_the_control_is_the_fusion_of_a_one_sided_group(
    rewards: Tensor, std: float, weight: float, below: bool
) -> None:
    mean = rewards.min().item() - 1 if below else rewards.max().item() + 1
    control = rescale_advantages(local_advantage(rewards, math.inf), rewards, std, weight)
    assert_close(unclipped(rewards, mean, std, weight), control, rtol=1e-6, atol=1e-6)


@given(groups, reward_values, stds, weights)
def test_fusion_spoils_no_right_sign_and_corrects_none_of_a_one_sided_group(
    rewards: Tensor, mean: float, std: float, weight: float
) -> None:
    right = (rewards - mean).sign()
    local = local_advantage(rewards, math.inf)
    fused = unclipped(rewards, mean, std, weight)
    clear = (local.abs() > 1e-6) & (right != 0)
    was_right = clear & (local.sign() == right)
    assert (fused.sign() == right)[was_right].all()
    if (rewards > mean).all() or (rewards < mean).all():
        assert (fused.sign() == local.sign())[clear].all()


@pytest.mark.golden
def test_the_published_example_groups_have_the_advantages_that_figures_show() -> None:
    table = pd.read_csv(ROOT / "results" / "paper" / "example_groups.csv")
    for _, rows in table.groupby("group"):
        rewards = torch.tensor(rows["reward"].to_numpy())
        local, global_ = local_advantage(rewards), global_advantage(rewards, rows["capability_mean"].iloc[0], 1.0)
        assert rows["local"].tolist() == pytest.approx(local.tolist(), abs=1e-6)
        assert rows["global"].tolist() == pytest.approx(global_.tolist(), abs=1e-6)


# --- What a shift does to the gradient


def gradient_of_each_group(baseline: float, num_groups: int, group_size: int) -> Tensor:
    """Policy gradients by theta, ``[groups]``, of x' ~ N(theta, 2^2) with reward x' and advantage reward - baseline."""
    theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    std = torch.tensor(2.0, dtype=torch.float64)
    noise = torch.randn(num_groups * group_size, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    samples = (theta + std * noise).detach()
    transition = SDETransition(mean=theta.expand_as(samples), std=std, diffusion=std)
    # d log p / d theta of each sample, as the gradient by its own copy of the mean.
    (score,) = torch.autograd.grad(transition.log_prob(samples).sum(), transition.mean)
    return ((samples - baseline) * score).reshape(num_groups, group_size).mean(1)


@pytest.mark.parametrize("shift", [0.0, 3.0, 10.0])
def test_a_shift_of_all_advantages_leaves_the_expected_gradient_and_adds_variance(shift: float) -> None:
    num_groups, group_size = 40_000, 8
    gradients = gradient_of_each_group(baseline=1.0 - shift, num_groups=num_groups, group_size=group_size)
    # E[R] = theta, so its gradient is 1. With z = noise: (R - b) score = (theta - b) z / std + z^2.
    variance = ((shift / 2) ** 2 + 2) / group_size
    assert gradients.mean().item() == pytest.approx(1.0, abs=4 * math.sqrt(variance / num_groups))
    assert gradients.var().item() == pytest.approx(variance, rel=0.05)


# --- In a run

RESCALED = ["fusion.enabled=true", "fusion.kind=rescaled", "fusion.weight=3"]


def test_a_run_uses_the_rule_and_its_control_as_the_configuration_says() -> None:
    rewards = torch.tensor([[0.1, 0.3, 0.2, 0.9], [0.6, 0.7, 0.8, 0.9]], dtype=torch.float64)

    def made(kind: str, weight: int, *overrides: str) -> Tensor:
        settings = ["fusion.enabled=true", f"fusion.kind={kind}", f"fusion.weight={weight}", *overrides]
        return advantages_of(rewards, [0.3, 0.5], *settings)  # capability .4, std .1

    local = torch.stack([local_advantage(group) for group in rewards])
    factors = 1 + 3 * rewards.std(dim=1, keepdim=True) / 0.1
    rescaled, fused = made("rescaled", 3), made("fused", 3)
    assert_close(rescaled, local * factors, rtol=1e-6, atol=0)
    # The first group has rewards on both sides of the capability; the second has not.
    assert not torch.allclose(fused[0], rescaled[0])
    clipped = local[1] + 3 * (local[1] * (factors[1] - 1) / 3).clamp(-5, 5)
    assert_close(fused[1], clipped, rtol=1e-6, atol=0)

    uncentred, control = made("uncentred", 1), made("uncentred", 1, "fusion.same_length=true")
    assert_close(uncentred, ((rewards - 0.4) / 0.1).clamp(-5, 5), rtol=1e-4, atol=1e-4)
    assert_close(control.norm(dim=1), uncentred.norm(dim=1))
    assert control[1].min() < 0 < uncentred[1].min()


def test_the_control_is_another_run_and_the_default_the_same_as_before() -> None:
    fused = compose("miniature-luck", overrides=["fusion.enabled=true", "fusion.weight=3"])
    explicit = compose("miniature-luck", overrides=["fusion.enabled=true", "fusion.weight=3", "fusion.kind=fused"])
    rescaled = compose("miniature-luck", overrides=RESCALED)
    assert run_id(explicit, {}) == run_id(fused, {})
    assert run_id(rescaled, {}).startswith("flow_grpo-random-rescaled3-seed0-")
    assert cell_name(rescaled) == "flow_grpo random + rescaled 3"
    assert rescaled.scores_candidates
