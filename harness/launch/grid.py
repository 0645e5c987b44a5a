"""Grids: which cells and seeds an experiment runs."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.config import EXPERIMENTS, ConfigError, RunConfig, compose, merge, nest, read_yaml


def expand_grid(grid: str, overrides: Sequence[str] = ()) -> list[RunConfig]:
    """All runs of a grid file, seed by seed, so that every cell has its first seed before any has its second.

    A grid file names a ``profile``, ``seeds`` (a list) and ``cells``: mappings from a dotted config key, or ``method``
    (a file in experiments/methods/), to a value or a list of values; a mapping stands for the product of its lists.

    Args:
        grid: name of a file in experiments/grids/, or a path to one.
        overrides: dotted ``key=value`` strings, for every run.

    Raises:
        ConfigError: one line that names the file and what is wrong.
    """
    path = Path(grid) if grid.endswith(".yaml") else EXPERIMENTS / "grids" / f"{grid}.yaml"
    content = read_yaml(path)
    unknown = set(content) - {"profile", "seeds", "cells"}
    if unknown or not {"profile", "seeds", "cells"} <= set(content):
        raise ConfigError(f"{path}: a grid has the keys profile, seeds and cells, no other")
    cells = [cell for mapping in content["cells"] for cell in _product(mapping)]
    runs = []
    for seed, cell in itertools.product(content["seeds"], cells):
        settings: dict[str, Any] = {"seed": seed}
        for key, value in cell.items():
            if key != "method":
                settings = merge(settings, nest(key, value))
        runs.append(compose(content["profile"], cell.get("method"), settings, overrides))
    return runs


def _product(mapping: dict[str, Any]) -> list[dict[str, Any]]:
    values = [value if isinstance(value, list) else [value] for value in mapping.values()]
    return [dict(zip(mapping, combination, strict=True)) for combination in itertools.product(*values)]
