"""The analysis of many runs: seconds by stage and peak memory, in a process of its own.

Analysis is all that ``adagrpo report`` does: it reads every run into the tidy frame, computes statistics and tables,
draws every figure, and writes tables, figures and the page. Runs are synthetic: all 30 cells of the grid, as many
seeds as it takes, 300 iterations each, a validation every 25. They are read from shards, as a study commits them, and
from the run directories that these are made of.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from analysis.cells.labels import PAPER_GRID
from analysis.report import report
from tests.analysis.fabricated import write_run

ROOT = Path(__file__).resolve().parents[2]
STAGES = {
    "load": ("load_logs",),
    "statistics": ("split_studies", "cell_frame", "stability_frame", "chosen_frame"),
    "figures": ("draw_study",),
    "tables": ("_write_tables",),
    "page": ("render_page",),
}
"""Functions of ``analysis.report.report`` by stage; figures and tables compute some statistics of their own. The rest
is the start of Python, imports, and the writing of figures."""


def measure_analysis(num_runs: int, iterations: int = 300, interval: int = 25) -> dict[str, Any]:
    """Report on synthetic runs, from shards and from run directories: seconds by stage and peak memory.

    Args:
        num_runs: over 30 cells, seed after seed.
        iterations: of each run.
        interval: iterations between validations.
    """
    measured: dict[str, Any] = {"runs": num_runs, "iterations": iterations}
    with tempfile.TemporaryDirectory() as folder:
        logs, shards = Path(folder) / "logs", Path(folder) / "shards"
        fabricate(logs, num_runs, iterations, interval)
        write = f"write_shards(Path({str(logs)!r}), Path({str(shards)!r}))"
        measured["writing shards"] = _timed("from analysis.runs.shards import write_shards", write, "stages = {}")
        for source in (shards, logs):
            by_stage = f"stages = report_by_stage(Path({str(source)!r}), Path({folder!r}))"
            found = _timed("from tests.benchmarks.analysis import report_by_stage", by_stage)
            measured[f"report from {source.name}"] = found
    for name in ("writing shards", "report from shards", "report from logs"):
        found = measured[name]
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in found["stages"].items())
        print(f"  {num_runs} runs, {name:20} {found['seconds']:.1f} s, {found['MiB']:.0f} MiB  {stages}")
    return measured


def report_by_stage(runs: Path, output: Path) -> dict[str, float]:
    """Write a report, and return how many seconds each of ``STAGES`` took."""
    seconds = dict.fromkeys(STAGES, 0.0)

    def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            found = function(*args, **kwargs)
            seconds[stage] += time.perf_counter() - began
            return found

        return call

    for stage, names in STAGES.items():
        for name in names:
            setattr(report, name, timed(stage, getattr(report, name)))
    report.write_report(runs, output)
    return seconds


def fabricate(folder: Path, num_runs: int, iterations: int, interval: int) -> None:
    """Write run directories of numbers that mean nothing: 30 cells, as many seeds as it takes."""
    generator = np.random.default_rng(0)
    for number in range(num_runs):
        seed, place = divmod(number, len(PAPER_GRID))
        cell = PAPER_GRID[place]
        rewards = np.clip(0.5 + 0.02 * np.arange(iterations // interval + 1) + generator.normal(0, 0.02), 0, 1)
        write_run(
            folder / "synthetic" / f"{cell.method}-{cell.selection}-{'fusion1-' if cell.fusion else ''}seed{seed}",
            seed=seed,
            selection=cell.selection,
            fusion=cell.fusion,
            rewards=tuple(float(reward) for reward in rewards),
            test=float(rewards[-1]),
            interval=interval,
            experiment="synthetic",
            method={"kernel": cell.method, "eta": 0.7},
        )


def _timed(*statements: str) -> dict[str, Any]:
    """Seconds and peak MiB of statements in a new process, of which one sets ``stages``."""
    imports = ["import json", "from pathlib import Path", "from tests.benchmarks.memory import peak_mebibytes"]
    code = [*imports, *statements, "print(json.dumps([stages, peak_mebibytes()]))"]
    began = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-c", "\n".join(code)], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ
    )
    seconds = time.perf_counter() - began
    stages, mebibytes = json.loads(process.stdout.splitlines()[-1])
    return {"seconds": seconds, "MiB": mebibytes, "stages": stages | {"rest": seconds - sum(stages.values())}}
