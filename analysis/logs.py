"""Reads run directories, finished or not, into tidy frames. Nothing is trained and nothing is written."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

COLUMNS = [
    "experiment",
    "run_id",
    "method",
    "selection",
    "fusion",
    "fusion_weight",
    "reward",
    "seed",
    "split",
    "iteration",
    "metric",
    "value",
]
TRAINING_REWARD = "training_reward"
"""Metric of every evaluation: the trained reward, under one name whatever it is made of."""

SUMMARY_COLUMNS = [
    *COLUMNS[:8],
    "model",
    "judges",
    "unseen_judges",
    "state",
    "reason",
    "iteration",
    "iterations",
    "sample_forwards",
    "train_forwards",
    "compute",
    "reward_calls",
    "seconds_per_iteration",
    "folder",
]


class RunLogError(ValueError):
    """A run's file that cannot be read: which one, and why."""


def find_runs(folder: Path) -> list[Path]:
    """Run directories in a folder, at any depth, sorted.

    Args:
        folder: searched for directories that hold a config.yaml; may itself be one.

    Raises:
        RunLogError: the folder does not exist.
    """
    if not folder.is_dir():
        raise RunLogError(f"{folder}: no such folder of runs")
    return sorted(path.parent for path in folder.rglob("config.yaml"))


def load_runs(folder: Path) -> pd.DataFrame:
    """All numbers that the runs in a folder logged, one a row.

    Args:
        folder: see ``find_runs``. Runs may be unfinished or have just started.

    Returns:
        Columns ``COLUMNS``. ``split`` is train, validation or test; nested metrics are flattened (``seconds/update``).
        Evaluations also have the metric ``training_reward``. ``fusion_weight`` is 0 without fusion.

    Raises:
        RunLogError: names the folder or file that cannot be read.
    """
    rows: list[tuple[object, ...]] = []
    for run in find_runs(folder):
        config = _read_config(run)
        identity = tuple(_identity(config, run).values())
        for split, iteration, metrics in _records(run, config["reward"]):
            rows.extend((*identity, split, iteration, metric, value) for metric, value in metrics.items())
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.astype({"fusion": bool, "fusion_weight": float, "seed": int, "iteration": int, "value": float})


def load_summary(folder: Path) -> pd.DataFrame:
    """One row a run: what it is, how far it came, what it cost.

    Args:
        folder: see ``find_runs``.

    Returns:
        Columns ``SUMMARY_COLUMNS``. ``state`` is running, finished or failed (``reason`` says why); ``iteration`` of
        ``iterations`` are done; forwards and reward calls are totals; ``compute`` counts network forwards, a trained
        sample as 3; ``unseen_judges`` were not trained on; ``folder`` is the run directory.

    Raises:
        RunLogError: names the folder or file that cannot be read.
    """
    rows = [_summary_row(run) for run in find_runs(folder)]
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS)


def reward_name(weights: Mapping[str, float]) -> str:
    """Name of a weighted sum of rewards, as in "ocr" or "ocr+0.5*colour": largest weight first."""
    ordered = sorted(weights.items(), key=lambda item: (-abs(item[1]), item[0]))
    terms = "".join(f"{weight:+g}*{name}" for name, weight in ordered)
    return terms.replace("+1*", "+").replace("-1*", "-").removeprefix("+")


def _summary_row(run: Path) -> dict[str, object]:
    config = _read_config(run)
    status = _read_status(run)
    lines = _read_lines(run / "metrics.jsonl")
    last = lines[-1] if lines else {}
    seconds = [line["seconds"]["iteration"] for line in lines if "iteration" in line.get("seconds", {})]
    judges = [str(judge) for judge in config.get("evaluation", {}).get("judges", [])]
    sampled, trained = last.get("total_sample_forwards", 0), last.get("total_train_forwards", 0)
    return _identity(config, run) | {
        "model": config.get("model", {}).get("path", ""),
        "judges": judges,
        # A component of weight 0 is only measured.
        "unseen_judges": [judge for judge in judges if not config["reward"].get(judge)],
        "state": status.get("state", "running"),
        "reason": status.get("reason") or "",
        "iteration": last.get("iteration", 0),
        "iterations": config["iterations"],
        "sample_forwards": sampled,
        "train_forwards": trained,
        "compute": sampled + 3 * trained,
        "reward_calls": last.get("total_reward_calls", 0),
        "seconds_per_iteration": sum(seconds) / len(seconds) if seconds else float("nan"),
        "folder": run,
    }


def _identity(config: Mapping[str, Any], run: Path) -> dict[str, object]:
    fusion = config["fusion"]["enabled"]
    return {
        "experiment": config["experiment"],
        "run_id": run.name,
        "method": config["method"]["kernel"],
        "selection": config["selection"],
        "fusion": fusion,
        "fusion_weight": float(config["fusion"].get("weight", 1.0)) if fusion else 0.0,
        "reward": reward_name(config["reward"]),
        "seed": config["seed"],
    }


def _records(run: Path, reward: Mapping[str, float]) -> Iterator[tuple[str, int, dict[str, float]]]:
    for line in _read_lines(run / "metrics.jsonl"):
        yield "train", line["iteration"], dict(_flatten(line))
    for line in _read_lines(run / "eval.jsonl"):
        metrics = dict(_flatten(line["metrics"]))
        total = metrics.get(reward_name(reward))
        components = {name: weight for name, weight in reward.items() if weight}
        if total is None and components.keys() <= metrics.keys():
            total = sum(weight * metrics[name] for name, weight in components.items())
        if total is not None:
            metrics[TRAINING_REWARD] = total
        yield line["split"], line["iteration"], metrics


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Numbers only: texts, lists and nulls are no values of a metric."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and prefix + name != "iteration":
            yield prefix + name, float(value)


def _read_config(run: Path) -> dict[str, Any]:
    path = run / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunLogError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    sections = {"fusion": "enabled", "method": "kernel", "reward": None}
    for key in ("experiment", "seed", "iterations", "selection", *sections):
        if not isinstance(config, dict) or key not in config:
            raise RunLogError(f"{path}: no run's configuration: key {key!r} is missing")
    for key, inner in sections.items():
        if not isinstance(config[key], dict) or (inner and inner not in config[key]):
            raise RunLogError(f"{path}: key {key!r} must be a mapping{f' with {inner!r}' if inner else ''}")
    return config


def _read_status(run: Path) -> dict[str, Any]:
    path = run / "status.json"
    try:
        status = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunLogError(f"{path}: cannot be read: {error}") from None
    if not isinstance(status, dict):
        raise RunLogError(f"{path}: must hold an object")
    return status


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file, in order; of lines for one iteration and split the last, as a resumed run wrote."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunLogError(f"{path}: cannot be read: {error}") from None
    required = {"iteration"} if path.name == "metrics.jsonl" else {"iteration", "split", "metrics"}
    records: dict[tuple[int, str], dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            # A run that was killed, or that is being written at this moment, ends in half a line.
            if number == len(lines):
                break
            raise RunLogError(f"{path}: line {number} is not JSON") from None
        if not isinstance(record, dict) or not required <= record.keys():
            raise RunLogError(f"{path}: line {number} must be an object with {', '.join(sorted(required))}")
        records[record["iteration"], record.get("split", "train")] = record
    return [records[key] for key in sorted(records)]
