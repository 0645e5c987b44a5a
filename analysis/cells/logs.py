"""Folders of runs, as directories or as shards, become tidy frames. Nothing is trained and nothing is written."""

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from analysis.cells.parallel import side_by_side
from analysis.cells.variants import kind_of, name_variants
from analysis.claims import VALIDATION_POINTS
from analysis.runs.columns import Columns
from analysis.runs.gallery import Gallery, read_gallery
from analysis.runs.recorded import name_files, name_repeats
from analysis.runs.runlog import CHOSEN_PROMPT, NUMBERS, RunLog, RunLogError, find_paths, read_directory
from analysis.runs.shards import SUFFIX, read_shard, read_shard_gallery
from harness.trained_reward import TrainedReward, trained_reward

IDENTITY = ["experiment", "run_id", "method", "selection", "fusion", "fusion_weight", "variant", "reward", "seed"]
COLUMNS = [*IDENTITY, "split", "iteration", "metric", "value"]
PROMPT_COLUMNS = [*IDENTITY, "split", "iteration", "metric", "prompt", "value"]
CHOSEN_COLUMNS = [*IDENTITY, "iteration", "slot", "prompt", "rank"]
SUMMARY_COLUMNS = [
    *IDENTITY,
    "model",
    "judges",
    "unseen_judges",
    "state",
    "reason",
    "iteration",
    "iterations",
    "sample_forwards",
    "train_forwards",
    "compute",
    "reward_calls",
    "seconds_per_iteration",
    "train_seconds",
    "evaluation_seconds",
    "processor",
    "files",
    "folder",
]
TRAINING_REWARD = "training_reward"
"""Metric of every evaluation: the trained reward, under one name whatever it is made of."""

TOTALS = {
    "sample_forwards": "total_sample_forwards",
    "train_forwards": "total_train_forwards",
    "reward_calls": "total_reward_calls",
}
COST_METRICS = (*TOTALS.values(), "seconds/iteration")
"""Training metrics that costs are counted from."""
_RUNS_AT_A_TIME = 50
"""Read by one process: no other is started for fewer."""


class ChosenPrompts(NamedTuple):
    """The prompts that a run was trained on, in order."""

    prompts: pa.DictionaryArray
    """Texts, each kept once."""
    ranks: np.ndarray
    """Among the candidates; NaN where none were scored."""


class Logs(NamedTuple):
    """All that a report needs of a folder of runs, read in one pass."""

    runs: pd.DataFrame
    """As of ``load_runs``."""
    summary: pd.DataFrame
    """As of ``load_summary``."""
    test_prompts: Sequence[Mapping[str, np.ndarray]]
    """For each row of ``summary``, values of the last test, prompt by prompt: ``{metric: [prompts]}``."""
    validation_prompts: Sequence[Mapping[str, np.ndarray]]
    """The same of the last validations together, see ``validation_mean``."""
    untrained_prompts: Sequence[Mapping[str, np.ndarray]]
    """The same of the validation before training."""
    chosen_prompts: Sequence[ChosenPrompts]
    """For each row of ``summary``."""
    configs: Sequence[Mapping[str, Any]]
    """Resolved configuration of each row of ``summary``."""
    environments: Sequence[Mapping[str, Any]]
    """Environment of each row of ``summary``."""
    damages: Sequence[str] = ()
    """Why runs were left out that cannot be read."""


class _Run(NamedTuple):
    """What ``Logs`` has of one run."""

    summary: dict[str, Any]
    num_prompts: dict[str, int]
    """Of the last evaluation of each split."""
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    whole: pa.Table
    """Rows of ``Logs.runs``."""
    test_prompts: dict[str, np.ndarray]
    validation_prompts: dict[str, np.ndarray]
    untrained_prompts: dict[str, np.ndarray]
    chosen_prompts: ChosenPrompts


def find_runs(folder: Path) -> list[Path]:
    """Run directories and shards in a folder, at any depth, sorted; the folder may itself be a run directory.

    A run that is there as a directory and as a shard counts once, as the shard, which is finished.

    Raises:
        RunLogError: the folder does not exist, or holds two directories or two shards of one run.
    """
    found: dict[tuple[str, str], Path] = {}
    for path in find_paths(folder, SUFFIX):
        # The parent is the experiment, which a run's name leaves out: two experiments may share a run.
        key = path.parent.name, path.name.removesuffix(SUFFIX)
        other = found.get(key)
        if other is not None and other.is_dir() == path.is_dir():
            raise RunLogError(f"{other} and {path} are the same run: read one of their folders")
        if other is None or other.is_dir():
            found[key] = path
    return sorted(found.values())


