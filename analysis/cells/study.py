"""Runs of one experiment and reward, and comparisons of their cells: values of finished runs, paired by seed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.cells.labels import PAPER_GRID, Cell, judge_name, split_cells
from analysis.cells.logs import TRAINING_REWARD, VALIDATION_POINTS, Logs
from analysis.cells.spending import spent
from analysis.cells.variants import variant_of_base
from analysis.statistics import Interval, Pair

MIN_SEEDS_FOR_INTERVAL = 5


class Comparison(NamedTuple):
    """Comparison of a cell with its base on one metric, over the seeds that both have finished."""

    seeds: Sequence[int]
    difference: float
    """Mean over seeds of treatment - base."""
    sd: float
    """Sample standard deviation of the differences; NaN below 2 seeds."""
    interval: Interval | None
    """95 % interval over resampled seeds, and prompts if all runs logged values per prompt; None below
    ``MIN_SEEDS_FOR_INTERVAL`` seeds."""
    probability_of_improvement: float
    correlation: float
    detectable: float
    """``statistics.minimum_detectable_effect`` for this number of pairs."""


@dataclass(frozen=True, eq=False)
class Study:
    """Runs of one experiment on one reward."""

    experiment: str
    reward: str
    prefix: str
    """Prefix of file names if there are several studies, else empty."""
    runs: pd.DataFrame
    """Rows of ``Logs.runs``."""
    summary: pd.DataFrame
    """Rows of ``Logs.summary``."""

    @cached_property
    def finished(self) -> set[str]:
        """Ids of finished runs."""
        return set(self.summary.loc[self.summary["state"] == "finished", "run_id"])

    @property
    def environments(self) -> list[Mapping[str, Any]]:
        """Contents of the environment.json files of finished runs."""
        return list(self.summary.loc[self.summary["state"] == "finished", "environment"])

    @cached_property
    def cells(self) -> list[tuple[Cell, pd.DataFrame]]:
        """Each cell with its rows of ``summary``, ordered by method, with the base and + AdaGRPO first."""
        return split_cells(self.summary)

    @cached_property
    def reader(self) -> str | None:
        """An unseen judge that reads words, whose accuracy is the plainest measure; None if there is none."""
        unseen = self.summary["unseen_judges"]
        return next((judge for judge in self.reading_judges if all(judge in judges for judges in unseen)), None)

    @property
    def reading_judges(self) -> list[str]:
        """Judges that read words, trained on or not."""
        return [judge for judge in self.judges if f"{judge}/word_accuracy" in self._logged]

    @cached_property
    def judges(self) -> list[str]:
        """Every judge of the runs."""
        return list(dict.fromkeys(judge for judges in self.summary["judges"] for judge in judges))

    @cached_property
    def metrics(self) -> dict[str, str]:
        """Headings of metrics in tables: the trained reward, the unseen reader and its word accuracy, other judges."""
        wanted = {TRAINING_REWARD: f"Training reward ({self.reward})"}
        if (reader := self.reader) is not None:
            wanted |= {reader: f"Unseen judge {reader}", f"{reader}/word_accuracy": f"Word accuracy ({reader})"}
        wanted |= {judge: judge_name(judge) for judge in self.judges if judge != reader}
        return {metric: name for metric, name in wanted.items() if metric in self._logged and metric != self.reward}

    @cached_property
    def _logged(self) -> set[str]:
        return set(self.evaluations["metric"].unique())

    @cached_property
    def evaluations(self) -> pd.DataFrame:
        """Rows of ``runs`` without those of training, which are the most."""
        return self.runs[self.runs["split"] != "train"]

    @cached_property
    def final(self) -> pd.DataFrame:
        """Rows of ``runs``: evaluations of finished runs after training began."""
        rows = self.evaluations
        return rows[(rows["iteration"] > 0) & rows["run_id"].isin(self.finished)]

    def rows(self, split: str, metric: str) -> pd.DataFrame:
        """Rows of ``runs`` for one metric of a split; those of training only if they were loaded."""
        among = self.runs if split == "train" else self.evaluations
        return among[(among["metric"] == metric) & (among["split"] == split)]

    def validations(self, cell: Cell) -> pd.DataFrame:
        """Rows of ``runs`` for the trained reward of a cell's finished runs on validation prompts, by iteration."""
        rows = self.rows("validation", TRAINING_REWARD)
        own = self.finished.intersection(dict(self.cells)[cell]["run_id"])
        return rows[rows["run_id"].isin(own)].sort_values("iteration")

    @cached_property
    def processor(self) -> str:
        """The CPU that made most runs; seconds are averaged over these alone, since other CPUs differ in speed."""
        return str(self.summary["processor"].mode().iloc[0])

    def timed(self, members: pd.DataFrame) -> pd.DataFrame:
        """Those rows of ``summary`` whose seconds can be averaged: runs made on ``processor``."""
        return members[members["processor"] == self.processor]

    @cached_property
    def spent(self) -> pd.DataFrame:
        """``analysis.cells.spending.spent`` at the iterations that were evaluated."""
        table = spent(self.runs)
        return table[table["iteration"].isin(self.evaluations["iteration"].unique())]

    @cached_property
    def endpoint(self) -> str:
        """Split of the final results: test, or validation if no finished run has read a test list."""
        splits = set(self.final["split"])
        return "validation" if splits == {"validation"} else "test"

    def values(self, cell: Cell, metric: str, split: str | None = None) -> pd.Series:
        """Final values of a cell by seed, on ``endpoint`` or another split; runs of one seed are averaged."""
        return self._values.get((cell, metric, split or self.endpoint), pd.Series(dtype=float))

    @cached_property
    def final_values(self) -> pd.DataFrame:
        """Final value of each finished run, split and metric: the last test, or the mean of the last validations."""
        rows, keys = self.final.sort_values("iteration"), ["run_id", "split", "metric"]
        last = [
            rows[rows["split"] == split].groupby(keys, observed=True).tail(num_points)
            for split, num_points in (("test", 1), ("validation", VALIDATION_POINTS))
        ]
        return pd.concat(last).groupby(keys, observed=True)["value"].mean().reset_index()

    @cached_property
    def _values(self) -> dict[tuple[Cell, str, str], pd.Series]:
        cells = [cell for cell, _ in self.cells]
        members = pd.concat([of_cell[["run_id", "seed"]].assign(cell=i) for i, (_, of_cell) in enumerate(self.cells)])
        keys = ["cell", "metric", "split", "seed"]
        by_seed = (
            self.final_values.merge(members, on="run_id").groupby(keys, observed=True)["value"].mean().reset_index()
        )
        seeds, means = by_seed["seed"].to_numpy(), by_seed["value"].to_numpy()
        positions = cast(dict[tuple[int, str, str], np.ndarray], by_seed.groupby(keys[:3], observed=True).indices)
        return {
            (cells[i], metric, of_split): pd.Series(means[rows], index=pd.Index(seeds[rows], name="seed"))
            for (i, metric, of_split), rows in positions.items()
        }

    @cached_property
    def interval(self) -> Callable[[Cell, str], Interval | None]:
        """Function that returns the 95 % interval of a cell's mean of a metric over seeds on ``endpoint`` prompts.

        It returns None below ``MIN_SEEDS_FOR_INTERVAL`` seeds.
        """

        def of(cell: Cell, metric: str) -> Interval | None:
            values = self.values(cell, metric).to_numpy()
            return statistics.mean_interval(values) if len(values) >= MIN_SEEDS_FOR_INTERVAL else None

        return cache(of)

    def start(self, cell: Cell, split: str | None = None) -> float:
        """The untrained model's trained reward on ``endpoint`` prompts or those of another split; NaN if it was only
        measured on others."""
        before, measured = self.untrained(cell)
        return float(before.get(TRAINING_REWARD, math.nan)) if measured == (split or self.endpoint) else math.nan

    def untrained(self, cell: Cell) -> tuple[pd.Series, str]:
        """Values of the untrained model by metric, and the split they were measured on: test, validation or none.

        They come from the first of these that exists: the test of the cell's finished runs; that of other runs of the
        same model, files, evaluation and scale of rewards; the cell's own first validation.
        """
        members = dict(self.cells)[cell]
        finished = [run for run in members["run_id"] if run in self.finished]
        first = members.iloc[0]
        same = (self.summary["start"] == first["start"]) & (self.summary["files"] == first["files"])
        model = self.summary.loc[same, "run_id"]
        start = self.evaluations[self.evaluations["iteration"] == 0]
        for ids, split in ((finished, "test"), (model, "test"), (members["run_id"], "validation")):
            rows = start[(start["split"] == split) & start["run_id"].isin(list(ids))]
            if len(rows):
                return rows.groupby("metric")["value"].mean(), split
        return pd.Series(dtype=float), "none"

    @property
    def grid_cells(self) -> list[tuple[Cell, pd.DataFrame]]:
        """Those of ``cells`` without a variant; of several fusion weights only 1, the release's, if it occurs."""
        plain = [cell for cell, _ in self.cells if not cell.variant]
        return [
            (cell, members)
            for cell, members in self.cells
            if cell in plain
            and (not cell.fusion or cell.fusion_weight == 1 or cell._replace(fusion_weight=1.0) not in plain)
        ]

    @property
    def is_miniature(self) -> bool:
        """Whether all runs are of the miniature, of which some facts are fixed."""
        paths = self.summary["config"].map(lambda config: str(config.get("model", {}).get("path", "")))
        return bool(paths.str.contains("models/miniature").all())

    def base_of(self, cell: Cell) -> Cell | None:
        """The cell of the same method and settings with random prompts and without fusion; None if there is none."""
        base = Cell(cell.method, "random", False, 0.0, variant_of_base(cell.variant))
        return base if base in dict(self.cells) else None

    @cached_property
    def compare(self) -> Callable[[Cell, str], Comparison | None]:
        """Function that compares a cell with its base on a metric; it returns None if they share no finished seed."""
        return cache(self._compare)

    def _compare(self, cell: Cell, metric: str) -> Comparison | None:
        base = self.base_of(cell)
        if base is None or base == cell:
            return None
        seeds, pair = self.pair(cell, base, metric, self.endpoint)
        if not seeds:
            return None
        ours, theirs = map(statistics.of_seeds, pair)
        sd = float((ours - theirs).std(ddof=1)) if len(seeds) > 1 else math.nan
        return Comparison(
            seeds=seeds,
            difference=float((ours - theirs).mean()),
            sd=sd,
            interval=statistics.paired_interval(*pair) if len(seeds) >= MIN_SEEDS_FOR_INTERVAL else None,
            probability_of_improvement=statistics.probability_of_improvement(ours, theirs),
            correlation=statistics.correlation(ours, theirs),
            detectable=statistics.minimum_detectable_effect(sd, len(seeds)),
        )

    def pair(self, treatment: Cell, control: Cell, metric: str, split: str = "test") -> tuple[list[int], Pair]:
        """Seeds that two cells have both finished, and their final values there, per prompt if all runs logged these.

        Args:
            treatment: a cell of the study.
            control: another cell.
            metric: metric of evaluations.
            split: test, or validation for the mean of the last validations.
        """
        return self._pair((treatment, metric), (control, metric), split)

    def pair_of_metrics(self, cell: Cell, first: str, second: str) -> tuple[list[int], Pair]:
        """Same as ``pair`` for two metrics of one cell on test prompts."""
        return self._pair((cell, first), (cell, second), "test")

    def _pair(self, first: tuple[Cell, str], second: tuple[Cell, str], split: str) -> tuple[list[int], Pair]:
        ours, theirs = (self.values(*side, split) for side in (first, second))
        seeds = sorted(set(ours.index) & set(theirs.index) & self.comparable(first[0], second[0]))
        by_prompt = [self._by_prompt(*side, split, seeds) for side in (first, second)]
        if by_prompt[0] is not None and by_prompt[1] is not None and by_prompt[0].shape == by_prompt[1].shape:
            return seeds, Pair(by_prompt[0], by_prompt[1])
        return seeds, Pair(ours[seeds].to_numpy(), theirs[seeds].to_numpy())

    def comparable(self, first: Cell, second: Cell) -> set[int]:
        """Seeds whose runs of both cells were made on one model of processor: another's rounding is no treatment."""
        ours, theirs = (self._processors.get(cell, {}) for cell in (first, second))
        return {seed for seed, found in ours.items() if seed in theirs and len(found | theirs[seed]) == 1}

    @cached_property
    def _processors(self) -> dict[Cell, dict[int, set[str]]]:
        """Models of processor that made each cell's runs, by seed."""
        of_cells = {cell: runs.groupby("seed")["processor"].agg(set).items() for cell, runs in self.cells}
        return {cell: {int(str(seed)): found for seed, found in of_seeds} for cell, of_seeds in of_cells.items()}

    def _by_prompt(self, cell: Cell, metric: str, split: str, seeds: Sequence[int]) -> np.ndarray | None:
        """Final values ``[seeds, prompts]``; None if a run has no values per prompt, or if their numbers differ."""
        members = dict(self.cells)[cell]
        members = members[members["run_id"].isin(self.finished) & members["seed"].isin(seeds)]
        of_runs = [by_prompt[split].get(metric, np.empty(0)) for by_prompt in members["by_prompt"]]
        lengths = set(map(len, of_runs))
        if len(lengths) != 1 or 0 in lengths:
            return None
        own = list(zip(members["seed"], of_runs, strict=True))
        return np.stack([np.mean([values for of, values in own if of == seed], axis=0) for seed in seeds])


