"""One run as it was logged: its configuration and state, and its numbers as columns. Nothing is written."""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import yaml

from analysis.runs.sources import require_environment
from harness import records
from harness.config import strict_yaml
from harness.errors import ConfigError
from harness.files import read_text

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
"""Of evaluations."""

# The parser in C reads 2,000 configurations in a second, the one in Python in ten; both accept the same YAML.
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SHORT_CONFIG = 20_000
"""Characters, about five times those of a run. So few cannot stand in each other so deep that the parser's stack
overflows, which would end the process."""


class RunLogError(ConfigError):
    """A run's file that cannot be read: which one, and why."""


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


def find_directories(folder: Path) -> list[Path]:
    """Run directories in a folder, at any depth, sorted: those with a config.yaml. The folder may itself be one.

    Raises:
        RunLogError: the folder does not exist.
    """
    return [path for path in find_paths(folder) if path.is_dir()]


def find_paths(folder: Path, shard_suffix: str = "") -> list[Path]:
    """Run directories, and files that end in ``shard_suffix`` if it is given, at any depth, sorted.

    Nothing within a run directory is looked at: it may hold many files, and no other run.

    Raises:
        RunLogError: the folder does not exist.
    """
    if not folder.is_dir():
        raise RunLogError(f"{folder}: no such folder of runs")
    found = []
    for parent, folders, files in os.walk(folder):
        if "config.yaml" in files:
            found.append(Path(parent))
            folders.clear()
        elif shard_suffix:
            found += [Path(parent) / name for name in files if name.endswith(shard_suffix)]
    return sorted(found)


def read_directory(run: Path, train_metrics: Collection[str] | None = None, with_items: bool = True) -> RunLog:
    """Read a run directory, finished or not.

    Args:
        run: holds config.yaml; any other file may still be missing.
        train_metrics: metrics of whole training iterations to keep; None for all.
        with_items: whether to keep numbers of single prompts.

    A finished run that is not whole any more has the state incomplete, and the reason says what is missing.

    Raises:
        RunLogError: names the file that cannot be read, or is not what it was when the run finished.
    """
    config = check_config(_read_yaml(run / "config.yaml"), run / "config.yaml")
    status = _read_status(run / "status.json")
    sealed = status.get("files", {}) if status.get("state") == "finished" else {}
    train = _read_lines(run / "metrics.jsonl", ("iteration",), sealed)
    evaluations = _read_lines(run / "eval.jsonl", ("iteration", "split", "metrics"), sealed)
    if status.get("state") == "finished" and (lost := _lost(run, config, sealed, train, evaluations)):
        status |= {"state": "incomplete", "reason": f"{lost}; put back a copy of it, or resume or train the run again"}
    # What the file says about itself has served.
    status = {key: value for key, value in status.items() if key not in ("files", "check")}
    tables = [_train_table(train, train_metrics, with_items, run / "metrics.jsonl")]
    for split in sorted({str(line["split"]) for line in evaluations}, reverse=True):  # validation, test
        if split not in SPLITS:
            raise RunLogError(f"{run / 'eval.jsonl'}: split {split!r} is none of {', '.join(SPLITS)}")
        lines = [line for line in evaluations if line["split"] == split]
        tables.append(_evaluation_table(split, lines, with_items, run / "eval.jsonl"))
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
        RunLogError: names the file and the key that is missing.
    """
    sections = {"fusion": "enabled", "method": "kernel", "reward": None}
    for key in ("experiment", "seed", "iterations", "selection", *sections):
        if not isinstance(config, dict) or key not in config:
            raise RunLogError(f"{path}: no run's configuration: key {key!r} is missing")
    for key, inner in sections.items():
        if not isinstance(config[key], dict) or (inner and inner not in config[key]):
            raise RunLogError(f"{path}: key {key!r} must be a mapping{f' with {inner!r}' if inner else ''}")
    return config


class Series(NamedTuple):
    """Values of one metric of a split; arrays are as long as ``iterations``."""

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
    return pa.table(
        [
            pa.DictionaryArray.from_arrays(np.zeros(sum(counts), dtype=np.int32), [split]),
            pa.DictionaryArray.from_arrays(codes, names),
            pa.array(np.concatenate([one.iterations for one in series]), type=pa.int32()),
            _joined([one.items for one in series], counts, pa.int32()),
            pa.array(np.concatenate([one.values for one in series]), type=pa.float64(), from_pandas=True),
            _joined([one.texts for one in series], counts, pa.string()),
        ],
        schema=NUMBERS,
    )


def _joined(parts: Sequence[Any], counts: Sequence[int], kind: pa.DataType) -> pa.Array:
    """Arrays one after the other; null where a part is None."""
    return pa.concat_arrays(
        [
            pa.nulls(count, kind) if part is None else pa.array(part, type=kind)
            for part, count in zip(parts, counts, strict=True)
        ]
    )


def _train_table(
    lines: Sequence[Mapping[str, Any]], wanted: Collection[str] | None, with_items: bool, path: Path
) -> pa.Table:
    iterations = [line["iteration"] for line in lines]
    series = [
        _numeric(metric, iterations, column, path)
        for metric, column in _columns(lines, wanted)
        if metric != "iteration"
    ]
    if with_items and any(line.get("prompts") for line in lines):
        series.append(_chosen_prompts(lines))
    return numbers_table("train", series)


def _chosen_prompts(lines: Sequence[Mapping[str, Any]]) -> Series:
    prompts = [line.get("prompts") or [] for line in lines]
    counts = list(map(len, prompts))
    ranks = [line.get("ranks") or [None] * count for line, count in zip(lines, counts, strict=True)]
    return Series(
        CHOSEN_PROMPT,
        np.repeat([line["iteration"] for line in lines], counts),
        np.array(list(chain.from_iterable(ranks)), dtype=float),
        list(chain.from_iterable(map(range, counts))),
        list(chain.from_iterable(prompts)),
    )


def _evaluation_table(split: str, lines: Sequence[Mapping[str, Any]], with_items: bool, path: Path) -> pa.Table:
    iterations = [line["iteration"] for line in lines]
    whole = [{k: v for k, v in line.items() if k not in ("iteration", "split", "per_prompt")} for line in lines]
    series = [_numeric(metric.removeprefix("metrics/"), iterations, column, path) for metric, column in _columns(whole)]
    if with_items:
        per_prompt = [line.get("per_prompt", {}) for line in lines]
        for metric in dict.fromkeys(name for values in per_prompt for name in values):
            series.append(_per_prompt(metric, iterations, [values.get(metric, []) for values in per_prompt]))
    return numbers_table(split, series)


def _per_prompt(metric: str, iterations: Sequence[int], values: Sequence[Sequence[float]]) -> Series:
    counts = [len(of_iteration) for of_iteration in values]
    items = np.concatenate([np.arange(count) for count in counts])
    return Series(metric, np.repeat(iterations, counts), np.concatenate(values).astype(float), items)


def _columns(
    lines: Sequence[Mapping[str, Any]], wanted: Collection[str] | None = None, prefix: str = ""
) -> list[tuple[str, Sequence[Any]]]:
    """Numeric columns of nested records, one value a line, None where a line has none; of ``wanted`` names if given."""
    shapes = dict.fromkeys(map(tuple, lines))
    keys = dict.fromkeys(chain.from_iterable(shapes))
    if len(shapes) > 1:  # As a rule all lines have the same keys.
        lines = [{key: line.get(key) for key in keys} for line in lines]
    columns: list[tuple[str, Sequence[Any]]] = []
    for key, column in zip(keys, zip(*(line.values() for line in lines), strict=True), strict=True):
        name = prefix + key
        sample = next((value for value in column if value is not None), None)
        if isinstance(sample, Mapping):
            columns += _columns([value or {} for value in column], wanted, f"{name}/")
        elif isinstance(sample, int | float) and (wanted is None or name in wanted):
            columns.append((name, column))
    return columns


def _numeric(metric: str, iterations: Sequence[int], column: Sequence[float | None], path: Path) -> Series:
    """The values that are there: a null, as of an iteration without candidates, is no row."""
    try:
        values = np.array(column, dtype=float)  # null becomes NaN, which JSON cannot hold by itself
    except (TypeError, ValueError):
        raise RunLogError(f"{path}: {metric!r} is a number in some lines and something else in others") from None
    there = ~np.isnan(values)
    return Series(metric, np.asarray(iterations, dtype=np.int64)[there], values[there])


def _read_yaml(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        if len(text) > _SHORT_CONFIG:
            return strict_yaml.parse(text, str(path))
        return yaml.load(text, Loader=_YAML)
    except ConfigError as error:
        raise RunLogError(str(error)) from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RunLogError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None


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
        raise RunLogError(f"{path}: cannot be read: {' '.join(str(error).split())}; {remedy}") from None


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty for a file that is not there."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise RunLogError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise RunLogError(f"{path}: must hold an object")
    return content


def _read_environment(run: Path) -> dict[str, Any]:
    """environment.json, with the fingerprints of the run's files where it has an identity.json."""
    fingerprints = _read_object(run / "identity.json").get("fingerprints")
    content = _read_object(run / "environment.json")
    try:
        require_environment(content)
    except ValueError as error:
        raise RunLogError(f"{run / 'environment.json'}: {error}") from None
    return content | ({"fingerprints": fingerprints} if fingerprints else {})


