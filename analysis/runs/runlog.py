"""A logged run: its configuration and state, and its numbers as a table. Nothing is written."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import yaml

from analysis.runs.sources import OF_IDENTITY, require_environment
from harness.foundation import records
from harness.foundation.errors import ConfigError
from harness.foundation.files import read_text

NUMBERS = pa.schema(
    [
        ("split", pa.dictionary(pa.int32(), pa.string())),
        ("metric", pa.dictionary(pa.int32(), pa.string())),
        ("iteration", pa.int32()),
        ("item", pa.int32()),
        ("value", pa.float64()),
        ("text", pa.string()),
    ]
)
"""Schema of a run's numbers. ``split`` is train, validation or test. ``item`` is null for a number of the whole split,
otherwise the position of a prompt in the split's list. For the metric ``chosen_prompt``, ``text`` is a prompt that was
trained on, ``item`` its position in the iteration, and ``value`` its rank among the candidates (null if unscored)."""

CHOSEN_PROMPT = "chosen_prompt"
SPLITS = ("validation", "test")
"""Splits that evaluations read."""

# The C parser reads 2,000 configurations in one second, the Python parser in ten; both accept the same YAML.
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SHORT_CONFIG = 20_000
"""Largest file in characters, about five run configurations, that the C parser reads: deeper nesting than fits in it
could overflow the parser's stack, which would end the process."""


@dataclass(frozen=True)
class RunLog:
    """A logged run, read from a directory or a shard."""

    path: Path
    """Run directory or shard."""
    run_id: str
    config: Mapping[str, Any]
    """The resolved configuration."""
    status: Mapping[str, Any]
    """Status with state, iteration, iterations, reason and updated; empty for a run that has just started."""
    environment: Mapping[str, Any]
    """Commit, versions, hardware and fingerprints of files; empty if none was recorded."""
    iteration: int
    """Last logged iteration; 0 before the first."""
    numbers: pa.Table
    """Numbers in columns ``NUMBERS``, sorted by split, metric and iteration."""

    @property
    def state(self) -> str:
        """State: waiting, running, failed, finished, or incomplete if a file of a finished run is no longer whole."""
        return str(self.status.get("state", "running"))


