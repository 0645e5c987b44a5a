"""Gradients of a measurement are those of the trainer, sample by sample, and the reference's have no bias."""

import math
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from harness.adagrpo import SELECTION_STRATEGIES
from harness.config import compose
from harness.experiments.gradients.gradients import KINDS, advantages_of, score_gradients, update_gradients
from harness.experiments.gradients.sampling import Sampler, select_all
from harness.models.pipelines.policy import Policy
from harness.models.pipelines.registry import build_policy
from harness.prompts.lists import read_prompts
from harness.rewards import build_reward
from harness.rollout import Rollout
from harness.training.trainer import Trainer
from harness.transitions import KERNELS

SMALL = [
    "rollout={candidates: 3, group_size: 3, branch_indices: [1, 3]}",
    "seed=11",
]


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    torch.set_num_threads(1)
    config = compose("miniature-luck", overrides=SMALL)
    policy = build_policy(config.model, config.optimizer, torch.device("cpu"), config.seed)
    return Sampler(config, policy, build_reward("ocr"), read_prompts(config.prompts.train).prompts)


def gradient_of_training(sampler: Sampler, *overrides: str) -> tuple[Tensor, dict[str, Any], Trainer]:
    """The gradient of the first update of a run with the same policy, before clipping, and its line of the log."""
    config = compose("miniature-luck", overrides=[*SMALL, "optimizer.max_grad_norm=1e9", *overrides])
    trainer = Trainer(config, sampler.policy, sampler.reward, sampler.prompts, Accelerator(cpu=True))
    seen: list[Tensor] = []
    # Noted and not taken, so that the policy stays as it is.
    trainer.engine.optimizer.step = lambda: seen.append(  # type: ignore[method-assign,assignment]
        torch.cat([p.grad.flatten() for p in trainer.parameters.values() if p.grad is not None])
    )
    record = trainer.iterate()
    return seen[0], record, trainer


@pytest.mark.parametrize(
    ("selection", "fusion", "kinds"),
    [
        ("random", [], {"local": 1.0}),
        ("curriculum", ["fusion.enabled=true", "fusion.weight=3"], {"local": 1.0, "global": 3.0}),
        (
            "hardest",
            ["fusion.enabled=true", "fusion.kind=rescaled", "fusion.weight=3"],
            {"local": 1.0, "rescaling": 3.0},
        ),
    ],
)
def test_the_first_round_is_the_first_iteration_of_a_run(
    sampler: Sampler, selection: str, fusion: list[str], kinds: dict[str, float]
) -> None:
    gradient, record, trainer = gradient_of_training(sampler, f"selection={selection}", *fusion)
    rewards = sampler.candidate_rewards(1)
    [choice] = select_all(rewards[None], 1, sampler.config)
    candidate = choice.chosen[selection]
    assert record["prompts"] == [sampler.candidates(1)[candidate]]
    if fusion:
        assert (choice.mean, choice.std) == pytest.approx((trainer.tracker.mean, trainer.tracker.std), rel=1e-5)
    sampled = sampler.of_candidate(1, candidate)
    advantages = advantages_of(sampled.rewards, choice.mean, choice.std, 5.0)
    made = dict(zip(KINDS, update_gradients(sampled.scores, advantages), strict=True))
    ascent = sum(weight * made[kind] for kind, weight in kinds.items())
    scale = gradient.abs().max().item()
    torch.testing.assert_close(-gradient.double(), ascent, rtol=2e-3, atol=1e-4 * scale)