def split_studies(logs: Logs) -> list[Study]:
    """Split logs into one study per experiment and reward."""
    pairs = logs.summary[["experiment", "reward"]].drop_duplicates().sort_values(["experiment", "reward"])
    studies = []
    for experiment, reward in pairs.itertuples(index=False):
        members = ((logs.summary["experiment"] == experiment) & (logs.summary["reward"] == reward)).to_numpy()
        prefix = f"{experiment}-{reward}-".replace("*", "x").replace("+", "-plus-") if len(pairs) > 1 else ""
        # The rows of a single study are not copied, since there may be millions.
        runs = logs.runs
        if not members.all():
            runs = runs[(runs["experiment"] == experiment) & (runs["reward"] == reward)]
        studies.append(Study(str(experiment), str(reward), prefix, runs, logs.summary[members]))
    return studies


def first_seeds(study: Study, count: int) -> Study:
    """Restrict a study to the runs of each method's ``count`` lowest seeds."""
    summary = study.summary
    return replace(study, summary=summary[summary.groupby("method")["seed"].rank(method="dense") <= count])


def first_seeds_of_cells(study: Study, counts: Mapping[Cell, int]) -> Study:
    """Restrict a study to the runs of the lowest seeds of some cells, ``counts[cell]`` each; other cells keep all."""
    kept = [runs[runs["seed"].rank(method="dense") <= counts.get(cell, math.inf)] for cell, runs in study.cells]
    return replace(study, summary=pd.concat(kept).sort_index())


def adagrpo_pairs(study: Study) -> list[tuple[Cell, list[Cell]]]:
    """Base cell of each method with its + AdaGRPO cells, one per fusion weight; only methods that have both."""
    pairs = []
    for base in (cell for cell, _ in study.grid_cells if cell.is_base):
        ours = [c for c, _ in study.grid_cells if c.method == base.method and c.is_adagrpo]
        if ours:
            pairs.append((base, ours))
    return pairs


def missing_cells(study: Study) -> dict[str, list[Cell]]:
    """Cells of the paper's grid that have no finished run, by method."""
    there = {cell[:3] for cell, members in study.grid_cells if (members["state"] == "finished").any()}
    missing: dict[str, list[Cell]] = {}
    for cell in PAPER_GRID:
        if cell[:3] not in there:
            missing.setdefault(cell.method, []).append(cell)
    return missing