def find_paths(folder: Path, shard_suffix: str = "") -> list[Path]:
    """Find run directories, and files that end in ``shard_suffix`` if it is given, at any depth, sorted.

    Run directories are not searched further: they may hold many files, and no other run.

    Raises:
        ConfigError: the folder does not exist.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder of runs")
    found = []
    for parent, folders, files in os.walk(folder):
        if "config.yaml" in files:
            found.append(Path(parent))
            folders.clear()
        elif shard_suffix:
            found += [Path(parent) / name for name in files if name.endswith(shard_suffix)]
    return sorted(found)


def read_directory(run: Path) -> RunLog:
    """Read a run directory, finished or not.

    A finished run that is no longer whole gets the state incomplete, and a reason that names what is missing.

    Args:
        run: directory with config.yaml; any other file may still be missing.

    Raises:
        ConfigError: a file cannot be read, or has changed since the run finished; the message names it.
    """
    config = check_config(_read_yaml(run / "config.yaml"), run / "config.yaml")
    status = _read_status(run / "status.json")
    is_finished = status.get("state") == "finished"
    # Sizes and checksums are not part of the status.
    sealed, _ = status.pop("files", {}), status.pop("check", None)
    sealed = sealed if is_finished else {}
    train = _read_lines(run / "metrics.jsonl", sealed)
    evaluations = _read_lines(run / "eval.jsonl", sealed)
    if is_finished and (lost := _lost(run, config, sealed, train, evaluations)):
        status |= {"state": "incomplete", "reason": f"{lost}; put back a copy of it, or resume or train the run again"}
    tables = [_train_table(train, run / "metrics.jsonl")]
    for split in sorted({line["split"] for line in evaluations}, reverse=True):  # validation, test
        lines = [line for line in evaluations if line["split"] == split]
        tables.append(_evaluation_table(split, lines, run / "eval.jsonl"))
    return RunLog(
        path=run,
        run_id=run.name,
        config=config,
        status=status,
        environment=_read_environment(run),
        iteration=train[-1]["iteration"] if train else 0,
        numbers=pa.concat_tables(tables).unify_dictionaries().combine_chunks(),
    )


def check_config(config: Any, path: Path) -> dict[str, Any]:
    """Return a run's configuration if it has every key that the analysis reads; of absolute paths only the last part.

    Shards and pages are made to be shared, so they must not tell how a machine's folders are called. Fingerprints, not
    paths, say which files a run read.

    Raises:
        ConfigError: a key is missing; the message names the file and the key.
    """
    sections = {"fusion": "enabled", "method": "kernel", "reward": None}
    for key in ("experiment", "seed", "iterations", "selection", *sections):
        if not isinstance(config, dict) or key not in config:
            raise ConfigError(f"{path}: no run's configuration: key {key!r} is missing")
    for key, inner in sections.items():
        if not isinstance(config[key], dict) or (inner and inner not in config[key]):
            raise ConfigError(f"{path}: key {key!r} must be a mapping{f' with {inner!r}' if inner else ''}")
    return {key: _without_folders(value) for key, value in config.items()}


def _word_without_folders(word: str) -> str:
    name, sign, value = word.rpartition("=")
    return f"{name}{sign}{_without_folders(value)}"


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [*map(_without_folders, value)]
    return PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else value


class Series(NamedTuple):
    """Values of one metric of a split; all fields have the length of ``iterations``."""

    metric: str
    iterations: Sequence[int] | np.ndarray
    values: np.ndarray
    """float64 values; NaN stands for a missing one."""
    items: Sequence[int] | np.ndarray | None = None
    texts: Sequence[str] | None = None


def numbers_table(split: str, series: Sequence[Series]) -> pa.Table:
    """Concatenate the series of one split to a table with columns ``NUMBERS``."""
    if not series:
        return NUMBERS.empty_table()
    counts = [len(one.iterations) for one in series]
    names = list(dict.fromkeys(one.metric for one in series))
    codes = np.repeat(np.array([names.index(one.metric) for one in series], dtype=np.int32), counts)

    def joined(parts: Sequence[Any], kind: pa.DataType) -> pa.Array:
        arrays = zip(parts, counts, strict=True)
        return pa.concat_arrays([pa.nulls(n, kind) if p is None else pa.array(p, type=kind) for p, n in arrays])

    columns = [
        pa.DictionaryArray.from_arrays(np.zeros(sum(counts), dtype=np.int32), [split]),
        pa.DictionaryArray.from_arrays(codes, names),
        pa.array(np.concatenate([one.iterations for one in series]), type=pa.int32()),
        joined([one.items for one in series], pa.int32()),
        pa.array(np.concatenate([one.values for one in series]), type=pa.float64(), from_pandas=True),
        joined([one.texts for one in series], pa.string()),
    ]
    return pa.table(columns, schema=NUMBERS)


def _train_table(lines: Sequence[Mapping[str, Any]], path: Path) -> pa.Table:
    iterations = [line["iteration"] for line in lines]
    series = [_numeric(name, iterations, column, path) for name, column in _columns(lines) if name != "iteration"]
    prompts = [line.get("prompts") or [] for line in lines]
    if any(prompts):
        counts = list(map(len, prompts))
        ranks = [line.get("ranks") or [None] * count for line, count in zip(lines, counts, strict=True)]
        chosen = Series(
            CHOSEN_PROMPT,
            np.repeat(iterations, counts),
            np.array(list(chain.from_iterable(ranks)), dtype=float),
            list(chain.from_iterable(map(range, counts))),
            list(chain.from_iterable(prompts)),
        )
        series.append(chosen)
    return numbers_table("train", series)


def _evaluation_table(split: str, lines: Sequence[Mapping[str, Any]], path: Path) -> pa.Table:
    if split not in SPLITS:
        raise ConfigError(f"{path}: split {split!r} is none of {', '.join(SPLITS)}")
    iterations = [line["iteration"] for line in lines]
    whole = [{k: v for k, v in line.items() if k not in ("iteration", "split", "per_prompt")} for line in lines]
    series = [_numeric(name.removeprefix("metrics/"), iterations, column, path) for name, column in _columns(whole)]
    per_prompt = [line.get("per_prompt", {}) for line in lines]
    for metric in dict.fromkeys(name for values in per_prompt for name in values):
        values = [of_line.get(metric, []) for of_line in per_prompt]
        counts = list(map(len, values))
        items = np.concatenate([np.arange(count) for count in counts])
        series.append(Series(metric, np.repeat(iterations, counts), np.concatenate(values).astype(float), items))
    return numbers_table(split, series)


def _columns(lines: Sequence[Mapping[str, Any]], prefix: str = "") -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield the numeric columns of nested records, one value per line, None if a line has none."""
    for key in dict.fromkeys(chain.from_iterable(lines)):
        column = [line.get(key) for line in lines]
        sample = next((value for value in column if value is not None), None)
        if isinstance(sample, Mapping):
            yield from _columns([value or {} for value in column], f"{prefix}{key}/")
        elif isinstance(sample, int | float):
            yield prefix + key, column


