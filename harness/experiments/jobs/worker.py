"""A worker: executes the runs of a queue, one after another, in one process, so that imports are paid once.

``python -m harness.experiments.jobs.worker QUEUE CURRENT`` runs in every process of a placement; the main one
claims the runs.
"""

import argparse
import gc
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from harness.experiments.jobs.queue import claim_next, read_queue
from harness.experiments.jobs.streams import end_with_input, output_to
from harness.output import never_failing
from harness.runs.directory import RunDirectory
from harness.training.processes import Processes, make_accelerator
from harness.training.session import Session


def work(runs: Sequence[RunDirectory], current: Path) -> bool:
    """Execute runs until none is left to claim; a failed one, named in its status.json, does not stop the others.

    Args:
        runs: the queue.
        current: file that names the run at work, while there is one.

    Returns:
        False if it ended early, after a failed run, because this process cannot be trusted any more.

    Raises:
        ConfigError: the processes are not what the runs need.
    """
    config = runs[0].config
    processes = Processes(make_accelerator(config), config.runtime.timeout_seconds)
    while True:
        claim = claim_next(runs) if processes.is_main else None
        chosen = processes.broadcast(None if claim is None else str(claim.run.folder), "claiming the next run")
        if chosen is None:
            return True
        run = RunDirectory(Path(chosen))
        if claim is not None:
            current.write_text(run.run_id, encoding="utf-8")
        with output_to(run.folder / "log.txt"):
            if claim is not None:
                print(f"attempt {claim.attempt}", flush=True)
            succeeded = _execute(run)
        # After an error other processes wait for this one for ever, and a CUDA context may be broken for good.
        if not succeeded and (processes.count > 1 or processes.device.type == "cuda"):
            return False
        if claim is not None:
            claim.lock.close()
            current.unlink()
        # The next run's model need not fit into memory beside this one's.
        gc.collect()
        torch.cuda.empty_cache()


def _execute(run: RunDirectory) -> bool:
    try:
        with run.failure_noted():
            Session(run, say=lambda line: print(line, flush=True)).execute()
    except Exception:  # noqa: BLE001 - whatever stopped this run, the others go on; the status and the log name it
        traceback.print_exc()
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 1 if the worker ended early."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.experiments.jobs.worker", description="Execute the runs of a queue."
    )
    parser.add_argument("queue", type=Path, help="file with one run directory a line")
    parser.add_argument("current", type=Path, help="file that will name the run at work, while there is one")
    parser.add_argument("--end-with-input", action="store_true", help="end when standard input does")
    options = parser.parse_args(arguments)
    if options.end_with_input:
        end_with_input()
    return 0 if work(read_queue(options.queue), options.current) else 1


if __name__ == "__main__":
    with never_failing():
        sys.exit(main())
