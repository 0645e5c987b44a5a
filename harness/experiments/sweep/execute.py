"""Execution of a trial's runs (ordinary run directories) in the sweep worker's process: imports are paid for once."""

import gc
from contextlib import closing
from functools import partial

import torch

from harness.config import RunConfig
from harness.experiments.runs import patiently
from harness.experiments.sweep.trial import OnValidation, RunResult
from harness.foundation.errors import TrainingError
from harness.foundation.records import read_lines
from harness.runs.directory import prepare_run
from harness.training.session import Session

_say = partial(print, flush=True)


def execute_run(config: RunConfig, on_validation: OnValidation) -> RunResult:
    """Execute the run of a configuration; a finished one is only read, an unfinished one is resumed.

    If another worker executes the run, for a trial of the same point, it is waited for.

    Args:
        config: configuration of the run.
        on_validation: called at each validation, see ``ExecuteRun``.

    Raises:
        StopRun: ``on_validation`` raised it; the run is left unfinished.
        ConfigError: as in ``prepare_run`` and ``Session``.
    """
    run = prepare_run(config)
    divergence = None
    # The model of the run before may not fit into memory beside this one's. It is let go of only here, where the
    # exception that ended that run, whose traceback holds it, is no longer being handled.
    gc.collect()
    torch.cuda.empty_cache()
    with closing(run.lock(wait=True)):
        for record in read_lines(run.folder / "eval.jsonl"):
            if record["split"] == "validation":
                on_validation(record["iteration"], record["metrics"])
        if run.status()["state"] != "finished":
            try:
                patiently(run, lambda: Session(run, say=_say, on_validation=on_validation).execute())
            except TrainingError as error:
                divergence = " ".join(str(error).split())
    spent = (read_lines(run.folder / "metrics.jsonl") or [{"total_sample_forwards": 0, "total_train_forwards": 0}])[-1]
    return RunResult(run.run_id, float(spent["total_sample_forwards"] + 3 * spent["total_train_forwards"]), divergence)
