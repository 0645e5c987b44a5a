"""How long an iteration takes, in the project and in the plain loop, side by side.

Both do the same iterations of the same configuration, in turn (project, plain, project, ...), so that a machine whose
speed drifts slows both. The ratio is taken pair by pair.
"""

from dataclasses import dataclass, field
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


@dataclass
class Pair:
    """Both loops on one configuration and number of threads, and the seconds they took."""

    trainer: Trainer
    plain: PlainLoop
    project_seconds: list[dict[str, float]] = field(default_factory=list)
    plain_seconds: list[dict[str, float]] = field(default_factory=list)

    def iterate(self) -> None:
        """One iteration of each."""
        self.project_seconds.append(project_phases(self.trainer.iterate()))
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
    reward = build_weighted(config.reward, threads, config.rewards)
    return Trainer(config, policy, reward, prompts, Accelerator(cpu=True))


def make_pair(threads: int, overrides: tuple[str, ...] = (), arithmetic: str = "exact") -> Pair:
    """Both loops, each with a policy and a reward of its own; the plain one without the project's ways to be fast."""
    trainer = make_trainer(threads, (*overrides, f"runtime.arithmetic={arithmetic}"))
    config = _configuration(threads, (*overrides, *STRICT))
    policy = build_policy(config.model, config.optimizer, torch.device("cpu"), seed=config.seed)
    return Pair(trainer, PlainLoop(config, policy, build_weighted(config.reward, threads), trainer.prompts))


def _configuration(threads: int, overrides: tuple[str, ...]) -> RunConfig:
    torch.set_num_threads(threads)
    settings = ("selection=curriculum", "fusion.enabled=true", f"runtime.threads={threads}", *overrides)
    return compose("miniature-luck", overrides=settings)


def project_phases(record: dict[str, Any]) -> dict[str, float]:
    """The project's phases under the plain loop's names."""
    seconds = record["seconds"]
    sampling = seconds.get("candidates", 0.0) + seconds["rollout"]
    return {"sampling": sampling, "reward": seconds["reward"], "update": seconds["update"]}


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
