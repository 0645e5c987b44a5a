"""Engines: an update is one optimiser step whatever the engine, and what cannot work is said before anything starts."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn

from harness.config import ConfigError, compose
from harness.experiments.jobs import command
from harness.models.pipelines.registry import build_policy
from harness.prompts.lists import read_prompts
from harness.rewards import build_reward
from harness.training.engines import sharded, zero2
from harness.training.trainer import Trainer

# Two prompts of two branch indices, one of them in a forward: each of two updates has two backward passes.
SETTINGS = [
    "rollout={candidates: 2, group_size: 2, prompts_per_update: 2, branch_indices: [0, 2]}",
    "objective={updates_per_iteration: 2, update_on: steps}",
    "model={num_steps: 4, execution: {max_train_batch: 1, compile: never}}",
    "optimizer={warmup_iterations: 4, max_grad_norm: 0.01}",
    "reward={colour: 1}",
]


class StandIn:
    """What DeepSpeed does as far as it can be seen: gradients add up, and a step is taken at a boundary alone."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> None:
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimizer, self.max_grad_norm = optimizer, max_grad_norm
        self.is_boundary = True
        self.backward_passes = self.global_steps = 0
        self.norm = 0.0

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        self.is_boundary = is_boundary

    def backward(self, loss: Tensor) -> None:
        self.backward_passes += 1
        loss.backward()

    def step(self) -> None:
        if self.is_boundary:
            self.norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm))
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.global_steps += 1

    def get_global_grad_norm(self) -> float:
        return self.norm


class Eager(StandIn):
    """One that takes no notice of what it is told: each backward pass is a step."""

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        pass

    def backward(self, loss: Tensor) -> None:
        super().backward(loss)
        self.step()


def trainer(monkeypatch: pytest.MonkeyPatch | None = None, stand_in: type[StandIn] = StandIn) -> Trainer:
    torch.set_num_threads(1)
    config = compose("miniature-luck", overrides=SETTINGS)
    if monkeypatch is not None:

        def initialize(network: Any, optimizer: Any, settings: Any, processes: Any) -> StandIn:
            return stand_in(network, optimizer, settings.max_grad_norm)

        monkeypatch.setattr(zero2, "initialize", initialize)
        # A configuration of one process cannot ask for it.
        config = config.model_copy(update={"runtime": config.runtime.model_copy(update={"engine": "zero2"})})
    policy = build_policy(config.model, config.optimizer, torch.device("cpu"), config.seed)
    prompts = read_prompts(config.prompts.train).prompts
    return Trainer(config, policy, build_reward("colour"), prompts, Accelerator(cpu=True))


def test_deepspeed_takes_as_many_steps_as_updates_and_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, deepspeed = trainer(), trainer(monkeypatch)
    for _ in range(2):
        ours, theirs = plain.iterate(), deepspeed.iterate()
        del ours["seconds"], theirs["seconds"]
        assert theirs == ours
    engine = deepspeed.engine._wrapped.engine
    assert (engine.global_steps, engine.backward_passes) == (2 * 2, 2 * 2 * 2)
    assert all(torch.equal(p, deepspeed.parameters[name]) for name, p in plain.parameters.items())


def test_a_deepspeed_that_steps_with_every_backward_pass_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="DeepSpeed took 3 optimiser steps in one update"):
        trainer(monkeypatch, Eager).iterate()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["runtime.engine=fsdp2"], r"runtime\.engine: fsdp2 shares a model out .* runtime\.processes=1; use ddp"),
        (["runtime.engine=zero3"], r"runtime\.engine='zero3' is unknown; the nearest is 'zero2', there are ddp, fsdp2"),
        (
            ["runtime.engine=fsdp2", "runtime.processes=2", "rollout.prompts_per_update=2"],
            r"fsdp2 gathers the weights of one block after the other.*use compile=blocks or never",
        ),
        (
            [
                "runtime.engine=fsdp2",
                "runtime.processes=2",
                "rollout.prompts_per_update=2",
                "rollout.window={size: 1, move: random}",
            ],
            "fsdp2 needs equally many forwards in all processes, but rollout.window.move=random",
        ),
        (
            ["runtime.processes=4", "runtime.machines=3", "rollout.prompts_per_update=4"],
            r"runtime\.machines: 3 cannot share runtime\.processes=4 evenly",
        ),
        (["runtime.timeout_seconds=0"], r"runtime\.timeout_seconds=0: "),
    ],
)
def test_what_processes_cannot_do_is_said_before_anything_starts(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose("miniature-luck", overrides=settings)


def test_missing_deepspeed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    message = "runtime.engine=zero2: DeepSpeed is not installed; install the package deepspeed, or use engine=fsdp2"
    with pytest.raises(ConfigError, match=message):
        zero2.initialize(nn.Linear(1, 1), None, None, None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        command.Placement(2, cuda=True, engine="zero2")


@pytest.mark.parametrize(
    ("stage", "offload", "message"),
    [
        (3, "none", "launched for stage 3, offloading to none"),
        (2, "cpu", "launched for stage 2, offloading to cpu, none"),
    ],
)
def test_another_deepspeed_than_stage_2_is_refused(stage: int, offload: str, message: str) -> None:
    zero = {"stage": stage, "offload_optimizer": {"device": offload}, "offload_param": {"device": "none"}}
    launched = SimpleNamespace(
        state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(deepspeed_config={"zero_optimization": zero}))
    )
    with pytest.raises(ConfigError, match=message):
        zero2._check_launch(launched)  # type: ignore[arg-type]


def test_accelerates_settings_of_fsdp_are_heeded_or_refused() -> None:
    def launched(**settings: Any) -> Any:
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, **settings)
        return SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))

    assert sharded.reshards(launched(reshard_after_forward=True)) is True
    assert sharded.reshards(launched(reshard_after_forward=False)) is False
    assert sharded.reshards(Accelerator(cpu=True)) is True
    with pytest.raises(ConfigError, match="fsdp_offload_params=true: weights cannot be kept in main memory"):
        sharded.reshards(launched(reshard_after_forward=True, cpu_offload=True))


def test_a_network_without_blocks_is_not_shared_out() -> None:
    with pytest.raises(ConfigError, match="Linear has no blocks"):
        sharded.shard(nn.Linear(1, 1), None)  # type: ignore[arg-type]
