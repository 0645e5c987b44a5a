"""Exact repetition of a run's iteration, from the nearest checkpoint before it; nothing is written to the run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness.config import ConfigError, depends_on_processes, dump
from harness.foundation.errors import HarnessError
from harness.foundation.files import write_atomically
from harness.foundation.places import WORK
from harness.foundation.records import read_lines
from harness.runs.directory import RunDirectory
from harness.trained.checkpoints import run_in


def replay(folder: Path, iteration: int, say: Callable[[str], None]) -> bool:
    """Train from the nearest complete checkpoint, or from the start, until the iteration is done or fails again.

    This process alone trains, even if several trained the run: sums may differ by rounding. A failure is described in a
    file under results/replays.

    Args:
        folder: directory of the run.
        iteration: number of the iteration, from 1.
        say: called with lines of progress, and with the result.

    Returns:
        Whether the iteration is as it was logged or, if it was not logged, failed again.

    Raises:
        ConfigError: there is no run, it has no such iteration, or its processes had capabilities of their own.
    """
    run = run_in(folder)
    if depends_on_processes(run.config):
        raise ConfigError(
            f"{folder}: each of its {run.config.runtime.processes} processes has a capability of its own "
            "(capability.sync=per_rank), so one process cannot repeat an iteration"
        )
    if not 1 <= iteration <= run.config.iterations:
        raise ConfigError(f"{folder}: has iterations 1 to {run.config.iterations}, not {iteration}")
    with TemporaryDirectory(prefix="replay-") as scratch:
        return _replay(run, _copied(run, Path(scratch)), iteration, say)


def _copied(run: RunDirectory, scratch: Path) -> RunDirectory:
    """Copy of the run, to be executed in one process in a folder of its own."""
    config = run.config
    runtime = config.runtime.model_copy(update={"processes": 1, "machines": 1, "engine": "ddp"})
    copy = RunDirectory(scratch / run.run_id)
    write_atomically(copy.folder / "config.yaml", dump(config.model_copy(update={"runtime": runtime})))
    shutil.copy(run.folder / "identity.json", copy.folder)
    if run.checkpoints.exists():
        copy.checkpoints.symlink_to(run.checkpoints.resolve())
    return copy


def _replay(run: RunDirectory, copy: RunDirectory, iteration: int, say: Callable[[str], None]) -> bool:
    from harness.training.checkpointing import load_state
    from harness.training.divergence import dump as dump_failure
    from harness.training.session import Session

    session = Session(copy, say)
    trainer = session.trainer
    state = load_state(copy, trainer.engine, session.processes, before=iteration)
    if state is not None:
        trainer.load_state_dict(state)
    say(f"from iteration {trainer.iteration}, {iteration - trainer.iteration} to train")
    logged = {line["iteration"]: line for line in read_lines(run.folder / "metrics.jsonl")}
    try:
        while trainer.iteration < iteration:
            record = trainer.iterate()
    except HarnessError as error:
        path = dump_failure(WORK / "results" / "replays" / run.run_id, trainer, error)
        say(f"iteration {trainer.iteration} fails: {error}; {path} says what it was at")
        return trainer.iteration == iteration and iteration not in logged
    say(json.dumps(record, indent=1, ensure_ascii=False))
    if iteration not in logged:
        say(f"iteration {iteration} was not logged, and does not fail here")
        return False
    return _is_as_logged(record, logged[iteration], say)


def _is_as_logged(record: dict[str, Any], logged: dict[str, Any], say: Callable[[str], None]) -> bool:
    ours = json.loads(json.dumps(record))
    differing = [key for key in sorted({*ours, *logged} - {"seconds"}) if ours.get(key) != logged.get(key)]
    for key in differing:
        say(f"{key}: {ours.get(key)}, logged {logged.get(key)}")
    if not differing:
        say(f"iteration {record['iteration']}: as logged, to the last bit")
    return not differing