def load_runs(folder: Path, train_metrics: Collection[str] | None = None) -> pd.DataFrame:
    """All numbers that the runs in a folder logged, one a row.

    Args:
        folder: see ``find_runs``. Runs may be unfinished or have just started.
        train_metrics: metrics of training iterations to keep; they are most of all rows. None for all.

    Returns:
        Columns ``COLUMNS``. ``split`` is train, validation or test; nested metrics are flattened (``seconds/update``).
        Evaluations also have the metric ``training_reward``. ``fusion_weight`` is 0 without fusion; ``variant`` tells
        runs of a cell apart, see ``name_variants``. Texts are categories: there may be millions of rows.

    Raises:
        RunLogError: names the folder or file that cannot be read.
    """
    return load_logs(folder, train_metrics, with_prompts=False).runs


def load_summary(folder: Path) -> pd.DataFrame:
    """One row a run: what it is, how far it came, what it cost.

    Args:
        folder: see ``find_runs``.

    Returns:
        Columns ``SUMMARY_COLUMNS``. ``state`` is running, finished or failed (``reason`` says why); ``iteration`` of
        ``iterations`` are done; forwards and reward calls are totals; ``compute`` counts network forwards, a trained
        sample as 3; ``unseen_judges`` were not trained on; ``folder`` is the run directory or the shard; ``files``
        tells in which files a run differs from most, see ``analysis.runs.recorded``.

    Raises:
        RunLogError: names the folder or file that cannot be read.
    """
    return load_logs(folder, (), with_prompts=False).summary


def load_prompt_values(folder: Path, split: str = "test") -> pd.DataFrame:
    """Evaluations prompt by prompt.

    Args:
        folder: see ``find_runs``.
        split: test or validation.

    Returns:
        Columns ``PROMPT_COLUMNS``; ``prompt`` is the position in the split's list.

    Raises:
        RunLogError: names the folder or file that cannot be read.
    """

    def of_prompts(log: RunLog) -> pa.Table:
        numbers = pa.concat_tables([log.numbers, _training_reward(log, Columns(log.numbers))])
        return numbers.filter(pc.and_(pc.is_valid(numbers["item"]), pc.equal(numbers["split"], split)))

    return _load_items(folder, of_prompts).rename(columns={"item": "prompt"})[PROMPT_COLUMNS]


def load_chosen_prompts(folder: Path) -> pd.DataFrame:
    """The prompts that were trained on.

    Args:
        folder: see ``find_runs``.

    Returns:
        Columns ``CHOSEN_COLUMNS``, one row a trained prompt: ``slot`` counts the prompts of an iteration; ``rank`` is
        the prompt's among its candidates, as the run logged it, NaN where none were scored.

    Raises:
        RunLogError: names the folder or file that cannot be read.
    """
    frame = _load_items(folder, lambda log: log.numbers.filter(pc.equal(log.numbers["metric"], CHOSEN_PROMPT)))
    return frame.rename(columns={"item": "slot", "text": "prompt", "value": "rank"})[CHOSEN_COLUMNS]


def load_gallery(run: Path) -> Gallery | None:
    """Pictures of a run directory or shard; None where it has none. Raises RunLogError."""
    return read_gallery(run) if run.is_dir() else read_shard_gallery(run)


