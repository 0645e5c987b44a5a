"""``python -m tests.benchmarks``: times the project, prints tables, and writes results/benchmarks/speed.json."""

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from harness.config import ROOT
from harness.foundation.processor import has_bf16
from harness.runs.identity import environment
from tests.benchmarks import parts
from tests.benchmarks.analysis import measure_analysis
from tests.benchmarks.fidelity import measure_fidelity
from tests.benchmarks.iteration import time_pair

OUTPUT = ROOT / "results" / "benchmarks" / "speed.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what was asked for (default: everything)."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Time the project.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(_PARTS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=12, help="timed iterations of each loop (default: 12)")
    parser.add_argument("--runs", type=int, default=2000, help="synthetic runs to analyse (default: 2000)")
    parser.add_argument("--checkpoints", nargs="+", default=["base"], help="of fidelity: base, or runs (default: base)")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    unknown = [part for part in options.parts if part not in _PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}")
    if min(options.rounds, options.runs) < 1:
        parser.error("--rounds and --runs must be at least 1")
    results = json.loads(options.output.read_text()) if options.output.exists() else {}
    for part in options.parts or [part for part in _PARTS if part != "fidelity" or has_bf16()]:
        print(part, flush=True)
        began = time.monotonic()
        results[part] = {"environment": environment(), **_PARTS[part](options)}
        print(f"  (measured in {time.monotonic() - began:.0f} s)\n", flush=True)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {options.output}")


def measure_iteration(options: argparse.Namespace) -> dict[str, Any]:
    """Project against plain loop, exact and fast, on one and two threads, each pinned to as many cores.

    tests/harness/test_plain_loop.py has that both loops are equal.
    """
    measured: dict[str, Any] = {}
    cores = sorted(os.sched_getaffinity(0))
    for threads, arithmetic in itertools.product((1, 2), ("exact", "fast") if has_bf16() else ("exact",)):
        os.sched_setaffinity(0, cores[:threads])
        # A process of its own: OpenVINO keeps to the cores that its process had when it was loaded.
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            result = process.submit(time_pair, threads, arithmetic, options.rounds).result()
        os.sched_setaffinity(0, cores)
        measured[f"{threads} threads, {arithmetic}"] = result
        print(f"  threads {threads}, {arithmetic}: median (lowest - highest) seconds, the plain loop's shares")
        for phase, ours in result["project"].items():
            share = result["plain_shares"].get(phase)
            print(f"    {phase:9} project {_text(ours)}   plain {_text(result['plain'][phase])}", end="")
            print(f"  {share:4.0%}" if share else "")
        print(f"    ratio of totals, pair by pair: {_text(result['ratio'])}")
    return measured


def _text(spread: dict[str, float]) -> str:
    return f"{spread['median']:.3f} ({spread['low']:.3f} - {spread['high']:.3f})"


_PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "iteration": measure_iteration,
    "variants": lambda options: parts.measure_variants(options.rounds),
    "rules": lambda options: parts.measure_rules(options.rounds),
    "fidelity": lambda options: measure_fidelity(options.checkpoints, "study"),
    "analysis": lambda options: measure_analysis(options.runs),
}

if __name__ == "__main__":
    torch.manual_seed(0)
    main()