def _read_lines(path: Path, required: Sequence[str], sealed: records.Sealed) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file, in order; of lines for one iteration and split the last, as a resumed run wrote."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunLogError(f"{path}: cannot be read: {error}") from None
    # One that is shorter or longer is shown as far as it goes, as incomplete; other bytes would be other numbers.
    if path.name in sealed and len(content) == sealed[path.name][0]:
        try:
            records.require_sealed(path, sealed, path.name, content)
        except ConfigError as error:
            raise RunLogError(str(error)) from None
    lines = content.decode(errors="replace").split("\n")
    found: dict[tuple[int, str], dict[str, Any]] = {}
    wanted = set(required)
    for number, record in enumerate(_parsed(lines, path), start=1):
        is_record = isinstance(record, dict) and wanted <= record.keys() and type(record["iteration"]) is int
        if not is_record or not isinstance(record.get("split", ""), str):
            raise RunLogError(f"{path}: line {number} must be an object with {', '.join(sorted(required))}")
        found[record["iteration"], record.get("split", "train")] = record
    return [found[key] for key in sorted(found)]


def _parsed(lines: Sequence[str], path: Path) -> list[Any]:
    """What lines of JSON hold, without half a line at the end: a run that was killed, or is being written, has one."""
    try:
        # All at once: of parsing line by line, the parser takes the smaller part.
        parsed = json.loads(f"[{','.join(lines[:-1])}]")
        if not lines[-1] and len(parsed) == len(lines) - 1:
            return list(parsed)
    except (ValueError, RecursionError):
        pass
    parsed = []
    for number, line in enumerate(lines, start=1):
        try:
            parsed.append(json.loads(line))
        except (ValueError, RecursionError):
            if number < len(lines):
                raise RunLogError(f"{path}: line {number} is not JSON") from None
    return parsed
