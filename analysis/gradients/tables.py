"""What a measurement is of, and its tables as arrays by checkpoint and set of updates."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.cells.labels import in_papers_order
from analysis.statistics import Values
from harness.foundation.errors import ConfigError

REFERENCE = "reference"
EVERYTHING = "all"
"""The set of all different prompts that any strategy chose."""


@dataclass(frozen=True)
class Units:
    """Gradients of single updates of one set at one checkpoint; n of them in ``blocks`` blocks.

    Attributes:
        rows: ``units.parquet``'s rows.
        kinds: of advantages, in the order of axes.
        num_blocks: of the measurement; a set need not have updates in all of them.
        length: of the reference gradient.
        num_groups: of one update.
    """

    rows: pd.DataFrame
    kinds: tuple[str, ...]
    num_blocks: int
    length: float
    num_groups: int

    @cached_property
    def gram(self) -> Values:
        """``[n, kinds, kinds]`` inner products of each update's gradients."""
        columns = {name: self.rows[name].to_numpy(dtype=float) for name in self.rows if "|" in str(name)}
        pairs = [[columns.get(f"{a}|{b}", columns.get(f"{b}|{a}")) for b in self.kinds] for a in self.kinds]
        return np.moveaxis(np.array(pairs), -1, 0)

    @cached_property
    def with_reference(self) -> Values:
        """``[n, kinds]`` inner products with the reference gradient."""
        return np.stack([self.rows[f"{kind}|{REFERENCE}"].to_numpy(dtype=float) for kind in self.kinds], axis=1)

    @cached_property
    def counts(self) -> Values:
        """``[blocks]`` updates in each block."""
        return self.by_block(np.ones(len(self.rows)))

    def by_block(self, values: Values) -> Values:
        """``[n]`` values of updates -> ``[blocks]`` sums."""
        return np.bincount(self.rows["block"], weights=values, minlength=self.num_blocks).astype(float)

    def squares(self, coefficients: Values) -> Values:
        """``[n]`` squared lengths of the gradient of a sum of kinds."""
        return np.asarray(np.einsum("k,l,nkl->n", coefficients, coefficients, self.gram))

    def cosines(self, coefficients: Values) -> Values:
        """``[n]`` cosines of the gradient of a sum of kinds with the reference; 0 for a gradient that is 0."""
        lengths, products = np.sqrt(self.squares(coefficients)), self.with_reference @ coefficients
        return np.divide(products, lengths * self.length, out=np.zeros_like(products), where=lengths > 0)

    def siblings(self, name: str) -> Values:
        """``[n, K, G]`` of rewards, local or global."""
        values = np.stack(self.rows[name].to_list()).astype(float)
        return values.reshape(len(values), self.num_groups, -1)


class Measurement:
    """What was measured, in which order, as about.json says it, and the tables units.parquet and blocks.parquet.

    Raises:
        ConfigError: about.json is missing or broken, or a table that is asked for; names it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.about: Mapping[str, Any] = read(folder / "about.json", lambda path: json.loads(path.read_text("utf-8")))
        self.kinds: tuple[str, ...] = tuple(self.about["kinds"])
        self.strategies = tuple(in_papers_order(self.about["strategies"]))
        self.iterations: dict[str, int] = {c["label"]: c["iteration"] for c in self.about["checkpoints"]}
        """By checkpoint, in order of training."""
        self.lengths: dict[str, float] = dict(zip(self.iterations, self.about["reference_lengths"], strict=True))
        """Lengths of the reference gradients, noise included."""
        self.reference_counts = np.asarray(self.about["reference_counts"], dtype=float)
        """``[reference blocks]`` prompts in each."""

    @cached_property
    def _units(self) -> dict[Any, pd.DataFrame]:
        rows = read(self._folder / "units.parquet", pd.read_parquet)
        return dict(iter(rows.groupby("checkpoint", observed=True)))

    @cached_property
    def _blocks(self) -> dict[Any, pd.DataFrame]:
        rows = read(self._folder / "blocks.parquet", pd.read_parquet)
        return dict(iter(rows.groupby(["checkpoint", "set"], observed=True)))

    @property
    def bins(self) -> dict[str, str]:
        """Sets by difficulty, hardest first, and what rewards are in them."""
        edges = [f"{edge:g}" for edge in self.about["difficulty_edges"]]
        inner = [f"{low} to {high}" for low, high in pairwise(edges)]
        names = [f"below {edges[0]}", *inner, f"from {edges[-1]}"]
        return {f"difficulty-{number}": name for number, name in enumerate(names)}

    @property
    def labels(self) -> dict[str, str]:
        """How figures and tables call the checkpoints; runs are named where iterations do not tell them apart."""
        iterations = list(self.iterations.values())
        named = {}
        for label, iteration in self.iterations.items():
            run = f" ({label.partition('@')[0]})" if iterations.count(iteration) > 1 else ""
            named[label] = "untrained" if label == "base" else f"{iteration} iterations{run}"
        return named

    @cached_property
    def num_blocks(self) -> int:
        """Blocks of rounds, at each checkpoint."""
        return 1 + max(int(rows["block"].max()) for rows in self._units.values())

    def units(self, checkpoint: str, name: str) -> Units:
        """Updates of a strategy, of a bin of difficulty, or all."""
        rows = self._units[checkpoint]
        if name in self.strategies:
            rows = rows[rows[name]]
        elif name in self.bins:
            rows = rows[rows["difficulty"] == list(self.bins).index(name)]
        return Units(rows, self.kinds, self.num_blocks, self.lengths[checkpoint], self.about["groups_per_unit"])

    def blocks(self, checkpoint: str, name: str) -> tuple[Values, Values]:
        """Inner products of the sums of blocks of a strategy or of a bin of difficulty.

        Returns:
            ``[kinds, kinds, blocks, blocks]``, 0 on the diagonal of blocks; and with the reference's sums
            ``[kinds, blocks, reference blocks]``.
        """
        by_kinds = dict(iter(self._blocks[checkpoint, name].groupby(["kind", "other_kind"], observed=True)))
        num, num_reference = self.num_blocks, len(self.reference_counts)
        products = np.zeros((len(self.kinds), len(self.kinds), num, num))
        for a, first in enumerate(self.kinds):
            for b, second in enumerate(self.kinds[a:], start=a):
                products[a, b] = products[b, a] = _symmetric(by_kinds[first, second], num)
        return products, np.stack([_matrix(by_kinds[kind, REFERENCE], num, num_reference) for kind in self.kinds])

    def reference(self, checkpoint: str) -> Values:
        """``[reference blocks, reference blocks]`` inner products of the reference's sums, 0 on the diagonal."""
        return _symmetric(self._blocks[checkpoint, REFERENCE], len(self.reference_counts))


def read(path: Path, reader: Callable[[Path], Any]) -> Any:
    """Read a measurement's file. Raises ConfigError, which names it, if it is missing or broken."""
    try:
        return reader(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        again = f"; python -m analysis.gradients {path.parent} writes it again" if path.suffix == ".csv" else ""
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())}{again}") from None


def _matrix(rows: pd.DataFrame, height: int, width: int) -> Values:
    matrix = np.zeros((height, width))
    matrix[rows["block"], rows["other_block"]] = rows["value"]
    return matrix


def _symmetric(rows: pd.DataFrame, size: int) -> Values:
    upper = _matrix(rows, size, size)
    return upper + upper.T
