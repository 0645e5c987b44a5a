"""Losses on the forward process: values by hand, what they train on, and that both raise what was rewarded."""

import pytest
import torch

from harness.models.pipelines.embedding import PromptEmbedding
from harness.objective import surrogate_loss
from harness.rollout import Rollout, TrainStep
from harness.training.accounting import Counters, expected_cost
from harness.training.forward_process import ForwardProcess, Matching, nft_loss, noised_again
from tests.harness.conftest import build_trainer

TARGET = torch.tensor([[1.0, 1.0]])


def matching(*velocity: float, sigma: float = 0.5) -> Matching:
    return ForwardProcess().step(torch.zeros(1, 2), torch.tensor([velocity], requires_grad=True), sigma, 0.0)


def test_both_losses_by_hand() -> None:
    new, old = matching(0.5, 0.0), matching(0.0, 0.0)
    assert new.log_prob(TARGET).tolist() == [-0.625]  # (.5^2 + 1^2) / 2
    assert new.kl(old).tolist() == [0.125]
    # r = .75; sigma (1.25 / 2) / (1.5 / 2) with v, sigma (3.25 / 2) / (2.5 / 2) with 2 v_old - v = (-.5, 0).
    loss = nft_loss(new, old, TARGET, torch.tensor([2.5]), 5.0)
    assert loss.item() == pytest.approx(5 * 0.5 * (0.75 * 0.625 / 0.75 + 0.25 * 1.625 / 1.25))


@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_a_good_picture_draws_the_velocity_and_a_bad_one_drives_it_off(advantage: float) -> None:
    for kind in ("awm", "nft"):
        new, old, advantages = matching(0.0, 0.0), matching(0.0, 0.0), torch.tensor([advantage])
        if kind == "awm":
            log_prob = new.log_prob(TARGET)
            loss, _ = surrogate_loss(log_prob, log_prob.detach(), advantages)
        else:
            loss = nft_loss(new, old, TARGET, advantages, 5.0)
        (gradient,) = torch.autograd.grad(loss, new.mean)
        assert (gradient * advantage < 0).all()


def test_pictures_are_noised_to_their_steps() -> None:
    sigmas, finals = torch.tensor([1.0, 0.75, 0.5, 0.0]), torch.arange(8.0).view(4, 2)
    steps = [TrainStep(index, torch.zeros(1, 2), torch.zeros(2, 2), torch.zeros(2)) for index in (0, 2)]
    text = PromptEmbedding(torch.zeros(1, 1, 1), torch.zeros(1, 1))
    first, second = noised_again(Rollout(text, steps, finals, 0), sigmas, 2, torch.Generator().manual_seed(1)).steps
    assert torch.equal(first.x - first.x_next, finals[:2])  # at sigma = 1: eps, and eps - x0
    torch.testing.assert_close(second.x, finals[2:] + 0.5 * second.x_next)
    # One group that all steps share, of which a step trains on one sibling.
    steps = [TrainStep(2, torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1), torch.tensor([1]))] * 2
    shared = noised_again(Rollout(text, steps, finals[:2], 0), sigmas, 2, torch.Generator().manual_seed(1)).steps
    for step in shared:
        torch.testing.assert_close(step.x, finals[1:2] + 0.5 * step.x_next)
    assert not torch.equal(shared[0].x, shared[1].x)


@pytest.mark.parametrize(("kind", "clip"), [("awm", "1e-5"), ("nft", "null")])
@pytest.mark.parametrize("kind_of_rollout", ["anchor_branch", "full_sde"])
def test_a_trainer_updates_by_them(kind: str, clip: str, kind_of_rollout: str) -> None:
    settings = [f"objective.kind={kind}", "objective.old_log_prob=recomputed", f"objective.clip_range={clip}"]
    settings += ["objective.updates_per_iteration=2", "rollout.group_size=2", "rollout.branch_indices=[0, 2]"]
    settings += [f"rollout.kind={kind_of_rollout}", "reward={colour: 1}", "model.num_steps=4"]
    trainer, again = build_trainer(*settings), build_trainer(*settings)
    record = trainer.iterate()
    assert any(not torch.equal(p, again.parameters[name]) for name, p in trainer.parameters.items())
    assert record["grad_norm"] > 0
    assert {name: record[name] for name in vars(Counters())} == vars(expected_cost(trainer.config))
    assert again.iterate()["loss"] == record["loss"]
