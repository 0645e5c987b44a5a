"""Cost of runs, estimated before they run: pictures, forward passes, hours, disk. Nothing is written."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from statistics import mean

from analysis.cells.costs import Rates, measured_rates
from harness.config import ConfigError, RunConfig
from harness.config.cells import cell_names
from harness.foundation.records import BROKEN
from harness.prompts.lists import read_prompts
from harness.runs.directory import RunDirectory, find_run
from harness.runs.identity import changes_of, note_on_code
from harness.training.accounting import expected_cost


@cache
def num_prompts(path: str) -> int:
    """Number of prompts in a list; 0 if it cannot be read, which ``find_run`` reports."""
    try:
        return len(read_prompts(path).prompts)
    except ConfigError:
        return 0


def evaluation_pictures(config: RunConfig) -> tuple[int, int]:
    """Number of pictures that a run's evaluations draw: of the model in training, and of the untrained one.

    Validations, each with a gallery, are made before training, at every interval and at the end; the runs of an
    experiment share those of the untrained model.
    """
    settings, prompts = config.evaluation, config.prompts
    validation, test = num_prompts(prompts.validation), num_prompts(prompts.test) * settings.test_noises
    validations = -(-config.iterations // settings.interval)  # the last iteration counts, on the interval or not
    validated, gallery = min(settings.validation_prompts, validation), min(settings.gallery, validation)
    trained = validations * validated + (1 + validations) * gallery + test * settings.test
    return trained, validated + test * settings.base_test


def expected_forwards(config: RunConfig) -> int:
    """Sample forward passes of a run over all processes: training, a trained sample counting three, and evaluations."""
    pictures = sum(evaluation_pictures(config)) * (config.evaluation.num_steps or config.model.num_steps)
    return pictures + config.iterations * expected_cost(config).forwards


def expected_seconds(config: RunConfig, rates: Rates) -> float:
    """Expected seconds of a run, without the evaluation of the untrained model, which an experiment makes once."""
    cost = expected_cost(config)
    # Not counted again: the measured seconds of a scored picture include its share of the gallery.
    settings = config.evaluation.model_copy(update={"gallery": 0})
    scored = evaluation_pictures(config.model_copy(update={"evaluation": settings}))[0]
    training = cost.forwards * rates.per_forward + cost.reward_calls * rates.per_reward_call
    return config.iterations * training + scored * rates.per_picture


def plan(
    configs: Sequence[RunConfig], slots: int, is_kept: Callable[[RunDirectory], bool] = lambda run: False
) -> list[str]:
    """Lines to print: runs by cell and state, then the iterations, hours and disk space that are left.

    Args:
        configs: configurations of the runs.
        slots: number of runs at a time.
        is_kept: tells whether a finished run is kept elsewhere, so that it need not be executed.

    Raises:
        ConfigError: as in ``find_run``.
    """
    runs = [(config, find_run(config)) for config in configs]
    states = ["finished" if is_kept(run) else _state(run) for _, run in runs]
    cells: dict[str, Counter[str]] = {}
    for cell, state in zip(cell_names(configs), states, strict=True):
        cells.setdefault(cell, Counter())[state] += 1
    width = max(map(len, cells))
    lines = [f"{cell:{width}}  {', '.join(f'{n} {state}' for state, n in own.items())}" for cell, own in cells.items()]
    lines += [
        f"{r.run_id}: {r.status()['reason']}" for (_, r), state in zip(runs, states, strict=True) if state in BROKEN
    ]
    unfinished = [pair for pair, state in zip(runs, states, strict=True) if state != "finished"]
    left = [config.iterations - run.status()["iteration"] for config, run in unfinished]
    lines += ["", f"{len(runs)} runs in {len(cells)} cells; {len(unfinished)} runs and {sum(left):,} iterations left"]
    lines += note_on_code(map(changes_of, {run.folder for _, run in runs}))
    folder = runs[0][1].folder.parent
    rates = measured_rates(folder)
    if rates is None:
        return [*lines, "hours and disk: not known before a run of this experiment has finished"]
    shares = [count / config.iterations for count, (config, _) in zip(left, unfinished, strict=True)]
    seconds = [expected_seconds(config, rates) for config, _ in unfinished]
    hours = sum(share * of_run for share, of_run in zip(shares, seconds, strict=True)) / 3600
    disk = len(unfinished) * _bytes_per_run(folder) / 1e6
    basis = f"measured on {rates.num_runs} finished run{'s' if rates.num_runs > 1 else ''}"
    return [*lines, f"about {hours / slots:.2f} hours on {slots} slots ({hours:.2f} of work), {disk:.0f} MB; {basis}"]


def require_different(runs: Iterable[RunDirectory]) -> None:
    """Raise ConfigError if a run occurs twice: a value was given twice, or a setting that its cell does not read."""
    [(run_id, count)] = Counter(run.run_id for run in runs).most_common(1)
    if count > 1:
        raise ConfigError(
            f"{run_id}: {count} cells have this run, since a value is given twice or a setting is not read; leave one"
        )


def _state(run: RunDirectory) -> str:
    if not run.folder.exists():
        return "new"
    state = run.status()["state"]
    return state if state in ("finished", *BROKEN) else "unfinished"


def _bytes_per_run(experiment: Path) -> float:
    """Mean size of an experiment's finished runs, in bytes."""
    runs = [RunDirectory(path.parent) for path in experiment.glob("*/status.json")]
    finished = [run.folder for run in runs if run.status()["state"] == "finished"]
    return mean(sum(file.stat().st_size for file in run.rglob("*") if file.is_file()) for run in finished)
