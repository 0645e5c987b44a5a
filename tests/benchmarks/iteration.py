"""How long an iteration takes, in the project and in the plain loop, side by side.

Both do the same iterations of the same configuration, in turn (project, plain, project, ...), so that a machine whose
speed drifts slows both. The ratio is taken pair by pair.
"""

from statistics import median
from typing import Any

import torch
from accelerate import Accelerator

from harness.config import RunConfig, compose
from harness.models.pipelines.registry import build_policy
from harness.prompts.lists import read_prompts
from harness.rewards import build_weighted
from harness.training.trainer import Trainer
from tests.benchmarks.plain_loop import PlainLoop

PHASES = ("sampling", "reward", "update")

START = ("rollout.branch_indices=[0,1,2,3]",)
"""What the project's speed is judged on: B 12, G 8, 8 steps and four branch indices, 44 pictures per iteration."""

STRICT = ("model.execution.compile=never", "optimizer.lora.merge_while_sampling=false")
"""Nothing that rounds otherwise than the plain loop does."""


def make_trainer(threads: int = 1, overrides: tuple[str, ...] = ()) -> Trainer:
    """The project's loop on the miniature profile; Flow-GRPO + AdaGRPO unless overridden."""
    config = _configuration(threads, overrides)
    prompts = read_prompts(config.prompts.train).prompts
    policy = build_policy(config.model, config.optimizer, torch.device("cpu"), seed=config.seed)
    reward = build_weighted(config.reward, threads, config.rewards)
    return Trainer(config, policy, reward, prompts, Accelerator(cpu=True))


def time_pair(threads: int, arithmetic: str, rounds: int) -> dict[str, Any]:
    """Seconds by phase of the project and the plain loop, the plain loop's shares, and ratios pair by pair.

    Each has a policy and a reward of its own, the plain loop without the project's ways to be fast.
    """
    trainer = make_trainer(threads, (*START, f"runtime.arithmetic={arithmetic}"))
    config = _configuration(threads, (*START, *STRICT))
    policy = build_policy(config.model, config.optimizer, torch.device("cpu"), seed=config.seed)
    loop = PlainLoop(config, policy, build_weighted(config.reward, threads), trainer.prompts)
    project, plain = [], []
    for attempt in range(rounds + 1):
        seconds = trainer.iterate()["seconds"]
        loop.iterate()
        if attempt:  # the first is a warm-up: memory, compilation, the recogniser's first batch
            sampling = seconds.get("candidates", 0.0) + seconds["rollout"]
            project.append({"sampling": sampling, "reward": seconds["reward"], "update": seconds["update"]})
            plain.append(loop.seconds)
    ours, theirs = (_by_phase(each) for each in (project, plain))
    ratios = [sum(one.values()) / sum(other.values()) for one, other in zip(project, plain, strict=True)]
    shares = {phase: theirs[phase]["median"] / theirs["total"]["median"] for phase in PHASES}
    return {"project": ours, "plain": theirs, "plain_shares": shares, "ratio": spread(ratios)}


def _configuration(threads: int, overrides: tuple[str, ...]) -> RunConfig:
    torch.set_num_threads(threads)
    settings = ("selection=curriculum", "fusion.enabled=true", f"runtime.threads={threads}", *overrides)
    return compose("miniature-luck", overrides=settings)


def _by_phase(rounds: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    phases = {phase: spread([seconds[phase] for seconds in rounds]) for phase in PHASES}
    return phases | {"total": spread([sum(seconds.values()) for seconds in rounds])}


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": median(values), "low": min(values), "high": max(values)}
