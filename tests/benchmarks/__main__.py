"""``python -m tests.benchmarks``: times the project, prints tables, and writes results/benchmarks/speed.json."""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from harness.config import ROOT
from harness.runs import environment
from tests.benchmarks.iteration import largest_gradient_difference, make_pair, summarise

OUTPUT = ROOT / "results" / "benchmarks" / "speed.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what was asked for (default: everything)."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Time the project.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(_PARTS)} (default: all)")
    parser.add_argument("--iterations", type=int, default=12, help="timed iterations of each loop (default: 12)")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    unknown = [part for part in options.parts if part not in _PARTS]
    if unknown or options.iterations < 1:
        parser.error(f"unknown part {unknown[0]!r}" if unknown else "--iterations must be at least 1")
    results = json.loads(options.output.read_text()) if options.output.exists() else {}
    results["environment"] = environment()
    for part in options.parts or _PARTS:
        began = time.monotonic()
        results[part] = _PARTS[part](options)
        print(f"  ({part}: {time.monotonic() - began:.0f} s)\n", flush=True)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {options.output}")


def measure_iteration(options: argparse.Namespace) -> dict[str, Any]:
    """Project against plain loop on one and two threads, and the equality of their losses and gradients."""
    measured: dict[str, Any] = {}
    for threads in (1, 2):
        pair = make_pair(threads)
        pair.iterate()  # warm-up: memory, caches, the recogniser's first batch
        differences = {
            "loss": abs(pair.project_loss - pair.plain.loss),
            "gradient": largest_gradient_difference(pair),
        }
        pair.project_seconds.clear()
        pair.plain_seconds.clear()
        for _ in range(options.iterations):
            pair.iterate()
        result = summarise(pair) | {"differences": differences}
        measured[f"{threads} threads"] = result
        print(f"iteration, {threads} thread{'s' if threads > 1 else ''}, median (lowest - highest) seconds")
        for phase, ours in result["project"].items():
            plain = result["plain"][phase]
            share = result["plain_shares"].get(phase)
            print(f"  {phase:9} project {_text(ours)}   plain {_text(plain)}{f'  {share:4.0%}' if share else ''}")
        ratio = result["ratio"]
        print(f"  ratio of totals, pair by pair: {ratio['median']:.2f} ({ratio['low']:.2f} - {ratio['high']:.2f})")
        print(f"  after one iteration: loss differs by {differences['loss']:.1e}, gradient by", end=" ")
        print(f"{differences['gradient']:.1e} of its norm")
    return measured


def measure_scaling(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds an iteration against B, G and steps, one thread."""
    settings = {
        "B": [f"rollout.candidates={n}" for n in (4, 8, 12, 24)],
        "G": [f"rollout.group_size={n}" for n in (4, 8, 16)],
        "N": [f"model.num_steps={n}" for n in (6, 8, 16)],
    }
    measured: dict[str, Any] = {}
    for name, overrides in settings.items():
        for override in overrides:
            trainer = make_pair(1, (override,)).trainer
            trainer.iterate()
            totals, records = [], []
            for _ in range(max(3, options.iterations // 3)):
                began = time.perf_counter()
                records.append(trainer.iterate())
                totals.append(time.perf_counter() - began)
            share = median(r["seconds"]["candidates"] for r in records) / median(totals)
            measured[override] = {"seconds": median(totals), "candidates_share_of_time_without_scoring": share}
            print(f"  {name} {override:24} {median(totals):.3f} s an iteration")
    return measured


def measure_startup(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of whole processes: the help page, and importing what a run needs."""
    commands = {
        "adagrpo --help": [sys.executable, "-m", "harness.cli", "--help"],
        "import a run's modules": [sys.executable, "-c", "import harness.session"],
    }
    measured = {}
    for name, command in commands.items():
        measured[name] = _seconds_of(lambda command=command: subprocess.run(command, check=True, capture_output=True))
        print(f"  {name:28} {measured[name]:.2f} s")
    measured["peak memory of this process, MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return measured


def _seconds_of(call: Callable[[], Any], repeats: int = 5) -> float:
    call()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return median(seconds)


def _text(spread: dict[str, float]) -> str:
    return f"{spread['median']:.3f} ({spread['low']:.3f} - {spread['high']:.3f})"


_PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "iteration": measure_iteration,
    "scaling": measure_scaling,
    "startup": measure_startup,
}

if __name__ == "__main__":
    torch.manual_seed(0)
    main()