def load_logs(
    folder: Path,
    train_metrics: Collection[str] | None = None,
    with_prompts: bool = True,
    skip_damaged: bool = False,
) -> Logs:
    """Read every run of a folder once.

    Args:
        folder: see ``find_runs``.
        train_metrics: metrics of training iterations to keep; None for all.
        with_prompts: whether to read what concerns single prompts, too.
        skip_damaged: leave runs out that cannot be read, and say so on stderr and in ``Logs.damages``.

    Raises:
        RunLogError: names the folder or file that cannot be read; with ``skip_damaged`` only if no run is left.
    """
    read = None if train_metrics is None else {*train_metrics, *COST_METRICS}
    of_costs_alone = [] if train_metrics is None else [name for name in COST_METRICS if name not in train_metrics]

    def load(path: Path) -> _Run | str:
        try:
            log = _read(path, read, with_prompts)
        except RunLogError as error:
            if not skip_damaged:
                raise
            return str(error)
        numbers = Columns(log.numbers)
        reward = Columns(_training_reward(log, numbers))
        kept = numbers.is_whole & ~numbers.of_metric(*of_costs_alone)
        return _Run(
            summary=_identity(log) | _progress(log) | _costs(numbers),
            num_prompts=numbers.latest("num_prompts"),
            config=log.config,
            environment=log.environment,
            whole=pa.concat_tables([numbers.whole_rows(kept), reward.whole_rows(reward.is_whole)]),
            test_prompts=_by_prompt(numbers, reward, "test", 1),
            validation_prompts=_by_prompt(numbers, reward, "validation", VALIDATION_POINTS),
            untrained_prompts=_untrained_by_prompt(numbers, reward),
            chosen_prompts=_chosen_prompts(numbers),
        )

    outcomes = side_by_side(load, find_runs(folder), _RUNS_AT_A_TIME)
    loaded = [run for run in outcomes if isinstance(run, _Run)]
    damages = [damage for damage in outcomes if isinstance(damage, str)]
    if damages and not loaded:
        raise RunLogError(damages[0])
    for damage in damages:
        print(f"warning: left out: {damage}", file=sys.stderr)
    configs, environments = [run.config for run in loaded], [run.environment for run in loaded]
    files = name_files([kind_of(config) for config in configs], environments, [run.num_prompts for run in loaded])
    summary = [
        identity | {"files": name}
        for identity, name in zip(
            _named([run.summary for run in loaded], configs, environments, files), files, strict=True
        )
    ]
    return Logs(
        runs=_frame(summary, [run.whole for run in loaded])[COLUMNS],
        summary=pd.DataFrame(summary, columns=SUMMARY_COLUMNS),
        test_prompts=[run.test_prompts for run in loaded],
        validation_prompts=[run.validation_prompts for run in loaded],
        untrained_prompts=[run.untrained_prompts for run in loaded],
        chosen_prompts=[run.chosen_prompts for run in loaded],
        configs=configs,
        environments=environments,
        damages=damages,
    )


def _read(path: Path, train_metrics: Collection[str] | None, with_items: bool) -> RunLog:
    return (read_directory if path.is_dir() else read_shard)(path, train_metrics, with_items)


def _load_items(folder: Path, choose: Callable[[RunLog], pa.Table]) -> pd.DataFrame:
    """The rows that ``choose`` takes of each run, with the run's identity."""
    logs: list[tuple[dict[str, Any], Mapping[str, Any], Mapping[str, Any]]] = []
    rows, num_prompts = [], []
    for path in find_runs(folder):
        log = _read(path, (), with_items=True)
        logs.append((_identity(log), log.config, log.environment))
        rows.append(choose(log))
        num_prompts.append(Columns(log.numbers).latest("num_prompts"))
    identities, configs, environments = zip(*logs, strict=True) if logs else ((), (), ())
    files = name_files([kind_of(config) for config in configs], environments, num_prompts)
    return _frame(_named(identities, configs, environments, files), rows)


def _named(
    identities: Sequence[dict[str, Any]],
    configs: Sequence[Mapping[str, Any]],
    environments: Sequence[Mapping[str, Any]],
    files: Sequence[str],
) -> list[dict[str, Any]]:
    """Identities with their variants: of runs with one variant and seed none is taken for another."""
    named = [
        identity | {"variant": variant}
        for identity, variant in zip(identities, name_variants(configs, environments, files), strict=True)
    ]
    cells = [tuple(identity[name] for name in IDENTITY if name != "run_id") for identity in named]
    repeats = name_repeats(cells, [identity["run_id"] for identity in named])
    return [
        identity | {"variant": ", ".join(filter(None, (identity["variant"], repeat)))}
        for identity, repeat in zip(named, repeats, strict=True)
    ]


def _identity(log: RunLog) -> dict[str, Any]:
    config = log.config
    fusion = bool(config["fusion"]["enabled"])
    return {
        "experiment": str(config["experiment"]),
        "run_id": log.run_id,
        "method": str(config["method"]["kernel"]),
        "selection": str(config["selection"]),
        "fusion": fusion,
        "fusion_weight": float(config["fusion"].get("weight", 1.0)) if fusion else 0.0,
        "reward": TrainedReward(config["reward"]).name,
        "seed": int(config["seed"]),
    }


def _progress(log: RunLog) -> dict[str, Any]:
    config = log.config
    judges = [str(judge) for judge in config.get("evaluation", {}).get("judges", [])]
    return {
        "model": config.get("model", {}).get("path", ""),
        "judges": judges,
        # A component of weight 0 is only measured.
        "unseen_judges": [judge for judge in judges if not config["reward"].get(judge)],
        "state": log.state,
        "reason": log.status.get("reason") or "",
        "iteration": log.iteration,
        "iterations": config["iterations"],
        "processor": str(log.environment.get("processor", "")),
        "folder": log.path,
    }


