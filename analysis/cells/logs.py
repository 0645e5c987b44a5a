"""Read folders of runs, as directories or as shards, into tidy frames. Nothing is trained and nothing is written."""

import json
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.cells.parallel import side_by_side
from analysis.cells.variants import kind_of, name_variants
from analysis.runs.gallery import Gallery, read_gallery
from analysis.runs.recorded import name_files, name_repeats
from analysis.runs.runlog import CHOSEN_PROMPT, NUMBERS, SPLITS, RunLog, find_paths, read_directory
from analysis.runs.shards import SUFFIX, read_shard, read_shard_gallery
from harness.foundation.errors import ConfigError
from harness.foundation.trained_reward import TrainedReward, trained_reward

IDENTITY = ["experiment", "run_id", "method", "selection", "fusion", "fusion_weight", "variant", "reward", "seed"]
COLUMNS = [*IDENTITY, "split", "iteration", "metric", "value"]
SUMMARY_COLUMNS = [
    *(*IDENTITY, "start", "judges", "unseen_judges", "state", "reason", "iteration", "iterations"),
    *("sample_forwards", "train_forwards", "compute", "reward_calls"),
    *("seconds_per_iteration", "train_seconds", "evaluation_seconds", "processor", "files", "folder", "updated"),
    *("config", "environment", "by_prompt", "chosen_prompts"),
]
TRAINING_REWARD = "training_reward"
"""Metric of every evaluation: the trained reward, under the same name whatever its components are."""
VALIDATION_POINTS = 3
"""Number of last validations that are averaged, so that a result does not depend on the last iteration alone."""
_RUNS_AT_A_TIME = 50
"""Runs that one process reads; no further process is started for fewer."""
_CHOSEN = ("train", CHOSEN_PROMPT, True)


class ChosenPrompts(NamedTuple):
    """The prompts that a run was trained on, in order."""

    prompts: pa.DictionaryArray
    """Texts, each stored once."""
    ranks: np.ndarray
    """Ranks among the candidates; NaN where none were scored."""


class Logs(NamedTuple):
    """Everything that a report needs from a folder of runs, read in one pass."""

    runs: pd.DataFrame
    """All numbers of whole splits, one per row, in columns ``COLUMNS``. ``split`` is train, validation or test; nested
    metrics are flattened (``seconds/update``), and evaluations also have the metric ``training_reward``.
    ``fusion_weight`` is 0 without fusion; ``variant`` distinguishes runs with other settings, see ``name_variants``.
    Texts are categories, since there may be millions of rows."""
    summary: pd.DataFrame
    """One row per run, in columns ``SUMMARY_COLUMNS``. ``state`` is that of ``RunLog`` (``reason`` explains a failed or
    incomplete run); ``iteration`` of ``iterations`` are done; forwards and reward calls are totals; ``compute`` counts
    network forwards, a trained sample as 3; ``unseen_judges`` were not trained on; ``folder`` is the run directory or
    the shard; ``files`` names the files in which a run differs from most, see ``analysis.runs.recorded``; ``updated``
    is the time when its state last changed, in ISO 8601; ``config`` is the resolved configuration and ``environment``
    that of ``RunLog``. ``by_prompt`` has final values per prompt, ``{split: {metric: [prompts]}}``: "test" those of the
    last test, "validation" means over the last ``VALIDATION_POINTS`` validations, "untrained" those of the validation
    before training. ``chosen_prompts`` is a ``ChosenPrompts``."""
    damages: Sequence[str] = ()
    """Error messages of runs that were left out because they cannot be read."""


