"""One run as it was logged: its configuration and state, and its numbers as columns. Nothing is written."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import yaml

from analysis.runs.sources import require_environment
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
"""A run's numbers: ``split`` is train, validation or test. ``item`` is null for a number of the whole split, otherwise
the position of a prompt in the split's list; of the metric ``chosen_prompt``, which of the iteration's prompts ``text``
is, and ``value`` its rank among the candidates (null where none were scored)."""

CHOSEN_PROMPT = "chosen_prompt"
SPLITS = ("validation", "test")
"""Splits that evaluations read."""

# The parser in C reads 2,000 configurations in a second, the one in Python in ten; both accept the same YAML.
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SHORT_CONFIG = 20_000
"""Characters, about five times those of a run. So few cannot stand in each other so deep that the parser's stack
overflows, which would end the process."""


@dataclass(frozen=True)
class RunLog:
    """A run, wherever it was read from."""

    path: Path
    """Run directory or shard."""
    run_id: str
    config: Mapping[str, Any]
    """The resolved configuration."""
    status: Mapping[str, Any]
    """state, iteration, iterations, reason, updated; empty for a run that just started."""
    environment: Mapping[str, Any]
    """commit, versions, hardware and fingerprints of files; empty where none was recorded."""
    iteration: int
    """The last that was logged; 0 before the first."""
    numbers: pa.Table
    """Columns ``NUMBERS``: split by split, metric by metric, in order of iterations."""

    @property
    def state(self) -> str:
        """waiting, running, failed, finished; or incomplete: it was finished, and a file is not whole any more."""
        return str(self.status.get("state", "running"))


def find_paths(folder: Path, shard_suffix: str = "") -> list[Path]:
    """Run directories, and files that end in ``shard_suffix`` if it is given, at any depth, sorted.

    Nothing within a run directory is looked at: it may hold many files, and no other run.

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

    A finished run that is not whole any more has the state incomplete, and the reason says what is missing.

    Args:
        run: holds config.yaml; any other file may still be missing.

    Raises:
        ConfigError: names the file that cannot be read, or is not what it was when the run finished.
    """
    config = check_config(_read_yaml(run / "config.yaml"), run / "config.yaml")
    status = _read_status(run / "status.json")
    is_finished = status.get("state") == "finished"
    # What the file says about itself.
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
    """Return a run's configuration if it has all that the analysis reads.

    Raises:
        ConfigError: names the file and the key that is missing.
    """
    sections = {"fusion": "enabled", "method": "kernel", "reward": None}
    for key in ("experiment", "seed", "iterations", "selection", *sections):
        if not isinstance(config, dict) or key not in config:
            raise ConfigError(f"{path}: no run's configuration: key {key!r} is missing")
    for key, inner in sections.items():
        if not isinstance(config[key], dict) or (inner and inner not in config[key]):
            raise ConfigError(f"{path}: key {key!r} must be a mapping{f' with {inner!r}' if inner else ''}")
    return config


class Series(NamedTuple):
    """Values of one metric of a split; all are as long as ``iterations``."""

    metric: str
    iterations: Sequence[int] | np.ndarray
    values: np.ndarray
    """float64; NaN for none."""
    items: Sequence[int] | np.ndarray | None = None
    texts: Sequence[str] | None = None


def numbers_table(split: str, series: Sequence[Series]) -> pa.Table:
    """Series of one split, one after the other, as a table with columns ``NUMBERS``."""
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
    """Numeric columns of nested records, one value per line, None where a line has none."""
    for key in dict.fromkeys(chain.from_iterable(lines)):
        column = [line.get(key) for line in lines]
        sample = next((value for value in column if value is not None), None)
        if isinstance(sample, Mapping):
            yield from _columns([value or {} for value in column], f"{prefix}{key}/")
        elif isinstance(sample, int | float):
            yield prefix + key, column


def _numeric(metric: str, iterations: Sequence[int], column: Sequence[float | None], path: Path) -> Series:
    """The values that are there: a null, as of an iteration without candidates, is no row."""
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
    """What a finished run lacks, with the file's name; None if it is whole."""
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
    """status.json; nothing if it is missing."""
    try:
        return records.parse_status(read_text(path)) if path.exists() else {}
    except ValueError as error:
        remedy = f"resume the run, which writes it again:  adagrpo train --resume {path.parent}"
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())}; {remedy}") from None


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty for a file that is not there."""
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
    """environment.json, with what identity.json has of the run's files and of the command that made it."""
    identity = _read_object(run / "identity.json")
    content = _read_object(run / "environment.json")
    try:
        require_environment(content)
    except ValueError as error:
        raise ConfigError(f"{run / 'environment.json'}: {error}") from None
    return content | {name: identity[name] for name in ("fingerprints", "command") if identity.get(name)}


def _read_lines(path: Path, sealed: records.Sealed) -> list[dict[str, Any]]:
    """Objects of a log, in order; of lines for one iteration and split the last, as a resumed run wrote."""
    # One that is shorter or longer is shown as far as it goes, as incomplete; other bytes would be other numbers.
    if path.name in sealed and path.is_file() and path.stat().st_size == sealed[path.name][0]:
        records.require_sealed(path, sealed, path.name)
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for number, line in enumerate(records.read_lines(path), start=1):
        if path.name == "eval.jsonl" and not (isinstance(line.get("split"), str) and "metrics" in line):
            raise ConfigError(f"{path}: line {number} must be an object with iteration, split and metrics")
        found[line["iteration"], line.get("split", "train")] = line
    return [found[key] for key in sorted(found)]
