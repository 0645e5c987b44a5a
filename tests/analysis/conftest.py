"""Small runs written by hand, for every test of the analysis."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

PROMPTS = ['the word "dog" in red on white', 'the word "zebra" in blue on yellow']

WriteRun = Callable[..., Path]


def _metrics(reward: float) -> dict[str, float]:
    return {"ocr": reward, "ocr-v4": reward - 0.1, "ocr-v4/word_accuracy": reward - 0.2, "colour": 0.9}


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Writes a run of two iterations: rewards before, between and after training on validation, then on test."""

    def write(
        name: str,
        *,
        seed: int = 0,
        selection: str = "random",
        fusion: bool = False,
        rewards: tuple[float, ...] = (0.5, 0.6, 0.7),
        test: float | None = 0.75,
        base_test: float | None = 0.45,
        state: str = "finished",
        reason: str | None = None,
        **config: Any,
    ) -> Path:
        run = tmp_path / "runs" / "grid" / name
        (run / "images").mkdir(parents=True)
        settings = {
            "experiment": "grid",
            "seed": seed,
            "iterations": 2,
            "selection": selection,
            "fusion": {"enabled": fusion, "weight": 1.0},
            "method": {"kernel": "flow_grpo", "eta": 0.7},
            "reward": {"ocr": 1.0},
            "model": {"path": "base"},
            "evaluation": {"judges": ["ocr", "ocr-v4", "colour"]},
        }
        (run / "config.yaml").write_text(yaml.safe_dump(settings | config))
        status = {"state": state, "iteration": len(rewards) - 1, "iterations": 2, "reason": reason}
        (run / "status.json").write_text(json.dumps(status))
        steps = [
            {
                "iteration": iteration,
                "reward_mean": 0.1 * iteration,
                "capability_mean": None,
                "prompts": ["a", "b"],
                "ranks": [3],
                "total_sample_forwards": 100 * iteration,
                "total_train_forwards": 10 * iteration,
                "total_reward_calls": 20 * iteration,
                "seconds": {"update": 0.25, "iteration": float(iteration)},
            }
            for iteration in range(1, len(rewards))
        ]
        evaluations = [(i, "validation", reward) for i, reward in enumerate(rewards)]
        evaluations += [(0, "test", base_test)] if base_test is not None else []
        evaluations += [(2, "test", test)] if test is not None else []
        lines = [
            {
                "iteration": i,
                "split": split,
                "num_prompts": 2,
                "metrics": _metrics(value),
                "per_prompt": {"ocr": [value]},
            }
            for i, split, value in evaluations
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
        (run / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (run / "images" / "prompts.json").write_text(json.dumps(PROMPTS))
        for i in range(len(rewards)):
            stack = Image.new("RGB", (8, 8), (0, 0, 100 * i))
            stack.paste((255, 0, 0), (0, 4, 8, 8))
            stack.save(run / "images" / f"validation-{i:05d}.png")
        return run

    return write


@pytest.fixture
def grid(write_run: WriteRun, tmp_path: Path) -> Path:
    """Two cells of two seeds each."""
    write_run("base-0", seed=0, test=0.70)
    write_run("base-1", seed=1, test=0.74, rewards=(0.5, 0.62, 0.72))
    write_run("ours-0", seed=0, selection="curriculum", fusion=True, test=0.80)
    write_run("ours-1", seed=1, selection="curriculum", fusion=True, test=0.90)
    return tmp_path / "runs"