def find_runs(folder: Path) -> list[Path]:
    """Find run directories and shards in a folder, at any depth, sorted; the folder may itself be a run directory.

    A run that exists both as a directory and as a shard counts once, as the shard, which is finished.

    Raises:
        ConfigError: the folder does not exist, or holds two directories or two shards of one run.
    """
    found: dict[tuple[str, str], Path] = {}
    for path in find_paths(folder, SUFFIX):
        # The parent is the experiment, which a run's name leaves out: two experiments may share a run.
        key = path.parent.name, path.name.removesuffix(SUFFIX)
        other = found.get(key)
        if other is not None and other.is_dir() == path.is_dir():
            raise ConfigError(f"{other} and {path} are the same run: read one of their folders")
        if other is None or other.is_dir():
            found[key] = path
    return sorted(found.values())


def load_gallery(run: Path) -> Gallery | None:
    """Load the pictures of a run directory or shard; None if it has none. Raises ConfigError."""
    return read_gallery(run) if run.is_dir() else read_shard_gallery(run)


def load_logs(
    folder: Path | str | Sequence[Path], train_metrics: Collection[str] | None = None, skip_damaged: bool = False
) -> Logs:
    """Read every run of a folder once.

    Args:
        folder: a folder as for ``find_runs``, or paths of runs. Runs may be unfinished or have just started.
        train_metrics: metrics of training iterations to keep, which make up most rows; None keeps all.
        skip_damaged: leave out runs that cannot be read, and report them on stderr and in ``Logs.damages``.

    Raises:
        ConfigError: a folder or file cannot be read, which the message names; if ``skip_damaged``, only if none can.
    """

    def load(path: Path) -> _Loaded | str:
        try:
            return _load(path, train_metrics)
        except ConfigError as error:
            if not skip_damaged:
                raise
            return str(error)

    paths = find_runs(Path(folder)) if isinstance(folder, Path | str) else folder
    outcomes = side_by_side(load, paths, _RUNS_AT_A_TIME)
    loaded = [one for one in outcomes if not isinstance(one, str)]
    damages = [one for one in outcomes if isinstance(one, str)]
    if damages and not loaded:
        raise ConfigError(damages[0])
    for damage in damages:
        print(f"warning: left out: {damage}", file=sys.stderr)
    summary = pd.DataFrame(_named([of_run for of_run, _ in loaded]), columns=SUMMARY_COLUMNS)
    return Logs(_joined(summary, [whole for _, whole in loaded]), summary, damages)


_Loaded = tuple[dict[str, Any], pa.Table]
"""A run's row of ``Logs.summary``, with the number of prompts by split, and its rows of ``Logs.runs``."""


class _Series(NamedTuple):
    """One metric of a split, for whole evaluations or for single prompts."""

    rows: slice
    iterations: np.ndarray
    values: np.ndarray
    """NaN stands for a missing value."""


_ByName = dict[tuple[str, str, bool], _Series]
"""Series by split, metric, and whether it holds single prompts; each is contiguous in a run's numbers."""


def _load(path: Path, train_metrics: Collection[str] | None) -> _Loaded:
    log = (read_directory if path.is_dir() else read_shard)(path)
    series = _series(log.numbers)
    trained = _training_reward(log, series)
    is_kept = np.zeros(len(log.numbers), dtype=bool)
    for (split, metric, of_prompts), one in series.items():
        is_kept[one.rows] = not of_prompts and (split != "train" or train_metrics is None or metric in train_metrics)
    whole = log.numbers.select(["split", "metric", "iteration", "value"])
    name = pa.DictionaryArray.from_arrays(np.zeros(len(whole), dtype=np.int32), [TRAINING_REWARD])
    renamed = whole.set_column(1, whole.schema.field("metric"), name)
    rewards = [renamed[one.rows] for (_, _, of_prompts), one in trained.items() if not of_prompts]
    chosen = log.numbers[series[_CHOSEN].rows if _CHOSEN in series else slice(0)].combine_chunks()
    counts = {split: int(one.values[-1]) for (split, metric, _), one in series.items() if metric == "num_prompts"}
    everything = series | trained
    summary = _identity(log) | _progress(log) | _costs(series)
    summary |= {
        "num_prompts": counts,
        "by_prompt": {
            "test": _by_prompt(everything, "test", 1),
            "validation": _by_prompt(everything, "validation", VALIDATION_POINTS),
            "untrained": _by_prompt(everything, "validation", 1, is_trained=False),
        },
        "chosen_prompts": ChosenPrompts(
            chosen["text"].dictionary_encode().combine_chunks(), chosen["value"].to_numpy()
        ),
    }
    return summary, pa.concat_tables([whole.filter(pa.array(is_kept)), *rewards]).unify_dictionaries()


