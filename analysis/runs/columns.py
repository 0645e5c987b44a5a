"""A run's numbers as arrays: to select from these takes a tenth of what filters of tables do, and runs are many."""

import numpy as np
import pyarrow as pa

_WHOLE = ["split", "metric", "iteration", "value"]


class Columns:
    """A table with the columns ``analysis.runs.runlog.NUMBERS``, and its columns as arrays."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.iteration: np.ndarray = table["iteration"].to_numpy()
        self.value: np.ndarray = table["value"].to_numpy()
        """NaN for none."""
        self.is_whole: np.ndarray = table["item"].is_null().to_numpy()
        """Where a number is of a whole split, not of a prompt."""
        self._splits, self._split = _labels(table["split"])
        self._metrics, self._metric = _labels(table["metric"])

    def of_split(self, split: str) -> np.ndarray:
        """Where rows are a split's."""
        return _is_one_of(self._splits, self._split, (split,))

    def of_metric(self, *metrics: str) -> np.ndarray:
        """Where rows are one of some metrics'."""
        return _is_one_of(self._metrics, self._metric, metrics)

    def names(self, where: np.ndarray) -> list[str]:
        """Metrics of those of the rows."""
        return [self._metrics[code] for code in np.unique(self._metric[where])]

    def points(self, where: np.ndarray) -> set[tuple[str, int]]:
        """Splits and iterations of those of the rows."""
        found = np.unique(np.stack([self._split[where], self.iteration[where]]), axis=1)
        return {(self._splits[split], int(iteration)) for split, iteration in found.T}

    def latest(self, metric: str) -> dict[str, int]:
        """The last whole value of a metric of evaluations, by split."""
        rows = self.of_metric(metric) & self.is_whole
        return {
            self._splits[split]: int(value) for split, value in zip(self._split[rows], self.value[rows], strict=True)
        }

    def by_metric(self, where: np.ndarray) -> dict[str, np.ndarray]:
        """Values of those of the rows, ``{metric: values}``, in their order."""
        codes, values = self._metric[where], self.value[where]
        return {self._metrics[code]: values[codes == code] for code in np.flatnonzero(np.bincount(codes))}

    def whole_rows(self, where: np.ndarray) -> pa.Table:
        """Those of the rows, all of which are of whole splits, without the columns that only prompts have."""
        return self.table.select(_WHOLE).filter(pa.array(where))


def _labels(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """The names that occur, and for each row which of them it has."""
    array = column.combine_chunks()
    return array.dictionary.to_pylist(), array.indices.to_numpy()


def _is_one_of(names: list[str], codes: np.ndarray, wanted: tuple[str, ...]) -> np.ndarray:
    found = np.zeros(len(codes), dtype=bool)
    for name in wanted:
        if name in names:
            found |= codes == names.index(name)
    return found
