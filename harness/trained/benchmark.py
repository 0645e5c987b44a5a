"""Evaluation of checkpoints on a prompt list: a row of the paper's table each, values per prompt, and pictures."""

import gc
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from analysis.formats import WideTable, markdown_table
from harness.config import ConfigError
from harness.foundation.files import file_sha256, make_folder, read_text, write_atomically
from harness.foundation.names import REWARDS
from harness.models.pipelines.policy import Policy
from harness.models.pipelines.truncation import ReadsText, truncations
from harness.prompts.lists import PromptList
from harness.rewards.readiness import Panel
from harness.runs.identity import environment
from harness.trained.checkpoints import Checkpoint
from harness.trained.loading import load_policy
from harness.trained.pictures import SEEDS, draw_seeds, save_grid
from harness.trained.sheet import sheet, thumbnail
from harness.trained.suites import write_geneval
from harness.training.evaluation import evaluate

_PAPER_METRICS = (
    "hpsv2",
    "hpsv3",
    *(f"unifiedreward-v2/{axis}" for axis in ("alignment", "coherence", "style")),
    "clip",
    "imagereward",
    "unifiedreward-v1",
)
"""Columns of the paper's table, in its order."""


@dataclass(frozen=True)
class Score:
    """Measurements of one checkpoint."""

    checkpoint: Checkpoint
    per_prompt: dict[str, list[float]]
    """Mean of each metric over noises, in the order of the prompts."""
    thumbnails: Sequence[str] = ()
    """Data URL of each prompt's first picture."""


