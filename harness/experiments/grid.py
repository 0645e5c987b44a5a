"""Grids: the cells and seeds of an experiment."""

import itertools
import re
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from pydantic import model_validator

from harness.config import (
    EXPERIMENTS,
    KINDS,
    ConfigError,
    RunConfig,
    Section,
    check_overrides,
    compose,
    experiment_path,
    merge,
    nearest,
    nest,
    read_yaml,
    validated,
    verification,
)
from harness.foundation.plugins import is_reference

_MAX_SEEDS = 100_000
_TAKEN = {"seed": "the grid's seeds (--seeds)"}


class GridConfig(Section):
    """Content of a grid's file, see ``expand_grid``."""

    profile: str
    seeds: tuple[int, ...] | int | str
    cells: tuple[dict[str, Any], ...]

    @model_validator(mode="after")
    def _check(self) -> "GridConfig":
        for cell in self.cells:
            # A file of one of these kinds may have some of its settings changed.
            check_overrides((key for key in cell if key not in KINDS), _TAKEN)
        return self


def expand_grid(
    grid: str,
    overrides: Sequence[str] = (),
    *,
    profile: str | None = None,
    only: str | None = None,
    seeds: Sequence[int] | None = None,
) -> list[RunConfig]:
    """Configurations of a grid's runs, seed by seed: every cell has its first seed before any has its second.

    A grid file names a ``profile``, ``seeds`` (a list, or text such as "0-4,7") and ``cells``: mappings from a dotted
    key to a value or a list of values, each of which stands for the product of its lists. ``model``, ``method`` and
    ``reward`` may also be the name of a file in experiments/models/, methods/ and rewards/, and the key ``seeds`` gives
    the mapping's cells other seeds than the file's.

    Args:
        grid: name of a file in experiments/grids/, or a path to one.
        overrides: dotted ``key=value`` strings for every run.
        profile: profile to use instead of the grid's own.
        only: cells to keep, as in ``"method=flow_grpo selection=random,curriculum"``; ``fusion`` is short for
            ``fusion.enabled``.
        seeds: seeds to use instead of the grid's own.

    Raises:
        ConfigError: one line that names the file or option and what is wrong.
    """
    path = experiment_path("grids", grid)
    file = validated(GridConfig, read_yaml(path), str(path))
    cells = []
    for mapping in file.cells:
        own = _seeds(mapping.get("seeds", file.seeds), path) if seeds is None else list(seeds)
        cells += [cell | {"seeds": own} for cell in _product({k: v for k, v in mapping.items() if k != "seeds"})]
    check_overrides(overrides, _TAKEN)
    for key, values in ({} if only is None else _parse_only(only)).items():
        cells = _matching(cells, key, values)
    chosen = str(experiment_path("profiles", profile or file.profile, None if profile else path))
    planned = [(position, seed, cell) for cell in cells for position, seed in enumerate(cell["seeds"])]
    if not planned:
        raise ConfigError(f"{path}: has no run; it needs a cell and a seed, and a value in each of a cell's lists")
    runs = []
    for _, seed, cell in sorted(planned, key=itemgetter(0)):
        files = files_of(cell)
        settings: dict[str, Any] = {"seed": seed}
        for key, value in cell.items():
            if key not in (*files, "seeds"):
                settings = merge(settings, nest(key, value))
        runs.append(compose(chosen, settings=settings, overrides=overrides, written_in=path, **files))
    return runs


def files_of(cell: Mapping[str, Any]) -> dict[str, str]:
    """Files of experiments/models/, methods/ and rewards/ that a cell names, by their kind."""
    return {kind: cell[kind] for kind in KINDS if isinstance(cell.get(kind), str) and not is_reference(cell[kind])}


def grid_lines() -> list[str]:
    """Lines about each built-in grid: runs, profile and its verification, and the first line of the file's comment."""
    lines = []
    for path in sorted((EXPERIMENTS / "grids").glob("*.yaml")):
        runs, profile = expand_grid(path.stem), read_yaml(path)["profile"]
        said = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        lines += [f"{path.stem:22}{len(runs):4} runs, profile {profile}, {verification(profile)}", f"{'':22}{said}"]
    return lines


def parse_seeds(text: str, where: str = "--seeds") -> list[int]:
    """Parse seeds: ``"0-2,5"`` becomes ``[0, 1, 2, 5]``. Raises ConfigError for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,19})(?:-(\d{1,19}))?", part.strip())
        if match is None:
            raise ConfigError(f"{where} {text}: write numbers and ranges, as in 0-4 or 0,2,5")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ConfigError(f"{where} {text}: the range {part.strip()} is empty")
        if last - first >= _MAX_SEEDS:
            raise ConfigError(f"{where} {text}: the range {part.strip()} has more than {_MAX_SEEDS:,} seeds")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def _seeds(value: Any, path: Path) -> list[int]:
    return list(value) if isinstance(value, list | tuple) else parse_seeds(str(value), f"{path}: seeds")


def _product(mapping: dict[str, Any]) -> list[dict[str, Any]]:
    values = [value if isinstance(value, list) else [value] for value in mapping.values()]
    return [dict(zip(mapping, combination, strict=True)) for combination in itertools.product(*values)]


def _parse_only(only: str) -> dict[str, list[str]]:
    wanted: dict[str, list[str]] = {}
    for term in only.split():
        key, equals, values = term.partition("=")
        key = "fusion.enabled" if key == "fusion" else key
        if not equals or not values or key in wanted:
            raise ConfigError(f"--only {term!r}: write key=value or key=value,value, and each key once")
        wanted[key] = values.split(",")
    if not wanted:
        raise ConfigError("--only: names no cells; write key=value or key=value,value")
    return wanted


def _matching(cells: list[dict[str, Any]], key: str, values: Sequence[str]) -> list[dict[str, Any]]:
    known_keys = sorted({name for cell in cells for name in cell} - {"seeds"})
    if key not in known_keys:
        raise ConfigError(f"--only: unknown key {key!r}; {nearest(key, known_keys)}")
    having = [(_as_yaml(cell[key]), cell) for cell in cells if key in cell]
    shown = sorted({text for text, _ in having})
    for value in values:
        if value not in shown:
            raise ConfigError(f"--only {key}={value}: no cell chosen so far has it; {nearest(value, shown)}")
    return [cell for text, cell in having if text in values]


def _as_yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