def _series(numbers: pa.Table) -> _ByName:
    """A run's numbers as arrays, from which selecting takes a tenth of the time that filtering tables does."""
    if not len(numbers):
        return {}
    names = [numbers[name].combine_chunks() for name in ("split", "metric")]
    keys = np.stack([*(column.indices.to_numpy() for column in names), numbers["item"].is_valid().to_numpy()])
    starts = [0, *(np.flatnonzero((keys[:, 1:] != keys[:, :-1]).any(axis=0)) + 1)]
    splits, metrics = (column.dictionary.to_pylist() for column in names)
    iterations, values = numbers["iteration"].to_numpy(), numbers["value"].to_numpy()
    return {
        (splits[split], metrics[metric], bool(of_prompts)): _Series(rows, iterations[rows], values[rows])
        for (split, metric, of_prompts), rows in zip(
            keys[:, starts].T, map(slice, starts, [*starts[1:], len(numbers)]), strict=True
        )
    }


def _named(summaries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add variants and files to the summaries; runs that would share both variant and seed are told apart."""
    configs, environments = [one["config"] for one in summaries], [one["environment"] for one in summaries]
    files = name_files(list(map(kind_of, configs)), environments, [one["num_prompts"] for one in summaries])
    variants = name_variants(configs, environments)
    own = [name for name in IDENTITY if name not in ("run_id", "variant")]
    cells = [(*(one[n] for n in own), *names) for one, *names in zip(summaries, variants, files, strict=True)]
    repeats = name_repeats(cells, [one["run_id"] for one in summaries])
    return [
        one | {"files": file, "variant": ", ".join(filter(None, (variant, file, repeat)))}
        for one, variant, file, repeat in zip(summaries, variants, files, repeats, strict=True)
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
        "start": _start(log),
        "judges": judges,
        # A component of weight 0 is only measured.
        "unseen_judges": [judge for judge in judges if not config["reward"].get(judge)],
        "state": log.state,
        "reason": log.status.get("reason") or "",
        "iteration": log.iteration,
        "iterations": config["iterations"],
        "processor": hardware_of(log),
        "folder": log.path,
        "updated": str(log.status.get("updated") or ""),
        "config": config,
        "environment": log.environment,
    }


def _start(log: RunLog) -> str:
    """Text of what the untrained model's rewards depend on, beside lists of prompts: model, evaluation and scales."""
    own, evaluation = log.config.get("model", {}), log.config.get("evaluation", {})
    content = (log.environment.get("fingerprints") or {}).get("model") or own.get("path", "")
    settings = {name: value for name, value in own.items() if name not in ("path", "execution")}
    measured = [evaluation.get(name) for name in ("num_steps", "height", "width", "test_noises")]
    rewards = log.config.get("rewards", {})
    scales = {name: (one.get("offset", 0), one.get("scale", 1)) for name, one in rewards.items()}
    return json.dumps([content, settings, measured, scales], sort_keys=True, default=str)


def hardware_of(log: RunLog) -> str:
    """The processor that made a run, and the GPUs if it could use any; equal to no other run's if it was resumed on
    other hardware, so that no pair counts and no seconds are averaged with others."""
    first, resumed = log.environment, log.environment.get("resumed") or ()
    has_gpus = log.config.get("runtime", {}).get("device") != "cpu"
    found = []
    for execution in (first, *({**first, **one} for one in resumed)):
        gpus = (execution.get("gpus") or ()) if has_gpus else ()
        found.append(", ".join(dict.fromkeys(filter(None, (str(execution.get("processor") or ""), *map(str, gpus))))))
    different = list(dict.fromkeys(found))
    return different[0] if len(different) == 1 else f"{', then '.join(different)} ({log.run_id})"


def _costs(series: _ByName) -> dict[str, Any]:
    def values(split: str, metric: str) -> np.ndarray:
        return series[split, metric, False].values if (split, metric, False) in series else np.empty(0)

    names = ("sample_forwards", "train_forwards", "reward_calls")
    totals = {name: int(values("train", f"total_{name}")[-1:].sum()) for name in names}
    seconds = values("train", "seconds/iteration")
    return totals | {
        "compute": totals["sample_forwards"] + 3 * totals["train_forwards"],
        "seconds_per_iteration": float(seconds.mean()) if len(seconds) else float("nan"),
        "train_seconds": float(seconds.sum()),
        "evaluation_seconds": float(np.concatenate([values(split, "seconds") for split in SPLITS]).sum()),
    }


def _by_prompt(series: _ByName, split: str, num_points: int, is_trained: bool = True) -> dict[str, np.ndarray]:
    """Means over the last evaluations of a split, per prompt: ``{metric: [prompts]}``."""
    own = {metric: one for (of, metric, of_prompts), one in series.items() if of == split and of_prompts}
    iterations = _iterations(own.values())
    points = iterations[(iterations > 0) == is_trained][-num_points:]
    if not len(points):
        return {}
    first, last = points[[0, -1]]
    kept = {metric: one.values[(one.iterations >= first) & (one.iterations <= last)] for metric, one in own.items()}
    # A series holds one evaluation after the other; evaluations of different numbers of prompts cannot be averaged.
    return {
        metric: values.reshape(len(points), -1).mean(axis=0)
        for metric, values in kept.items()
        if len(values) and len(values) % len(points) == 0
    }


def _training_reward(log: RunLog, series: _ByName) -> _ByName:
    """The trained reward as logged in every evaluation, under the name ``TRAINING_REWARD``."""
    evaluated = {key: one for key, one in series.items() if key[0] != "train"}
    if not evaluated:
        return {}
    try:
        wanted = trained_reward(log.config).logged_as(sorted({metric for _, metric, _ in evaluated}))
    except ValueError as error:
        raise ConfigError(f"{log.path}: {error}") from None
    found = {
        (split, TRAINING_REWARD, of_prompts): one
        for (split, metric, of_prompts), one in evaluated.items()
        if metric == wanted
    }
    for split in sorted({split for split, *_ in evaluated}):
        measured, told = (
            _iterations(one for key, one in those.items() if key[0] == split) for those in (evaluated, found)
        )
        for i in np.setdiff1d(measured, told):
            raise ConfigError(f"{log.path}: {split} at iteration {i} has no metric {wanted!r}, as others have")
    return found


def _iterations(series: Iterable[_Series]) -> np.ndarray:
    """Distinct iterations of all series, increasing."""
    return np.unique(np.concatenate([np.empty(0, dtype=np.int64), *(one.iterations for one in series)]))


def _joined(summary: pd.DataFrame, tables: Sequence[pa.Table]) -> pd.DataFrame:
    """Join the runs' rows, each after its run's identity; texts are categories in alphabetical order."""
    rows = pa.concat_tables(tables or [NUMBERS.empty_table()]).unify_dictionaries().to_pandas()
    for name in ("split", "metric"):
        rows[name] = rows[name].cat.set_categories(sorted(rows[name].cat.remove_unused_categories().cat.categories))
    identity = summary[IDENTITY]
    identity = identity.astype(dict.fromkeys(identity.select_dtypes("str"), "category"))
    of_rows = identity.take(np.repeat(identity.index, [len(table) for table in tables])).reset_index(drop=True)
    return pd.concat([of_rows, rows], axis=1)[COLUMNS]
