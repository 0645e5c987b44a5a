"""How long an iteration takes, in the project and in the plain loop, side by side: ``make bench``.

Both do the same iterations of the same configuration, in turn (project, plain, project, ...), so that a machine whose
speed drifts slows both. The ratio is taken pair by pair.
"""

from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator

from harness.config import RunConfig, compose
from harness.models.flux import FluxPolicy
from harness.prompts import read_prompts
from harness.rewards import build_weighted
from harness.trainer import Trainer
from tests.benchmarks.plain_loop import PlainLoop

PHASES = ("sampling", "reward", "update")


@dataclass
class Pair:
    """Both loops on one configuration and number of threads, and the seconds they took."""

    trainer: Trainer
    plain: PlainLoop
    project_seconds: list[dict[str, float]] = field(default_factory=list)
    plain_seconds: list[dict[str, float]] = field(default_factory=list)
    project_loss: float = 0.0

    def iterate(self) -> None:
        """One iteration of each."""
        record = self.trainer.iterate()
        self.project_loss = record["loss"]
        self.project_seconds.append(project_phases(record))
        self.plain.iterate()
        self.plain_seconds.append(dict(self.plain.seconds))


def make_pair(threads: int, overrides: tuple[str, ...] = ()) -> Pair:
    """Both loops, each with a policy and a reward of its own; Flow-GRPO + AdaGRPO unless overridden."""
    torch.set_num_threads(threads)
    settings = ("selection=curriculum", "fusion.enabled=true", f"runtime.threads={threads}", *overrides)
    config = compose("miniature", overrides=settings)
    prompts = read_prompts(config.prompts.train).prompts
    trainer = Trainer(config, _policy(config), build_weighted(config.reward, threads), prompts, Accelerator(cpu=True))
    return Pair(trainer, PlainLoop(config, _policy(config), build_weighted(config.reward, threads), prompts))


def _policy(config: RunConfig) -> FluxPolicy:
    return FluxPolicy(config.model, config.optimizer, torch.device("cpu"), seed=config.seed)


def project_phases(record: dict[str, Any]) -> dict[str, float]:
    """The project's phases under the plain loop's names."""
    seconds = record["seconds"]
    sampling = seconds.get("candidates", 0.0) + seconds["rollout"]
    return {"sampling": sampling, "reward": seconds["reward"], "update": seconds["update"]}


def largest_gradient_difference(pair: Pair) -> float:
    """Relative to the gradient's norm, after both have made the same iteration."""
    ours = torch.cat([p.grad.flatten() for p in pair.trainer.parameters.values()])
    plain = torch.cat([p.grad.flatten() for p in pair.plain.parameters.values()])
    return float((ours - plain).norm() / plain.norm())


def summarise(pair: Pair) -> dict[str, Any]:
    """Medians and spreads (lowest, highest) of seconds by phase, the plain loop's shares, and ratios pair by pair."""
    totals = [(sum(ours.values()), sum(plain.values())) for ours, plain in _pairs(pair)]
    plain_total = median(plain for _, plain in totals)
    ratios = sorted(ours / plain for ours, plain in totals)
    return {
        "project": {phase: _spread([s[phase] for s in pair.project_seconds]) for phase in PHASES}
        | {"total": _spread([ours for ours, _ in totals])},
        "plain": {phase: _spread([s[phase] for s in pair.plain_seconds]) for phase in PHASES}
        | {"total": _spread([plain for _, plain in totals])},
        "plain_shares": {phase: median(s[phase] for s in pair.plain_seconds) / plain_total for phase in PHASES},
        "ratio": {"median": median(ratios), "low": ratios[0], "high": ratios[-1]},
    }


def _pairs(pair: Pair) -> list[tuple[dict[str, float], dict[str, float]]]:
    return list(zip(pair.project_seconds, pair.plain_seconds, strict=True))


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "low": min(values), "high": max(values)}
