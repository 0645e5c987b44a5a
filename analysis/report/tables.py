"""Tables of cells: results, differences from the base and costs, with the runs that they come from."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from scipy.stats import trim_mean

from analysis import paper
from analysis.cells.labels import METHOD_NAMES, Cell, judge_name
from analysis.cells.logs import TRAINING_REWARD
from analysis.cells.study import Comparison, Study, adagrpo_pairs
from analysis.formats import Entry, WideTable
from analysis.statistics import Interval

COSTS = ("sample_forwards", "train_forwards", "compute", "reward_calls")
TIMES = ("seconds_per_iteration", "train_seconds", "evaluation_seconds")
_NOT_COMPARED = Comparison([], math.nan, math.nan, None, math.nan, math.nan, math.nan)


def cell_frame(study: Study) -> pd.DataFrame:
    """Table of cells with all digits, one row per cell: the content of tables/cells.csv.

    Returns:
        For each metric METRIC_before (the untrained model), METRIC_after, _sd, _interquartile_mean, _low and _high:
        means over finished seeds on ``endpoint`` prompts with their interval; the trained reward's difference from the
        base cell; ``COSTS``, and ``TIMES`` of timed runs, as means over finished runs. ``seeds`` are those with a value
        of the trained reward. NaN marks values that were not measured.
    """
    records = []
    for cell, members in study.cells:
        finished = members[members["state"] == "finished"]
        before, before_split = study.untrained(cell)
        record: dict[str, Any] = {"experiment": study.experiment, "reward": study.reward, "cell": cell.label}
        record |= cell._asdict() | {"seeds": len(study.values(cell, TRAINING_REWARD))}
        record |= {"num_runs": len(members), "num_finished": len(finished)}
        record |= {"iterations": int(members["iteration"].max()), "before_split": before_split}
        for metric in study.metrics:
            values = study.values(cell, metric)
            record |= {f"{metric}_before": float(before.get(metric, math.nan)), f"{metric}_after": values.mean()}
            record |= {f"{metric}_sd": values.std()}
            record |= {f"{metric}_interquartile_mean": trim_mean(values, 0.25) if len(values) else math.nan}
            record |= _bounds(f"{metric}_", study.interval(cell, metric))
        record |= _comparison(study.compare(cell, TRAINING_REWARD))
        record |= {name: float(finished[name].mean()) for name in COSTS}
        record |= {name: float(study.timed(finished)[name].mean()) for name in TIMES}
        records.append(record | {"run_ids": " ".join(sorted(members["run_id"]))})
    return pd.DataFrame(records)


def cells_table(study: Study, frame: pd.DataFrame) -> WideTable:
    """Format ``cell_frame`` for readers: final values, the paired difference from the base, and costs."""
    head = ["Cell", "Seeds", *study.metrics.values(), "Training reward, difference to base", "s/iteration", "Forwards"]
    body = []
    for (cell, _), row in zip(study.cells, frame.to_dict("records"), strict=True):
        entries = [Entry(row["seeds"], digits=0)]
        entries += [Entry(row[f"{metric}_after"], row[f"{metric}_sd"]) for metric in study.metrics]
        entries += [
            difference_entry(study.compare(cell, TRAINING_REWARD)),
            Entry(row["seconds_per_iteration"], digits=2),
        ]
        body.append((cell.label, [*entries, Entry(row["compute"], digits=0)]))
    title = f"Experiment {study.experiment}, trained on {study.reward}: {study.endpoint} prompts, mean ± sd over seeds"
    return WideTable(title, head, body)


def run_frame(study: Study) -> pd.DataFrame:
    """Table of runs, the content of tables/runs.csv: identity, progress, costs and test values, one row per run."""
    last = study.evaluations[(study.evaluations["split"] == "test") & (study.evaluations["iteration"] > 0)]
    columns = ["experiment", "reward", "cell", *Cell._fields, "seed", "run_id", "state", "reason"]
    columns += ["iteration", "iterations", *COSTS, *TIMES]
    wanted = last[last["metric"].isin(list(study.metrics))]
    values = wanted.pivot_table(index="run_id", columns="metric", values="value", observed=True)
    rows = pd.concat([members.sort_values("seed").assign(cell=cell.label) for cell, members in study.cells])
    values = values.reindex(index=rows["run_id"], columns=list(study.metrics)).add_prefix("test_")
    return pd.concat([rows.set_index("run_id", drop=False)[columns], values], axis=1)


def main_table(study: Study) -> WideTable | None:
    """Main table: untrained, base, + AdaGRPO and their paired difference by method and judge; None without a pair."""
    pairs = adagrpo_pairs(study)
    if not pairs:
        return None
    rows = _untrained_rows(study, [base for base, _ in pairs])
    for base, treatments in pairs:
        for cell in (base, *treatments):
            values = [study.values(cell, metric) for metric in study.metrics]
            rows.append((cell.label, [Entry(of_metric.mean(), of_metric.std()) for of_metric in values]))
            if cell != base:
                rows.append(("difference", [difference_entry(study.compare(cell, metric)) for metric in study.metrics]))
    title = f"This study, trained on {study.reward}: {study.endpoint} prompts, mean ± sd over seeds"
    return WideTable(title, ["", *study.metrics.values()], rows)


def _untrained_rows(study: Study, bases: Sequence[Cell]) -> list[tuple[str, list[Entry]]]:
    """A row for each untrained model, way to measure it and test list that base cells begin with."""
    starts: dict[tuple[str, str], list[Cell]] = {}
    for base in bases:
        first = dict(study.cells)[base].iloc[0]
        tested_on = str((first["environment"].get("fingerprints") or {}).get("test"))
        starts.setdefault((first["start"], tested_on), []).append(base)
    rows = []
    for cells in starts.values():
        before, split = study.untrained(cells[0])
        label = "Untrained" if len(starts) == 1 else f"Untrained, {', '.join(cell.label for cell in cells)}"
        label += "" if split == study.endpoint else f" ({split} prompts)"
        rows.append((label, [Entry(before.get(metric, math.nan)) for metric in study.metrics]))
    return rows


def main_frame(study: Study) -> pd.DataFrame:
    """Main table in long form with all digits and run ids: the content of tables/main.csv."""
    records = []
    for base, treatments in adagrpo_pairs(study):
        for cell in (base, *treatments):
            finished = dict(study.cells)[cell].query("state == 'finished'")
            for metric in study.metrics:
                values = study.values(cell, metric)
                record: dict[str, Any] = {"experiment": study.experiment, "reward": study.reward, "cell": cell.label}
                record |= cell._asdict() | {"metric": metric, "seeds": len(values)}
                record |= {"mean": values.mean(), "sd": values.std(), **_bounds("", study.interval(cell, metric))}
                record |= _comparison(study.compare(cell, metric))
                records.append(record | {"run_ids": " ".join(sorted(finished["run_id"]))})
    return pd.DataFrame(records, columns=_MAIN_COLUMNS)


def paper_table() -> WideTable:
    """The paper's main table, with the same rows for each of its training rewards; one run each."""
    table = paper.main_table().set_index(["training_reward", "method", "adagrpo"])[list(paper.JUDGES)]

    def entries(values: Iterable[Any], signed: bool = False) -> list[Entry]:
        return [Entry(float(value), digits=4, signed=signed) for value in values]

    [(method, untrained)] = table.loc["none"].droplevel("adagrpo").iterrows()
    rows: list[tuple[str, list[Entry]]] = [(f"Untrained {method}", entries(untrained))]
    for reward, name in paper.REWARD_NAMES.items():
        for method in METHOD_NAMES.values():
            base, ours = (table.xs((reward, method, adagrpo)) for adagrpo in (False, True))
            rows.append((f"{method} on {name}", entries(base)))
            rows.append((f"{method} + AdaGRPO on {name}", entries(ours)))
            rows.append(("difference", entries(ours - base, signed=True)))
    title = "The paper (FLUX.1-dev, 512 x 512): one run each, without spread"
    return WideTable(title, ["", *map(judge_name, paper.JUDGES)], rows)


