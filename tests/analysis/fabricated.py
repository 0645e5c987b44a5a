"""Writes run directories as the harness does, with numbers made by hand: no training, no conclusion."""

import json
from collections.abc import Callable, Collection
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from analysis.cells.logs import load_logs
from analysis.cells.study import Study, split_studies
from analysis.figures import Group
from harness.foundation.trained_reward import TrainedReward, trained_reward

PROMPTS = ['the word "dog" in red on white', 'the word "zebra" in blue on yellow']
WriteRun = Callable[..., Path]
"""The fixture ``write_run``."""
NO_FIGURES = dict.fromkeys(
    ("main", "selection", "cells", "variants", "costs", "stability", "curves", "published", "chosen", "claims"), Group()
)
"""Figures of a page that shows none, since drawing them takes seconds."""
PACKAGES = {"torch": "2.13.0", "numpy": "2.4.6"}


def metrics_of(reward: float) -> dict[str, float]:
    """What the judges say where the trained reward is ``reward``."""
    accuracies = {"ocr/word_accuracy": reward - 0.05, "ocr-v4/word_accuracy": reward - 0.2}
    return {"ocr": reward, "ocr-v4": reward - 0.1, **accuracies, "colour": 0.9}


def study_of(folder: Path, train_metrics: Collection[str] = ()) -> Study:
    """The only study of a folder of runs."""
    [study] = split_studies(load_logs(folder, train_metrics))
    return study


def write_run(
    folder: Path,
    *,
    seed: int = 0,
    selection: str = "random",
    fusion: bool | dict[str, Any] = False,
    rewards: tuple[float, ...] = (0.5, 0.6, 0.7),
    test: float | None = 0.75,
    base_test: float | None = 0.45,
    interval: int = 1,
    state: str = "finished",
    reason: str | None = None,
    **config: Any,
) -> Path:
    """A run directory: rewards before, between and after training on validation, then on test.

    Args:
        folder: to write; its name is the run's id.
        seed: of the run.
        selection: of prompts.
        fusion: whether advantages are fused, with weight 1; or the section itself.
        rewards: of the validations, ``interval`` iterations apart; the last is reached at the last iteration.
        test: reward on test prompts; None for none.
        base_test: of the untrained model; None for none.
        interval: iterations between validations.
        state: of status.json.
        reason: of a failure.
        **config: further settings.
    """
    (folder / "images").mkdir(parents=True)
    iterations = interval * (len(rewards) - 1)
    settings = {
        "experiment": "grid",
        "seed": seed,
        "iterations": max(2, iterations),
        "selection": selection,
        "fusion": fusion if isinstance(fusion, dict) else {"enabled": fusion, "weight": 1.0},
        "method": {"kernel": "flow_grpo", "eta": 0.7},
        "reward": {"ocr": 1.0},
        "model": {"path": "base"},
        "evaluation": {"judges": ["ocr", "ocr-v4", "colour"]},
    } | config
    (folder / "config.yaml").write_text(yaml.dump(settings, Dumper=yaml.CSafeDumper))
    status = {"state": state, "iteration": iterations, "iterations": settings["iterations"], "reason": reason}
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "environment.json").write_text(json.dumps({"commit": "abc", "python": "3.11.7", "packages": PACKAGES}))
    steps = [
        _step(iteration, candidates=selection != "random" or bool(fusion)) for iteration in range(1, iterations + 1)
    ]
    trained = trained_reward(settings)
    evaluations = [(i * interval, "validation", reward) for i, reward in enumerate(rewards)]
    evaluations += [(0, "test", base_test)] if base_test is not None else []
    evaluations += [(max(2, iterations), "test", test)] if test is not None else []
    _write_lines(folder / "metrics.jsonl", steps)
    _write_lines(folder / "eval.jsonl", [_evaluation(trained, *evaluation) for evaluation in evaluations])
    (folder / "images" / "prompts.json").write_text(json.dumps(PROMPTS))
    for i in range(len(rewards)):
        (folder / "images" / f"validation-{i * interval:05d}.png").write_bytes(_stack(100 * i % 256))
    return folder


@cache
def _stack(blue: int) -> bytes:
    """Pictures of both prompts, the first blue and the second red, in one column."""
    width, height = 8, 4
    stack = Image.new("RGB", (width, height * len(PROMPTS)), (0, 0, blue))
    stack.paste((255, 0, 0), (0, height, width, height * len(PROMPTS)))
    buffer = BytesIO()
    stack.save(buffer, "PNG")
    return buffer.getvalue()


def _step(iteration: int, candidates: bool) -> dict[str, Any]:
    return {
        "iteration": iteration,
        "reward_mean": 0.1 * iteration,
        "capability_mean": 0.4 if candidates else None,
        "prompts": [f"prompt {iteration}", "b"],
        "ranks": [3, 0] if candidates else None,
        "total_sample_forwards": (200 if candidates else 100) * iteration,
        "total_train_forwards": 10 * iteration,
        "total_reward_calls": 20 * iteration,
        "seconds": {"update": 0.25, "iteration": float(iteration)},
    }


def _evaluation(trained: TrainedReward, iteration: int, split: str, reward: float) -> dict[str, Any]:
    metrics = metrics_of(reward)
    # Two prompts, .05 above and below the mean.
    per_prompt = {name: [round(value + 0.05, 6), round(value - 0.05, 6)] for name, value in metrics.items()}
    if trained.name not in metrics:
        metrics |= {trained.name: trained.total(metrics)}
        prompts = [trained.total({name: values[i] for name, values in per_prompt.items()}) for i in range(2)]
        per_prompt |= {trained.name: prompts}
    return {
        "iteration": iteration,
        "split": split,
        "num_prompts": 2,
        "num_noises": 1,
        "seconds": 1.5,
        "metrics": metrics,
        "per_prompt": per_prompt,
    }


def _write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