def _costs(numbers: Columns) -> dict[str, Any]:
    def values(metric: str) -> np.ndarray:
        return numbers.value[numbers.of_metric(metric)]

    totals = {name: int(logged[-1]) if len(logged := values(metric)) else 0 for name, metric in TOTALS.items()}
    seconds = values("seconds/iteration")
    return totals | {
        "compute": totals["sample_forwards"] + 3 * totals["train_forwards"],
        "seconds_per_iteration": float(seconds.mean()) if len(seconds) else float("nan"),
        "train_seconds": float(seconds.sum()),
        "evaluation_seconds": float(values("seconds").sum()),
    }


def _by_prompt(numbers: Columns, reward: Columns, split: str, num_points: int) -> dict[str, np.ndarray]:
    """Values prompt by prompt after training, ``{metric: [prompts]}``: means over the last evaluations."""

    def after_training(rows: Columns) -> np.ndarray:
        return rows.of_split(split) & ~rows.is_whole & (rows.iteration > 0)

    points = np.unique(numbers.iteration[after_training(numbers)])[-num_points:]
    if not len(points):
        return {}
    values: dict[str, np.ndarray] = {}
    for rows in (numbers, reward):
        values |= rows.by_metric(after_training(rows) & (rows.iteration >= points[0]))
    # Series are evaluation after evaluation; one with another number of prompts cannot be averaged.
    return {
        metric: series.reshape(len(points), -1).mean(axis=0)
        for metric, series in values.items()
        if len(series) % len(points) == 0
    }


def _untrained_by_prompt(numbers: Columns, reward: Columns) -> dict[str, np.ndarray]:
    """Values prompt by prompt of the validation before training, ``{metric: [prompts]}``."""
    values: dict[str, np.ndarray] = {}
    for rows in (numbers, reward):
        values |= rows.by_metric(rows.of_split("validation") & ~rows.is_whole & (rows.iteration == 0))
    return values


def _chosen_prompts(numbers: Columns) -> ChosenPrompts:
    where = numbers.of_metric(CHOSEN_PROMPT)
    texts = numbers.table["text"].filter(pa.array(where)).dictionary_encode().combine_chunks()
    return ChosenPrompts(texts, numbers.value[where])


def _training_reward(log: RunLog, numbers: Columns) -> pa.Table:
    """The trained reward's rows, as the run logged them in every evaluation, under the name ``TRAINING_REWARD``."""
    is_evaluation = ~numbers.of_split("train")
    wanted = is_evaluation
    if is_evaluation.any():
        try:
            metric = trained_reward(log.config).logged_as(numbers.names(is_evaluation))
        except ValueError as error:
            raise RunLogError(f"{log.path}: {error}") from None
        wanted = is_evaluation & numbers.of_metric(metric)
        missing = numbers.points(is_evaluation & numbers.is_whole) - numbers.points(wanted & numbers.is_whole)
        for split, iteration in sorted(missing):
            raise RunLogError(f"{log.path}: {split} at iteration {iteration} has no metric {metric!r}, as others have")
    total = numbers.table.filter(pa.array(wanted))
    name = pa.DictionaryArray.from_arrays(np.zeros(len(total), dtype=np.int32), [TRAINING_REWARD])
    return total.set_column(total.schema.get_field_index("metric"), total.schema.field("metric"), name)


def _frame(identities: Sequence[Mapping[str, Any]], tables: Sequence[pa.Table]) -> pd.DataFrame:
    """The runs' rows with their identity in front; texts are categories in alphabetical order."""
    frame = pa.concat_tables(tables or [NUMBERS.empty_table()]).unify_dictionaries().to_pandas()
    for name in ("split", "metric"):
        frame[name] = frame[name].cat.set_categories(sorted(frame[name].cat.remove_unused_categories().cat.categories))
    counts = [len(table) for table in tables]
    kinds = {"fusion": bool, "fusion_weight": float, "seed": int}
    for name in IDENTITY:
        of_runs = [identity[name] for identity in identities]
        if name in kinds:
            frame[name] = np.repeat(np.array(of_runs, dtype=kinds[name]), counts)
        else:
            codes, categories = pd.factorize(pd.Index(of_runs, dtype="str"), sort=True)
            frame[name] = pd.Categorical.from_codes(np.repeat(codes, counts), categories)
    return frame
