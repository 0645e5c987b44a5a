"""What is timed in processes of its own: start-up, grid throughput against slots, the analysis of many runs."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from harness.config import ROOT
from tests.analysis.fabricated import write_run
from tests.benchmarks.parts import seconds_of

SELECTIONS = ("random", "easiest", "hardest", "medium", "curriculum")
KERNELS = ("flow_grpo", "dance_grpo", "flow_cps")


def measure_startup() -> dict[str, Any]:
    """Seconds of whole processes: the help page, and importing what a run needs."""
    commands = {
        "adagrpo --help": ["-m", "harness.cli", "--help"],
        "import a run's modules": ["-c", "import harness.session"],
    }
    measured = {}
    for name, command in commands.items():
        seconds = [seconds_of(lambda command=command: _python(command)) for _ in range(6)][1:]
        measured[name] = median(seconds)
        print(f"  {name:28} {measured[name]:.2f} s")
    return measured


def measure_slots(iterations: int) -> dict[str, Any]:
    """Iterations a second of 1 and 2 processes of one thread each, as the launcher's workers are, and their memory."""
    code = (
        "import json, resource, sys, time\n"
        "from tests.benchmarks.iteration import make_trainer\n"
        "trainer = make_trainer(1)\n"
        "trainer.iterate()\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        f"began = time.perf_counter()\nfor _ in range({iterations}): trainer.iterate()\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        f"print(json.dumps([{iterations} / (time.perf_counter() - began), peak]))\n"
    )
    measured: dict[str, Any] = {}
    for slots in (1, 2):
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
            )
            for _ in range(slots)
        ]
        for worker in workers:
            _line(worker)
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
        rates, peaks = zip(*[json.loads(_line(worker)) for worker in workers], strict=True)
        for worker in workers:
            worker.communicate()
        measured[f"{slots} slots"] = {"iterations a second": sum(rates), "peak MiB a worker": max(peaks)}
        print(f"  {slots} slots: {sum(rates):.2f} iterations a second together, at most {max(peaks):.0f} MiB a worker")
    return measured


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def measure_analysis(num_runs: int, iterations: int = 300, interval: int = 25) -> dict[str, Any]:
    """Report on synthetic runs of all 30 cells: seconds and peak memory, from run directories and from shards."""
    measured: dict[str, Any] = {"runs": num_runs, "iterations": iterations}
    with tempfile.TemporaryDirectory() as folder:
        logs, shards = Path(folder) / "logs", Path(folder) / "shards"
        fabricate(logs, num_runs, iterations, interval)
        write = f"from analysis.shards import write_shards; write_shards(Path({str(logs)!r}), Path({str(shards)!r}))"
        measured["writing shards"] = _timed(write)
        for source in (shards, logs):
            report = f"from analysis.report import write_report; write_report(Path({str(source)!r}), Path({folder!r}))"
            measured[f"report from {source.name}"] = _timed(report)
    for name in ("writing shards", "report from shards", "report from logs"):
        print(f"  {num_runs} runs, {name:20} {measured[name]['seconds']:.1f} s, {measured[name]['MiB']:.0f} MiB")
    return measured


def fabricate(folder: Path, num_runs: int, iterations: int, interval: int) -> None:
    """Write run directories of numbers that mean nothing: 30 cells, as many seeds as it takes."""
    generator = np.random.default_rng(0)
    for number in range(num_runs):
        seed, cell = divmod(number, 2 * len(SELECTIONS) * len(KERNELS))
        kernel, selection, fusion = KERNELS[cell % 3], SELECTIONS[cell // 3 % 5], bool(cell // 15)
        rewards = np.clip(0.5 + 0.02 * np.arange(iterations // interval + 1) + generator.normal(0, 0.02), 0, 1)
        write_run(
            folder / "synthetic" / f"{kernel}-{selection}-{'fusion1-' if fusion else ''}seed{seed}",
            seed=seed,
            selection=selection,
            fusion=fusion,
            rewards=tuple(float(reward) for reward in rewards),
            test=float(rewards[-1]),
            interval=interval,
            experiment="synthetic",
            method={"kernel": kernel, "eta": 0.7},
        )


def _timed(statement: str) -> dict[str, float]:
    code = (
        "import resource\nfrom pathlib import Path\n"
        f"{statement}\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    began = time.perf_counter()
    peak = float(_python(["-c", code]).splitlines()[-1])
    return {"seconds": time.perf_counter() - began, "MiB": peak}


def _python(arguments: list[str]) -> str:
    process = subprocess.run(
        [sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=dict(os.environ)
    )
    return process.stdout
