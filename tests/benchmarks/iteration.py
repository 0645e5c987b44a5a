"""How long an iteration takes, in the project and in the plain loop, side by side.

Both do the same iterations of the same configuration, in turn (project, plain, project, ...), so that a machine whose
speed drifts slows both. The ratio is taken pair by pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from torch import Tensor

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


@dataclass
class Pair:
    """Both loops on one configuration and number of threads, and the seconds they took."""

    trainer: Trainer
    plain: PlainLoop
    project_seconds: list[dict[str, float]] = field(default_factory=list)
    plain_seconds: list[dict[str, float]] = field(default_factory=list)
    project_loss: float = 0.0
    project_gradient: Tensor | None = None

    def iterate(self) -> None:
        """One iteration of each."""
        record = self.trainer.iterate()
        self.project_loss = record["loss"]
        self.project_seconds.append(project_phases(record))
        self.plain.iterate()
        self.plain_seconds.append(dict(self.plain.seconds))

    def forget(self) -> None:
        """Start timing from here."""
        self.project_seconds.clear()
        self.plain_seconds.clear()


def make_trainer(threads: int = 1, overrides: tuple[str, ...] = ()) -> Trainer:
    """The project's loop on the miniature profile; Flow-GRPO + AdaGRPO unless overridden."""
    config = _configuration(threads, overrides)
    prompts = read_prompts(config.prompts.train).prompts
    policy = build_policy(config.model, config.optimizer, torch.device("cpu"), seed=config.seed)
    return Trainer(config, policy, build_weighted(config.reward, threads), prompts, Accelerator(cpu=True))


def make_pair(threads: int, overrides: tuple[str, ...] = ()) -> Pair:
    """Both loops, each with a policy and a reward of its own; the plain one without the project's ways to be fast."""
    trainer = make_trainer(threads, overrides)
    config = _configuration(threads, (*overrides, *STRICT))
    policy = build_policy(config.model, config.optimizer, torch.device("cpu"), seed=config.seed)
    pair = Pair(trainer, PlainLoop(config, policy, build_weighted(config.reward, threads), trainer.prompts))

    def note(*_: object) -> None:
        pair.project_gradient = torch.cat([p.grad.flatten() for p in trainer.parameters.values()])

    trainer.engine.optimizer.register_step_pre_hook(note)
    return pair


def _configuration(threads: int, overrides: tuple[str, ...]) -> RunConfig:
    torch.set_num_threads(threads)
    settings = ("selection=curriculum", "fusion.enabled=true", f"runtime.threads={threads}", *overrides)
    return compose("miniature-luck", overrides=settings)


def project_phases(record: dict[str, Any]) -> dict[str, float]:
    """The project's phases under the plain loop's names."""
    seconds = record["seconds"]
    sampling = seconds.get("candidates", 0.0) + seconds["rollout"]
    return {"sampling": sampling, "reward": seconds["reward"], "update": seconds["update"]}


def strict_differences() -> dict[str, float]:
    """After an iteration in strict fp32, of the same rewards.

    The plain loop is given the project's rewards: latents that differ in the seventh digit now and then round to
    another of 256 levels, which a reward and then a group's advantages magnify.
    """
    pair = make_pair(1, (*START, *STRICT))
    wait, scored = pair.trainer._scores, list[Tensor]()

    def remember(*arguments: Any) -> Any:
        scores = wait(*arguments)
        scored.append(scores.total)
        return scores

    with patch.object(pair.trainer, "_scores", remember):
        record = pair.trainer.iterate()
    rewards = torch.cat(scored)
    own: list[float] = []

    def replay(latents: Tensor, prompts: Sequence[str]) -> Tensor:
        given = rewards[len(own) : len(own) + len(prompts)]
        own.extend(score(latents, prompts).tolist())
        return given

    score = pair.plain._score
    with patch.object(pair.plain, "_score", replay):
        pair.plain.iterate()
    pair.project_loss = record["loss"]
    return differences(pair) | {"reward": float((torch.tensor(own, dtype=torch.float64) - rewards).abs().max())}


def differences(pair: Pair) -> dict[str, float]:
    """Differences of loss (absolute) and gradient (relative to its norm), after the same iteration of both."""
    ours = pair.project_gradient
    assert ours is not None
    plain = torch.cat([p.grad.flatten() for p in pair.plain.parameters.values()])
    return {"loss": abs(pair.project_loss - pair.plain.loss), "gradient": float((ours - plain).norm() / plain.norm())}


def summarise(pair: Pair) -> dict[str, Any]:
    """Medians and spreads (lowest, highest) of seconds by phase, the plain loop's shares, and ratios pair by pair."""
    seconds = list(zip(pair.project_seconds, pair.plain_seconds, strict=True))
    totals = [(sum(ours.values()), sum(plain.values())) for ours, plain in seconds]
    plain_total = median(plain for _, plain in totals)
    return {
        "project": {phase: spread([s[phase] for s in pair.project_seconds]) for phase in PHASES}
        | {"total": spread([ours for ours, _ in totals])},
        "plain": {phase: spread([s[phase] for s in pair.plain_seconds]) for phase in PHASES}
        | {"total": spread([plain for _, plain in totals])},
        "plain_shares": {phase: median(s[phase] for s in pair.plain_seconds) / plain_total for phase in PHASES},
        "ratio": spread([ours / plain for ours, plain in totals]),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": median(values), "low": min(values), "high": max(values)}
