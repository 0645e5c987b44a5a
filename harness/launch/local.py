"""Runs a list of runs on this machine, several at a time, each in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.config import ROOT
from harness.launch.progress import latest_validation, standings
from harness.runs import RunDirectory


@dataclass(frozen=True)
class Outcome:
    """How a list of runs ended."""

    finished: list[RunDirectory]
    failed: dict[str, str]
    """Reason by run id."""


def worker_command(run: RunDirectory, processes: int) -> list[str]:
    """The command line of one run: plain Python for one process, torchrun for several.

    ``accelerate launch --cpu --num_processes 2`` silently runs one process, so torchrun starts CPU processes too; the
    trainer's Accelerator finds its place in the environment torchrun sets, and checks the world size.
    """
    if processes == 1:
        return [sys.executable, "-m", "harness.cli", "train", "--resume", str(run.folder)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*launcher, "-m", "harness.cli", "train", "--resume", str(run.folder)]


def run_all(runs: Sequence[RunDirectory], slots: int, say: Callable[[str], None]) -> Outcome:
    """Execute runs, at most ``slots`` at a time; finished ones are skipped, unfinished ones resumed.

    A failed run does not stop the others. Ctrl-C ends the workers, which resume at the next call.
    """
    outcome = Outcome([run for run in runs if run.status()["state"] == "finished"], {})
    waiting = [run for run in runs if run not in outcome.finished]
    if outcome.finished:
        say(f"{len(outcome.finished)} of {len(runs)} runs are finished already")
    # A worker that dies before it says anything must not pass for the state an earlier one left.
    for run in waiting:
        run.set_status("waiting", run.status()["iteration"], run.config.iterations)
    running: dict[RunDirectory, subprocess.Popen[bytes]] = {}
    # A terminated launcher must end its workers as an interrupted one does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began, start_share, last_line = time.monotonic(), _share_done(runs), ""
    try:
        while waiting or running:
            while waiting and len(running) < slots:
                run = waiting.pop(0)
                running[run] = _start(run)
            time.sleep(0.5)
            for run in [run for run, process in running.items() if process.poll() is not None]:
                _settle(run, running.pop(run).returncode, outcome, say)
            share, elapsed = _share_done(runs), time.monotonic() - began
            line = f"{share:.0%} done, {len(running)} running, {len(waiting)} waiting"
            if line != last_line and (waiting or running):
                last_line = line
                left = elapsed * (1 - share) / (share - start_share) if share > start_share else None
                say(line + (f", about {left / 60:.1f} min left" if left is not None else ""))
    except KeyboardInterrupt:
        say("interrupted: the same command continues where the runs stopped")
        raise
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    for line in standings(runs):
        say(line)
    return outcome


def _start(run: RunDirectory) -> subprocess.Popen[bytes]:
    config = run.config
    # One thread a slot: two single-threaded workers beat one worker with two threads.
    environment = os.environ | {"OMP_NUM_THREADS": str(config.runtime.threads), "PYTHONUNBUFFERED": "1"}
    with (run.folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            worker_command(run, config.runtime.processes), stdout=log, stderr=log, env=environment, cwd=ROOT
        )


def _settle(run: RunDirectory, code: int, outcome: Outcome, say: Callable[[str], None]) -> None:
    status = run.status()
    if code == 0 and status["state"] == "finished":
        outcome.finished.append(run)
        value, _ = latest_validation(run) or (float("nan"), 0)
        say(f"finished {run.run_id}: trained reward on validation prompts {value:.3f}")
        return
    reason = status["reason"] or f"the worker ended with exit code {code}"
    run.set_status("failed", status["iteration"], run.config.iterations, reason)
    outcome.failed[run.run_id] = reason
    say(f"FAILED {run.run_id}: {reason} (log: {run.folder / 'log.txt'})")


def _share_done(runs: Sequence[RunDirectory]) -> float:
    # From status.json alone: this is asked twice a second, and reading every config would cost the workers.
    statuses = [run.status() for run in runs]
    return sum(status["iteration"] / status["iterations"] for status in statuses) / len(runs)
