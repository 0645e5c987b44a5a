"""Executes a trial's runs: ordinary run directories, in the sweep worker's process, so that imports are paid once."""

import gc
from contextlib import closing

import torch

from harness.config import RunConfig
from harness.errors import StopRun, TrainingError
from harness.experiments.sweep.runlog import costs, evaluations
from harness.experiments.sweep.trial import OnValidation, RunResult
from harness.runs.directory import prepare_run
from harness.training.session import Session


def execute_run(config: RunConfig, on_validation: OnValidation) -> RunResult:
    """Execute the run of a configuration: a finished one is only read, an unfinished one is continued.

    A run that another worker is at, for a trial of the same point, is waited for.

    Args:
        config: the run.
        on_validation: see ``ExecuteRun``.

    Raises:
        StopRun: ``on_validation`` did; the run is left unfinished.
        ConfigError: as ``prepare_run`` and ``Session``.
    """
    run = prepare_run(config)
    divergence = None
    with closing(run.lock(wait=True)):
        for iteration, metrics in evaluations(run, "validation"):
            on_validation(iteration, metrics)
        if run.status()["state"] != "finished":
            try:
                Session(run, say=lambda line: print(line, flush=True), on_validation=on_validation).execute()
            except StopRun:
                raise
            except Exception as error:
                reason = " ".join(str(error).split())
                run.set_status("failed", run.status()["iteration"], config.iterations, reason)
                if not isinstance(error, TrainingError):
                    raise
                divergence = reason
            finally:
                # The next run's model need not fit into memory beside this one's.
                gc.collect()
                torch.cuda.empty_cache()
    return RunResult(run.run_id, costs(run), divergence)
