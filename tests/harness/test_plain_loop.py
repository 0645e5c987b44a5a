"""The trainer against the algorithm written down once more: the plain loop of the benchmarks, of its own arithmetic."""

from collections.abc import Sequence

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from harness.config import compose
from harness.models.pipelines.flux import FluxPolicy
from harness.prompts.lists import read_prompts
from harness.rewards import Reward
from harness.training.trainer import Trainer
from tests.benchmarks.plain_loop import PlainLoop

SETTINGS = [
    "model.num_steps=4",
    "selection=curriculum",
    "fusion={enabled: true, weight: 0.7}",
    "rollout={candidates: 3, group_size: 4, branch_indices: [0, 2]}",
    "objective={updates_per_iteration: 2, clip_range: 1.0e-3}",
    # A large epsilon: AdamW makes a whole step of a gradient that is nothing but rounding.
    "optimizer={tuning: full, learning_rate: 1.0e-3, epsilon: 1.0e-3}",
]


class Brightness(Reward):
    """Mean of all pixels."""

    name = "brightness"

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return images.double().mean((1, 2, 3))

    def fingerprint(self) -> str:
        return "brightness"


@pytest.mark.parametrize("method", ["flow_grpo", "dance_grpo", "flow_cps"])
def test_the_trainer_computes_what_a_plain_loop_does(method: str) -> None:
    torch.set_num_threads(1)
    config = compose("smoke", method=method, overrides=SETTINGS)
    prompts = read_prompts(config.prompts.train).prompts
    ours, theirs = (FluxPolicy(config.model, config.optimizer, torch.device("cpu"), config.seed) for _ in range(2))
    start = {name: weight.detach().clone() for name, weight in ours.trainable().items()}
    trainer = Trainer(config, ours, Brightness(), prompts, Accelerator(cpu=True))
    plain = PlainLoop(config, theirs, Brightness(), prompts)
    for _ in range(2):
        record = trainer.iterate()
        plain.iterate()
        assert record["loss"] == pytest.approx(plain.loss, rel=1e-3, abs=1e-6)
        assert record["capability_mean"] == pytest.approx(plain.mean)
        assert record["ratio_max_deviation"] > 0
    moved = 0.0
    for name, weight in theirs.trainable().items():
        moved = max(moved, (weight - start[name]).abs().max().item())
        # An eta that is off by 1 % makes 4e-5 and more.
        torch.testing.assert_close(ours.trainable()[name], weight, rtol=0, atol=1e-5, msg=name)
    assert moved > 1e-4
