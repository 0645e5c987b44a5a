"""Worker: executes the jobs of a launch one after another in one process, so that imports are paid once.

``python -m harness.experiments.jobs.worker QUEUE CURRENT`` runs in every process of a placement; the main process
claims the jobs.
"""

import gc
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.experiments.jobs.job import Job, claim_next
from harness.experiments.jobs.process import PATIENCE_SECONDS
from harness.foundation.output import never_failing


def work(jobs: Sequence[Job], current: Path) -> bool:
    """Execute jobs until none is left to claim; a failed job does not stop the others.

    Args:
        jobs: jobs of the launch.
        current: file that contains the id of the current job, while there is one.

    Returns:
        False if it ended early, after a failed job, because this process can no longer be trusted; else True.
    """
    config, processes = jobs[0].config, None
    if config.runtime.processes > 1:
        from harness.training.processes import Processes, make_accelerator

        processes = Processes(make_accelerator(config), config.runtime.timeout_seconds)
    while True:
        claim = claim_next(jobs) if processes is None or processes.is_main else None
        chosen = claim and claim[0].id
        if processes is not None:
            chosen = processes.broadcast(chosen, "claiming the next job")
        if chosen is None:
            return True
        job = next(job for job in jobs if job.id == chosen)
        if claim is not None:
            current.write_text(job.id, encoding="utf-8")
        with output_to(job.log):
            succeeded = _call(job)
        # Torch, if the job has imported it; a worker itself does not need it.
        torch = sys.modules.get("torch")
        # After an error other processes wait for this one for ever, and a CUDA context may be broken for good.
        if not succeeded and (processes is not None or (torch is not None and torch.cuda.is_initialized())):
            return False
        # On a full disk the record of the job's end may be missing; the job would be claimed again for ever.
        if processes is None and job.state().name == "waiting":
            return False
        if claim is not None:
            claim[1].close()
            current.unlink()
        # The next job's models may not fit into memory beside those of this job.
        gc.collect()
        if torch is not None:
            torch.cuda.empty_cache()


def _call(job: Job) -> bool:
    try:
        job.call()
    except Exception as error:  # noqa: BLE001 - whatever stopped this job, the others go on; its state and log name it
        traceback.print_exc()
        job.note(error)
        return False
    return True


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Context in which the output of this process and its children is appended to a file."""
    kept = {number: os.dup(number) for number in (1, 2)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        _redirect(dict.fromkeys(kept, log.fileno()))
    try:
        yield
    finally:
        _redirect(kept)
        for copy in kept.values():
            os.close(copy)


def _redirect(targets: dict[int, int]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    for number, target in targets.items():
        os.dup2(target, number)


def end_with_input() -> None:
    """End this process when its standard input ends, because the other end of the pipe was closed or died: by SIGTERM,
    then by SIGKILL.
    """

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: QUEUE has the pickled jobs, CURRENT names the current one. Returns 1 if the worker ended early."""
    queue, current = map(Path, sys.argv[1:] if arguments is None else arguments)
    end_with_input()
    return 0 if work(pickle.loads(queue.read_bytes()), current) else 1


if __name__ == "__main__":
    with never_failing():
        sys.exit(main())