@dataclass(frozen=True)
class Benchmark:
    """Prompts and rewards that checkpoints are scored on.

    Attributes:
        prompts: prompts to draw.
        panel: rewards to score with, which fit the prompts and the pictures' size.
        num_noises: number of pictures per prompt.
        num_grid_prompts: number of prompts, from the list's start, that the grid shows.
        name: name of the prompts.
        geneval: GenEval's metadata of each prompt; if given, its evaluator's folders are written to ``geneval/``.
    """

    prompts: PromptList
    panel: Panel
    num_noises: int = 1
    num_grid_prompts: int = 4
    name: str = "Evaluation"
    geneval: Sequence[Mapping[str, Any]] = ()

    def run(
        self, checkpoints: Sequence[Checkpoint], device: torch.device, folder: Path, say: Callable[[str], None]
    ) -> list[Score]:
        """Score checkpoints; write evaluation.json, per_prompt.csv, table.md, sheet.html and grid.png after each one.

        Args:
            checkpoints: checkpoints that draw pictures of one size.
            device: device that draws.
            folder: folder to write to.
            say: called with lines of progress.

        Raises:
            ConfigError: as in ``load_policy``; two checkpoints have one label or draw different sizes; the folder has
                an evaluation of something else; or a value is not finite. Files of earlier checkpoints stay.
        """
        _check_comparable(checkpoints)
        self._check_folder(checkpoints, folder)
        make_folder(folder)
        shown = self.prompts.prompts[: self.num_grid_prompts]
        scores: list[Score] = []
        warnings: list[str] = []
        lines: dict[str, Tensor] = {}
        for checkpoint in checkpoints:
            policy = load_policy(checkpoint, device, self.prompts.prompts)
            readers: list[ReadsText] = [policy, *(part for reward in self.panel.ready for part in reward.parts)]
            for line in truncations(readers, self.prompts.prompts, "prompts"):
                if line not in warnings:
                    warnings.append(line)
                    say(f"warning: {line}")
            of_geneval = folder / "geneval" / f"{len(scores) + 1}-{_words(checkpoint.label)}" if self.geneval else None
            scores.append(Score(checkpoint, *self._measure(policy, checkpoint.label, of_geneval, say)))
            self._write(scores, warnings, folder)
            if shown:
                lines[checkpoint.label] = draw_seeds(policy, shown, SEEDS)
                save_grid(shown, lines, SEEDS, folder / "grid.png")
            # The next checkpoint's model may not fit into memory beside this one's.
            del policy, readers
            gc.collect()
            torch.cuda.empty_cache()
        return scores

    def _check_folder(self, checkpoints: Sequence[Checkpoint], folder: Path) -> None:
        """Raise ConfigError if the folder has an evaluation of other checkpoints or prompts, or by other rewards.

        This evaluation may have further checkpoints and rewards.
        """
        path = folder / "evaluation.json"
        if not path.exists():
            return
        ours = json.loads(json.dumps([_identity(checkpoint) for checkpoint in checkpoints]))
        try:
            found = json.loads(read_text(path))
            theirs = [{key: kept[key] for key in ours[0]} for kept in found["checkpoints"]]
            is_same = (
                (found["prompts_sha256"], found["num_noises"]) == (self.prompts.sha256, self.num_noises)
                and theirs == ours[: len(theirs)]
                and found["rewards"].items() <= self._fingerprints().items()
            )
        except (ValueError, LookupError, TypeError):
            is_same = False
        if not is_same:
            raise ConfigError(f"--output {folder}: holds another evaluation; choose a new folder")

    def _fingerprints(self) -> dict[str, str]:
        return {reward.name: reward.fingerprint() for reward in self.panel.ready}

    def _measure(
        self, policy: Policy, label: str, of_geneval: Path | None, say: Callable[[str], None]
    ) -> tuple[dict[str, list[float]], list[str]]:
        """Metrics and thumbnails of every prompt, one batch at a time, since all pictures do not fit in memory."""
        prompts = self.prompts.prompts
        collected: dict[str, list[float]] = defaultdict(list)
        thumbnails: list[str] = []
        for start in range(0, len(prompts), policy.config.max_batch):
            part = prompts[start : start + policy.config.max_batch]
            drawn: list[Tensor] = []
            measured = evaluate(policy, part, self.panel.ready, self.num_noises, on_images=drawn.append)
            thumbnails += map(thumbnail, drawn[0])
            if of_geneval:
                write_geneval(of_geneval, self.geneval, start, drawn)
            for metric, values in measured.items():
                for prompt, value in zip(part, values, strict=True):
                    if not math.isfinite(value):
                        raise ConfigError(f"{label}: {metric} of prompt {prompt!r} is {value}; leave that reward out")
                collected[metric] += values
            say(f"{label}: {start + len(part)} of {len(prompts)} prompts")
        return dict(collected), thumbnails

    def _write(self, scores: Sequence[Score], warnings: Sequence[str], folder: Path) -> None:
        prompts = self.prompts.prompts
        content = {
            "prompts_sha256": self.prompts.sha256,
            "num_noises": self.num_noises,
            "rewards": self._fingerprints(),
            "not_available": self.panel.missing,
            "not_applicable": self.panel.unfit,
            "warnings": list(warnings),
            "environment": environment(),
            "checkpoints": [_as_json(score) for score in scores],
            "prompts": list(prompts),
        }
        write_atomically(folder / "evaluation.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
        frames = [pd.DataFrame({"checkpoint": s.checkpoint.label, "prompt": prompts} | s.per_prompt) for s in scores]
        write_atomically(folder / "per_prompt.csv", pd.concat(frames).to_csv(index=False))
        write_atomically(folder / "table.md", "\n".join([*table(scores), "", *left_out(self.panel)]) + "\n")
        heads, *rows = _cells(scores)
        wide = WideTable("Means over prompts ± their standard error", heads, [(label, told) for label, *told in rows])
        lines = [(score.checkpoint.label, score.thumbnails, score.per_prompt) for score in scores]
        said = [*left_out(self.panel), *warnings] or ["Every reward that was asked for scored."]
        write_atomically(folder / "sheet.html", sheet(self.name, wide, said, prompts, lines))


def table(scores: Sequence[Score]) -> list[str]:
    """Markdown table with a row per checkpoint: the paper's columns if any of them was measured, then other metrics.

    Values are means over prompts ± their standard error. A checkpoint after the first also has a row with its
    difference from the first, paired by prompt.
    """
    heads, *rows = _cells(scores)
    return markdown_table(heads, rows).splitlines()


def _cells(scores: Sequence[Score]) -> list[list[str]]:
    """Head of the table, then its rows."""
    measured = list(scores[0].per_prompt)
    of_paper = [] if set(_PAPER_METRICS).isdisjoint(measured) else _PAPER_METRICS
    columns = [*of_paper, *(metric for metric in measured if metric not in of_paper)]
    heads = ["checkpoint", *(_head(metric) for metric in columns)]
    first, rows = scores[0], [heads]
    for score in scores:
        found = {metric: _told(values) for metric, values in score.per_prompt.items()}
        rows.append([score.checkpoint.label, *(found.get(metric, "–") for metric in columns)])
        if score is not first:
            paired = {
                metric: _told([one - other for one, other in zip(values, first.per_prompt[metric], strict=True)], "+")
                for metric, values in score.per_prompt.items()
            }
            rows.append([f"minus {first.checkpoint.label}", *(paired.get(metric, "–") for metric in columns)])
    return rows


def _told(values: Sequence[float], sign: str = "") -> str:
    error = _standard_error(values)
    return f"{mean(values):{sign}.4f}" + ("" if error is None else f" ± {error:.4f}")


def _standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean over prompts; None for a single prompt."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def _head(metric: str) -> str:
    name, _, part = metric.partition("/")
    return f"{REWARDS[name].label} {part}".strip() if metric in _PAPER_METRICS else metric


def left_out(panel: Panel) -> list[str]:
    """Lines that name each reward that did not score, with the reason."""
    return [
        *(f"not available: {name}: {reason}" for name, reason in panel.missing.items()),
        *(f"not applicable: {name}: {reason}" for name, reason in panel.unfit.items()),
    ]


def default_folder(benchmark: Benchmark, checkpoints: Sequence[Checkpoint], root: Path) -> Path:
    """Folder named after the first checkpoint and a hash of everything that the numbers depend on."""
    rewards = [reward.fingerprint() for reward in benchmark.panel.ready]
    settings = [benchmark.prompts.sha256, benchmark.num_noises, rewards]
    facts = [[_identity(checkpoint) for checkpoint in checkpoints], settings]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]
    return root / f"{_words(checkpoints[0].label)}-{digest}"


