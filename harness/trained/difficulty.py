"""Describes how hard the test prompts are for the untrained models: ``python -m harness.trained.difficulty``.

Writes ``data/difficulty.json`` and the histogram ``docs/images/difficulty.png``. Nothing is tuned on these numbers.
"""

import json
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from harness.config import ROOT, compose
from harness.files import write_atomically
from harness.models.pipelines.flux import FluxPolicy
from harness.prompts.lists import read_prompts
from harness.rewards import build_reward
from harness.training.evaluation import evaluate

_MODELS = {"base": "#0072b2", "weak": "#e69f00"}
_BINS = 20


def measure(model: str) -> dict[str, list[float]]:
    """Every judge's value of one ODE sample per test prompt, for ``base`` or ``weak``."""
    config = compose("miniature-luck", overrides=[f"model.path=harness/models/miniature/{model}"])
    policy = FluxPolicy(config.model, config.optimizer, torch.device("cpu"), seed=0)
    judges = [build_reward(name) for name in config.evaluation.judges]
    return evaluate(policy, read_prompts(config.prompts.test).prompts, judges, num_noises=1)


def summary(measured: dict[str, list[float]]) -> dict[str, float | list[float]]:
    """Percentiles and histogram of the reward, means of all metrics, the reward of each prompt in the list's order."""
    low, middle, high = np.percentile(measured["ocr"], [10, 50, 90]).round(4).tolist()
    means = {metric: round(float(np.mean(values)), 4) for metric, values in measured.items()}
    rewards = [round(value, 4) for value in measured["ocr"]]
    percentiles = {"percentile_10": low, "percentile_50": middle, "percentile_90": high}
    prompts_per_bin = np.histogram(rewards, bins=_BINS, range=(0, 1))[0].tolist()
    return {**percentiles, **means, "prompts_per_bin": prompts_per_bin, "rewards": rewards}


def draw(summaries: dict[str, dict[str, float | list[float]]], path: Path) -> None:
    """Histogram of per-prompt rewards, with the 10th and 90th percentile of each model."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")  # without pyplot: needs no display
    axes = figure.subplots()
    for model, colour in _MODELS.items():
        values = summaries[model]
        axes.hist(
            values["rewards"], bins=_BINS, range=(0, 1), histtype="stepfilled", alpha=0.5, color=colour, label=model
        )
        marks = [values["percentile_10"], values["percentile_90"]]
        axes.vlines(marks, 0, 1, color=colour, linestyle="--", linewidth=1, transform=axes.get_xaxis_transform())
    axes.set(xlabel="reward of one ODE sample per test prompt (dashed: 10th, 90th percentile)", ylabel="prompts")
    axes.legend(frameon=False, loc="upper center")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    results = {model: summary(measure(model)) for model in _MODELS}
    path = ROOT / "harness" / "models" / "miniature" / "data" / "difficulty.json"
    write_atomically(path, json.dumps(results, indent=1) + "\n")
    draw(results, ROOT / "docs" / "images" / "difficulty.png")
    for model, values in results.items():
        print(model, {key: value for key, value in values.items() if not isinstance(value, list)})