def test_score_gradients_are_those_of_each_sibling_alone(sampler: Sampler) -> None:
    seen: list[Rollout] = []

    def noted(policy: Policy, kernel: Any, sigmas: Tensor, rollout: Rollout) -> Tensor:
        seen.append(rollout)
        return score_gradients(policy, kernel, sigmas, rollout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.experiments.gradients.sampling.score_gradients", noted)
        scores = sampler.of_reference(0).scores
    [rollout], policy = seen, sampler.policy
    kernel, parameters = KERNELS["flow_grpo"](eta=0.7), list(policy.trainable().values())
    assert scores.shape == (2 * 3, sum(p.numel() for p in parameters))
    row = 0
    for step in rollout.steps:
        pair = sampler.sigmas[step.index : step.index + 2].tolist()
        for sibling in step.x_next:
            transition = kernel.step(step.x, policy.velocity(step.x, pair[0], rollout.text), *pair)
            gradients = torch.autograd.grad(transition.log_prob(sibling[None]).sum(), parameters)
            alone = torch.cat([gradient.flatten() for gradient in gradients])
            torch.testing.assert_close(scores[row], alone, rtol=1e-3, atol=1e-5 * alone.abs().max().item())
            row += 1


def test_advantages_of_a_hand_made_group() -> None:
    made = advantages_of(torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]]), mean=4.0, std=2.0, clip=5.0)
    assert tuple(made) == KINDS
    # Each reward minus the mean of the two others.
    assert made["unbiased"][0].tolist() == pytest.approx([1 - 4.0, 2 - 3.5, 6 - 1.5])
    spread = math.sqrt(7)
    assert made["local"][0].tolist() == pytest.approx([-2 / spread, -1 / spread, 3 / spread])
    assert made["global"][0].tolist() == pytest.approx([-3 / 5, -2 / 5, 1.0])
    # The second group lies below the capability: global is what rescaling adds.
    assert made["global"][1].tolist() == pytest.approx([-0.5, -0.5, 1.0])
    torch.testing.assert_close(made["rescaling"], made["local"] * torch.tensor([[spread], [math.sqrt(3)]]) / 2)
    torch.testing.assert_close(made["global"][1], made["rescaling"][1])
    assert made["capability"][0].tolist() == pytest.approx([-1.5, -1.0, 1.0])


def test_an_update_is_the_mean_over_groups_and_siblings() -> None:
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 2.0]])
    advantages = {"local": torch.tensor([[1.0, -1.0], [3.0, 5.0]]), "global": torch.zeros(2, 2)}
    assert update_gradients(scores, advantages).tolist() == [[(1 + 6) / 4, (-1 + 10) / 4], [0, 0]]


def test_only_the_unbiased_advantages_have_the_expected_reward_s_gradient() -> None:
    # x ~ N(theta, 1) and reward x: the gradient of the expected reward is 1, and that of log p is x - theta.
    num_groups, size = 1500, 2
    noise = torch.randn(num_groups, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    made = advantages_of(5.0 + noise, mean=4.0, std=1.0, clip=math.inf)
    means = {kind: (advantages * noise).mean().item() for kind, advantages in made.items()}
    error = 4 * (made["unbiased"] * noise).mean(1).std().item() / math.sqrt(num_groups)
    assert means["unbiased"] == pytest.approx(1.0, abs=error)
    # The capability as baseline, with scale 1, has it, too; the group's own mean and std have not. Of two siblings
    # local is +-1/sqrt(2) by who is ahead, so this is E|x1 - x2| / (2 sqrt(2)).
    assert means["capability"] == pytest.approx(1.0, abs=2 * error)
    assert means["local"] == pytest.approx(1 / math.sqrt(2 * math.pi), abs=error)


def test_every_strategy_chooses_with_a_capability_that_has_seen_all_rounds(sampler: Sampler) -> None:
    rewards = torch.tensor([[0.1, 0.5, 0.9], [0.2, 0.3, 1.0]], dtype=torch.float64)
    first, second = select_all(rewards, 1, sampler.config)
    assert tuple(first.chosen) == SELECTION_STRATEGIES
    assert (first.mean, second.mean) == pytest.approx((0.5, 0.8 * 0.5 + 0.2 * 0.5))
    assert [second.chosen[name] for name in ("easiest", "hardest", "medium", "curriculum")] == [2, 0, 1, 1]
    # Consecutive rounds from the middle have the same random choice.
    assert select_all(rewards[1:], 2, sampler.config)[0].chosen["random"] == second.chosen["random"]