def _words(label: str) -> str:
    """A label as part of a file name."""
    words = "".join(c if c.isalnum() else "-" for c in label)
    return "-".join(filter(None, words.split("-")))


def _check_comparable(checkpoints: Sequence[Checkpoint]) -> None:
    labels = [checkpoint.label for checkpoint in checkpoints]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"two checkpoints are called {label!r}: evaluate them one at a time, or rename a file")
    if len({(c.config.model.height, c.config.model.width) for c in checkpoints}) > 1:
        raise ConfigError("the checkpoints draw pictures of different sizes: set --height and --width")


def _identity(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything that a reader needs to draw the same pictures again."""
    weights = checkpoint.weights
    files = [] if weights is None else [weights] if weights.is_file() else sorted(weights.glob("*.safetensors"))
    digest = hashlib.sha256(b"".join(bytes.fromhex(file_sha256(file)) for file in files)).hexdigest()
    return {
        "label": checkpoint.label,
        "run_id": checkpoint.run.run_id if checkpoint.run else None,
        "weights_sha256": digest if files else None,
        "model": checkpoint.config.model.model_dump(mode="json"),
    }


def _as_json(score: Score) -> dict[str, Any]:
    summary = {
        metric: {"mean": mean(values), "standard_error": _standard_error(values)}
        for metric, values in score.per_prompt.items()
    }
    return _identity(score.checkpoint) | {"metrics": summary, "per_prompt": score.per_prompt}
