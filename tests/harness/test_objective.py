"""The surrogate loss on hand-made numbers, and the batch-wide normalisation."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from harness.config import ConfigError, compose
from harness.objective import batch_normalised_advantage, centred_log_ratio, stays_close, surrogate_loss
from tests.harness.conftest import build_trainer


def log_of(*ratios: float) -> Tensor:
    return torch.tensor(ratios).log().requires_grad_()


def test_clipped_loss_of_four_hand_made_samples() -> None:
    # ratio, advantage -> min(A r, A clip(r, 0.8, 1.2)):
    # 1.5, +1 -> 1.2 clipped;  1.5, -1 -> -1.5;  0.5, +1 -> 0.5;  0.5, -2 -> -1.6 clipped
    log_prob = log_of(1.5, 1.5, 0.5, 0.5)
    advantages = torch.tensor([1.0, -1.0, 1.0, -2.0])
    loss, stats = surrogate_loss(log_prob, torch.zeros(4), advantages, clip_range=0.2)
    assert loss.item() == pytest.approx(-(1.2 - 1.5 + 0.5 - 1.6) / 4)
    loss.backward()
    # Only where the minimum is not the clipped constant: d(-A r / 4) / dlogp = -A r / 4.
    assert_close(log_prob.grad, torch.tensor([0.0, 1.5 / 4, -0.5 / 4, 0.0]))
    assert stats.clip_fraction == 1.0
    assert stats.ratio_mean == pytest.approx(1.0)
    assert stats.ratio_max_deviation == pytest.approx(0.5)
    assert stats.approx_kl == pytest.approx(0.25 * (math.log(1.5) ** 2 + math.log(0.5) ** 2))


def test_unclipped_loss_of_the_same_samples() -> None:
    loss, stats = surrogate_loss(log_of(1.5, 1.5, 0.5, 0.5), torch.zeros(4), torch.tensor([1.0, -1.0, 1.0, -2.0]))
    assert loss.item() == pytest.approx(-(1.5 - 1.5 + 0.5 - 1.0) / 4)
    assert stats.clip_fraction == 0.0


def test_a_second_update_on_the_same_samples_leaves_the_range() -> None:
    # A Gaussian policy with mean theta and std 1; step by step away from the policy that drew the samples.
    draws, advantages = torch.tensor([-1.0, 0.5, 2.0]), torch.tensor([-1.0, 0.0, 1.0])
    theta = torch.zeros((), requires_grad=True)

    def log_prob() -> Tensor:
        return -0.5 * (draws - theta).square()

    old_log_prob = log_prob().detach()
    _, first = surrogate_loss(log_prob(), old_log_prob, advantages, clip_range=0.1)
    assert (first.ratio_mean, first.ratio_max_deviation, first.clip_fraction) == (1.0, 0.0, 0.0)
    with torch.no_grad():
        theta += 0.5
    # log ratios at theta 0.5: draw * theta - theta^2 / 2 = -0.625, 0.125, 0.875 -> ratios .535, 1.133, 2.399
    loss, second = surrogate_loss(log_prob(), old_log_prob, advantages, clip_range=0.1)
    assert second.clip_fraction == 1.0
    assert second.ratio_max_deviation == pytest.approx(math.exp(0.875) - 1)
    # A = -1, r = .535 -> min(-.535, -.9); A = 1, r = 2.399 -> min(2.399, 1.1)
    assert loss.item() == pytest.approx(-(-0.9 + 0.0 + 1.1) / 3)


@pytest.mark.parametrize("clip_range", [None, 1e-4])
@pytest.mark.parametrize("detached", [True, False])
def test_the_on_policy_gradient_is_the_policy_gradient(clip_range: float | None, detached: bool) -> None:
    weights = torch.randn(6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    features = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    advantages = torch.tensor([2.0, -1.0, 0.5, -0.25, 0.0])
    log_prob = -(features @ weights).square()
    old_log_prob = log_prob.detach() if detached else log_prob
    loss, stats = surrogate_loss(log_prob, old_log_prob, advantages, clip_range)
    assert (stats.ratio_mean, stats.ratio_max_deviation, stats.clip_fraction, stats.approx_kl) == (1.0, 0.0, 0.0, 0.0)
    (gradient,) = torch.autograd.grad(loss, weights, retain_graph=True)
    (expected,) = torch.autograd.grad(-(advantages * log_prob).mean(), weights)
    assert_close(gradient, expected)
    assert gradient.abs().sum() > 0


def test_half_precision_log_probabilities_keep_a_small_ratio() -> None:
    # Both numbers are bfloat16; their ratio, 1.0078, is not told from 1 by much if taken in bfloat16.
    log_prob = torch.tensor([-0.9921875], dtype=torch.bfloat16)
    old_log_prob = torch.tensor([-1.0], dtype=torch.bfloat16)
    _, stats = surrogate_loss(log_prob, old_log_prob, torch.ones(1))
    assert stats.ratio_mean == pytest.approx(math.exp(0.0078125), rel=1e-6)


def test_advantages_and_the_old_policy_get_no_gradient() -> None:
    old_log_prob, advantages = torch.zeros(2, requires_grad=True), torch.ones(2, requires_grad=True)
    surrogate_loss(log_of(1.1, 0.9), old_log_prob, advantages, 0.2)[0].backward()
    assert old_log_prob.grad is None
    assert advantages.grad is None


@pytest.mark.parametrize("shapes", [((3,), (3,), (2,)), ((3, 1), (3, 1), (3, 1)), ((3,), (1,), (3,)), ((0,),) * 3])
def test_shapes_that_would_broadcast_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    log_prob, old_log_prob, advantages = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=r"must be \[N\]"):
        surrogate_loss(log_prob, old_log_prob, advantages)


@pytest.mark.parametrize("clip_range", [0.0, -0.1, 1.5, math.nan])
def test_impossible_clip_ranges_are_refused(clip_range: float) -> None:
    with pytest.raises(ValueError, match="clip range"):
        surrogate_loss(torch.zeros(2), torch.zeros(2), torch.ones(2), clip_range)


def test_batch_normalisation_centres_each_prompt_and_divides_by_one_std() -> None:
    # All six: mean 4, squares of deviations 9 + 4 + 1 + 1 + 4 + 9 = 28, population variance 28 / 6.
    advantage = batch_normalised_advantage(torch.tensor([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]]))
    expected = 1 / (math.sqrt(28 / 6) + 1e-4)
    assert_close(advantage, torch.tensor([[-expected, 0.0, expected]] * 2))
    assert_close(advantage.sum(1), torch.zeros(2))


def test_batch_normalisation_clips_and_is_zero_for_equal_rewards() -> None:
    # One of 100 stands out: 0.99 / sqrt(0.01 * 0.99) = 9.95 before the clip.
    rewards = torch.zeros(1, 100)
    rewards[0, 7] = 1.0
    assert batch_normalised_advantage(rewards)[0, 7] == 5.0
    assert batch_normalised_advantage(rewards, clip=math.inf)[0, 7].item() == pytest.approx(9.94, abs=0.01)
    assert (batch_normalised_advantage(torch.full((2, 3), 0.5)) == 0).all()


@pytest.mark.parametrize(
    "rewards", [torch.zeros(3), torch.zeros(2, 1), torch.zeros(0, 4), torch.tensor([[0, math.nan]])]
)
def test_batch_normalisation_refuses_wrong_rewards(rewards: Tensor) -> None:
    with pytest.raises(ValueError, match="rewards must be"):
        batch_normalised_advantage(rewards)


def test_a_group_of_equal_scores_has_no_batch_normalised_advantage() -> None:
    rewards = torch.tensor([[0.5, 0.5 + 3e-7], [0.1, 0.9]], dtype=torch.float64)
    advantages = batch_normalised_advantage(rewards, resolution=2e-6)
    assert not advantages[0].any()
    assert advantages[1].tolist() == batch_normalised_advantage(rewards)[1].tolist()


# --- objectives that need the old policy's mean


def drawn() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means, old means, std and what was drawn, of three samples of four numbers: by hand."""
    old = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 0.0, 2.0]])
    moved = old + torch.tensor([[0.2, 0.0, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1], [0.0, 0.0, 0.0, -0.4]])
    noise = torch.tensor([[1.0, -1.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.5, 0.0, 0.0, 1.0]])
    return moved, old, torch.tensor(0.5), old + 0.5 * noise