def extra_gain_table(study: Study) -> WideTable | None:
    """Extra gain of + AdaGRPO, as a share of its base's gain over the untrained model, beside the paper's.

    It is (AdaGRPO - base) / (base - untrained) of means over seeds, for the reward that was trained on: dimensionless,
    so that studies with different rewards are comparable. The interval is that of the difference, divided by the same
    gain. None if no base gained anything, or if the untrained model was not measured on ``endpoint`` prompts.
    """
    published = paper.extra_gains()
    rows = []
    for base, treatments in adagrpo_pairs(study):
        gain = study.values(base, TRAINING_REWARD).mean() - study.start(base)
        for cell in treatments:
            comparison = study.compare(cell, TRAINING_REWARD)
            name = METHOD_NAMES.get(cell.method, cell.method)
            theirs = [published.get((reward, name), math.nan) for reward in paper.REWARD_NAMES]
            shares = [_share(comparison, gain), *map(Entry, theirs)]
            rows.append((cell.label, [entry._replace(digits=0, signed=True, percent=True) for entry in shares]))
    if not any(math.isfinite(entries[0].value) for _, entries in rows):
        return None
    head = ["", f"This study ({study.reward})", *(f"The paper ({name})" for name in paper.REWARD_NAMES.values())]
    return WideTable("Extra gain of + AdaGRPO, as a share of the base's gain over the untrained model", head, rows)


def _share(comparison: Comparison | None, gain: float) -> Entry:
    if comparison is None or not gain > 0:
        return Entry(math.nan)
    interval = comparison.interval and Interval(*(bound / gain for bound in comparison.interval))
    return Entry(comparison.difference / gain, interval=interval)


def difference_entry(comparison: Comparison | None) -> Entry:
    if comparison is None:
        return Entry(math.nan)
    return Entry(comparison.difference, comparison.sd, comparison.interval, signed=True)


def _bounds(prefix: str, interval: Interval | None) -> dict[str, float]:
    _, low, high = interval or (math.nan,) * 3
    return {f"{prefix}low": low, f"{prefix}high": high}


def _comparison(comparison: Comparison | None) -> dict[str, Any]:
    found = comparison or _NOT_COMPARED
    return {
        "paired_seeds": len(found.seeds),
        "difference": found.difference,
        "difference_sd": found.sd,
        **_bounds("difference_", found.interval),
        "probability_of_improvement": found.probability_of_improvement,
        "paired_correlation": found.correlation,
        "detectable_difference": found.detectable,
    }


_MAIN_COLUMNS = ["experiment", "reward", "cell", *Cell._fields, "metric", "seeds", "mean", "sd", "low", "high"]
_MAIN_COLUMNS += [*_comparison(None), "run_ids"]
