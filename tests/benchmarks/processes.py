"""What is timed in processes of its own: start-up, and grid throughput against slots."""

import json
import os
import subprocess
import sys
from statistics import median
from typing import Any

from harness.config import ROOT
from tests.benchmarks.parts import seconds_of


def measure_startup() -> dict[str, Any]:
    """Seconds of whole processes: the help page, and importing what a run needs."""
    commands = {
        "adagrpo --help": ["-m", "harness.cli", "--help"],
        "import a run's modules": ["-c", "import harness.training.session"],
    }
    measured = {}
    for name, command in commands.items():
        seconds = [seconds_of(lambda command=command: _python(command)) for _ in range(6)][1:]
        measured[name] = median(seconds)
        print(f"  {name:28} {measured[name]:.2f} s")
    return measured


def measure_slots(iterations: int) -> dict[str, Any]:
    """Iterations per second of 1 and 2 processes, one thread each, as the workers of jobs are, and their memory."""
    code = (
        "import json, sys, time\n"
        "from tests.benchmarks.iteration import make_trainer\n"
        "from tests.benchmarks.memory import peak_mebibytes\n"
        "trainer = make_trainer(1)\n"
        "trainer.iterate()\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        f"began = time.perf_counter()\nfor _ in range({iterations}): trainer.iterate()\n"
        f"print(json.dumps([{iterations} / (time.perf_counter() - began), peak_mebibytes()]))\n"
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
        print(f"  {slots} slots: {sum(rates):.2f} iterations per second together, at most {max(peaks):.0f} MiB each")
    return measured


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def _python(arguments: list[str]) -> str:
    process = subprocess.run(
        [sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=dict(os.environ)
    )
    return process.stdout