def test_grpo_guards_ratio_is_the_public_formula_and_centred() -> None:
    mean, old, std, x_next = drawn()
    found = centred_log_ratio(mean, old, std, x_next)
    # mean(noise * (mu - mu_old)): .2 / 4, .4 / 4, -.4 / 4
    assert_close(found, torch.tensor([0.05, 0.1, -0.1]))
    log_prob, before = (-(x_next - m).square().mean(1) / (2 * std**2) for m in (mean, old))
    assert_close(found, std * (log_prob - before) + (mean - old).square().mean(1) / (2 * std))
    generator = torch.Generator().manual_seed(0)
    many = old[:1] + std * torch.randn(200_000, 4, generator=generator)
    shift = torch.full_like(many, 0.3)
    centred = centred_log_ratio(old[:1] + shift, old[:1].expand_as(many), std, many)
    plain = ((many - old[:1]).square() - (many - old[:1] - shift).square()).mean(1) / (2 * std**2)
    assert abs(centred.mean()) < 2e-3
    assert plain.mean() == pytest.approx(-(0.3**2) / (2 * 0.5**2), abs=1e-2)


def test_flow_dppo_leaves_out_what_is_far_and_goes_further() -> None:
    mean, old, std, _ = drawn()
    # divergences: .01 / .5, .01 / .5, .04 / .5
    log_ratio = torch.tensor([0.3, -0.3, -0.3])
    advantages = torch.tensor([1.0, 1.0, -1.0])

    def kept(limit: float) -> list[bool]:
        return stays_close(log_ratio, advantages, mean, old, std, limit).tolist()

    assert kept(0.1) == [True, True, True]
    assert kept(0.05) == [True, True, False]
    assert kept(0.01) == [False, True, False]  # the second is far, and on its way back


@pytest.mark.parametrize(("kind", "clip"), [("grpo_guard", "1e-4"), ("flow_dppo", "null")])
def test_other_objectives_are_the_plain_one_at_first_and_limit_what_follows(kind: str, clip: str) -> None:
    settings = ["objective.updates_per_iteration=2", "objective.old_log_prob=recomputed"]
    settings += ["objective.divergence_limit=1e-12"] if kind == "flow_dppo" else []
    wanted = [*settings, f"objective.kind={kind}", f"objective.clip_range={clip}"]
    trainer = build_trainer(*wanted)
    record = trainer.iterate()
    assert record["rollout_ratio_max_deviation"] < 1e-3
    assert 0 < record["ratio_max_deviation"] < 0.1  # of the second update
    assert 0 < record["clip_fraction"] < 1
    with pytest.raises(ConfigError, match="old_log_prob=recomputed"):
        compose("miniature-luck", overrides=[f"objective.kind={kind}"])
