"""Gradients of a measurement are those of the trainer, sample by sample, and the reference's have no bias."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from harness.adagrpo import SELECTION_STRATEGIES
from harness.config import ConfigError, compose
from harness.experiments.gradients.checkpoint import find_measured
from harness.experiments.gradients.gradients import (
    local_advantages,
    score_gradients,
    unbiased_advantages,
    update_gradients,
)
from harness.experiments.gradients.oracle import every_advantage
from harness.experiments.gradients.sampling import Sampler, choose_all
from harness.models.pipelines.registry import build_policy
from harness.prompts.lists import read_prompts
from harness.rewards import build_reward
from harness.runs.directory import RunDirectory
from harness.training.trainer import Trainer
from harness.transitions import KERNELS

SMALL = ["rollout={candidates: 3, group_size: 3, branch_indices: [1, 3]}", "seed=11"]


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
    ("selection", "fusion"),
    [
        ("random", []),
        ("curriculum", ["fusion.enabled=true", "fusion.weight=3"]),
        ("hardest", ["fusion.enabled=true", "fusion.kind=rescaled", "fusion.weight=3"]),
    ],
)
def test_the_first_round_is_the_first_iteration_of_a_run(sampler: Sampler, selection: str, fusion: list[str]) -> None:
    gradient, record, trainer = gradient_of_training(sampler, f"selection={selection}", *fusion)
    [chosen] = choose_all(sampler.candidate_rewards(1)[None], sampler.config)
    candidate = chosen[selection]
    assert record["prompts"] == [sampler.candidates(1)[candidate]]
    sampled = sampler.of_candidate(1, candidate)
    capability = (trainer.tracker.mean, trainer.tracker.std) if fusion else (0.0, 1.0)
    made = every_advantage(sampled.rewards, *capability, 0.0, trainer.config)
    [ascent] = update_gradients(sampled.scores, made[trainer.config.fusion.kind if fusion else "local"])
    scale = gradient.abs().max().item()
    torch.testing.assert_close(-gradient.double(), ascent, rtol=2e-3, atol=1e-4 * scale)


def test_score_gradients_are_those_of_each_sibling_alone(sampler: Sampler) -> None:
    policy, generator = sampler.policy, torch.Generator().manual_seed(0)
    noise = torch.stack([policy.noise(generator, 3) for _ in range(2)])
    rollout = sampler.branch(sampler.prompts[0], policy.noise(generator), [1, 3], noise)
    kernel, parameters = KERNELS["flow_grpo"](eta=0.7), list(policy.trainable().values())
    scores = score_gradients(policy, sampler.kernel, sampler.sigmas, rollout)
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


def test_an_update_is_the_mean_over_groups_and_siblings() -> None:
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 2.0]])
    ascents = update_gradients(scores, torch.tensor([[1.0, -1.0], [3.0, 5.0]]), torch.zeros(2, 2))
    assert ascents.tolist() == [[(1 + 6) / 4, (-1 + 10) / 4], [0, 0]]


def test_only_the_unbiased_advantages_have_the_expected_reward_s_gradient() -> None:
    # x ~ N(theta, 1) and reward x: the gradient of the expected reward is 1, and that of log p is x - theta.
    num_groups, size = 1500, 2
    noise = torch.randn(num_groups, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    unbiased, local = (made * noise for made in (unbiased_advantages(5 + noise), local_advantages(5 + noise, math.inf)))
    error = 4 * unbiased.mean(1).std().item() / math.sqrt(num_groups)
    assert unbiased.mean().item() == pytest.approx(1.0, abs=error)
    # Of two siblings local is +-1/sqrt(2) by who is ahead, so this is E|x1 - x2| / (2 sqrt(2)).
    assert local.mean().item() == pytest.approx(1 / math.sqrt(2 * math.pi), abs=error)


def test_every_strategy_chooses_with_a_capability_that_has_seen_all_rounds(sampler: Sampler) -> None:
    rewards = torch.tensor([[0.1, 0.5, 0.9], [0.2, 0.45, 0.6]], dtype=torch.float64)
    first, second = choose_all(rewards, sampler.config)
    assert tuple(first) == SELECTION_STRATEGIES
    # Of the second round alone the mean is .417, nearest to .45; with the first it is .483.
    assert [second[name] for name in ("easiest", "hardest", "medium", "curriculum")] == [2, 0, 1, 1]


def test_a_run_is_measured_with_its_adapters(lora_run: RunDirectory) -> None:
    trained = find_measured(str(lora_run.folder), lora_run.config)
    assert (trained.label, trained.iteration) == (f"{lora_run.run_id}@1", 1)
    state = lora_run.load_checkpoint()
    assert state is not None
    policy = trained.load(lora_run.config, torch.device("cpu"))
    for name, parameter in policy.trainable().items():
        assert torch.equal(parameter, state["parameters"][name])
    assert any(tensor.abs().max() > 0 for name, tensor in policy.trainable().items() if "lora_B" in name)


def test_what_cannot_be_measured_is_refused(lora_run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((lora_run.folder / "config.yaml").read_text())  # and no checkpoint yet
    for folder, override, expected in (
        (tmp_path, "seed=1", "has no checkpoint yet"),
        (lora_run.folder, "optimizer.tuning=full", "has other adapters"),
        (lora_run.folder, "optimizer.lora.rank=4", "has other adapters"),
        (lora_run.folder, "model.path=harness/models/miniature/weak", r"trains .*base, not .*weak"),
    ):
        with pytest.raises(ConfigError, match=expected):
            find_measured(str(folder), compose("miniature-luck", overrides=[override]))