def _numeric(metric: str, iterations: Sequence[int], column: Sequence[float | None], path: Path) -> Series:
    """Series of a column without its nulls, which for instance iterations without candidates have."""
    try:
        values = np.array(column, dtype=float)  # null becomes NaN, which JSON cannot hold by itself
    except (TypeError, ValueError):
        raise ConfigError(f"{path}: {metric!r} is a number in some lines and something else in others") from None
    there = ~np.isnan(values)
    return Series(metric, np.asarray(iterations, dtype=np.int64)[there], values[there])


def _read_yaml(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        return yaml.load(text, Loader=_YAML if len(text) <= _SHORT_CONFIG else yaml.SafeLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None


def _lost(
    run: Path,
    config: Mapping[str, Any],
    sealed: records.Sealed,
    train: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]],
) -> str | None:
    """Description of what a finished run lacks, with the file's name; None if it is whole."""
    if sealed:
        return records.damage(run, sealed)
    for name in records.LOGS:
        path = run / name
        if path.is_file() and not path.read_bytes().endswith(b"\n"):
            return f"{name} has lost its end"
    evaluated = {(line["iteration"], line["split"]) for line in evaluations}
    found = records.gaps(config, [line["iteration"] for line in train], evaluated, config["iterations"])
    return found[0] if found else None


def _read_status(path: Path) -> dict[str, Any]:
    """Content of status.json; empty if it is missing."""
    try:
        return records.parse_status(read_text(path)) if path.exists() else {}
    except ValueError as error:
        remedy = f"resume the run, which writes it again:  adagrpo train --resume {path.parent}"
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())}; {remedy}") from None


def _read_object(path: Path) -> dict[str, Any]:
    """JSON object in a file; empty if there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold an object")
    return content


def _read_environment(run: Path) -> dict[str, Any]:
    """Content of environment.json, with the fingerprints and the command from identity.json.

    The settings are identity.json's, too, where a run has not begun.
    """
    identity = _read_object(run / "identity.json")
    content = _read_object(run / "environment.json")
    try:
        require_environment(content)
    except ValueError as error:
        raise ConfigError(f"{run / 'environment.json'}: {error}") from None
    known = {name: identity[name] for name in OF_IDENTITY if identity.get(name)}
    if "command" in known:
        known["command"] = " ".join(map(_word_without_folders, str(known["command"]).split(" ")))
    return content | known | {name: content[name] for name in ("settings",) if name in content}


def _read_lines(path: Path, sealed: records.Sealed) -> list[dict[str, Any]]:
    """Objects of a log, in order; of several lines for one iteration and split only the last, which a resume wrote."""
    # A log of another length is read as far as it goes, as incomplete; with other bytes its numbers would be wrong.
    if path.name in sealed and path.is_file() and path.stat().st_size == sealed[path.name][0]:
        records.require_sealed(path, sealed, path.name)
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for number, line in enumerate(records.read_lines(path), start=1):
        if path.name == "eval.jsonl" and (type(line.get("split")), type(line.get("metrics"))) != (str, dict):
            raise ConfigError(f"{path}: line {number} must be an object with iteration, split and metrics")
        found[line["iteration"], line.get("split", "train")] = line
    return [found[key] for key in sorted(found)]
