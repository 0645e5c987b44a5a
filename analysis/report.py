"""The one-page report of a folder of runs: tables, curves and pictures in one self-contained HTML file."""

import argparse
import base64
import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from PIL import Image

from analysis.figures import draw_curves
from analysis.labels import Cell, split_cells
from analysis.logs import TRAINING_REWARD, RunLogError, find_runs, load_runs, load_summary

MIN_SEEDS_FOR_INTERVAL = 5
_LARGEST_PICTURE = 256  # Pixels; larger ones are shrunk so that the page stays light.


def write_report(runs_folder: Path, output: Path) -> Path:
    """Write report.html, tables/summary.csv and .md, and figures/*.svg and .png; the same logs give the same bytes.

    Args:
        runs_folder: holds run directories at any depth, see ``load_runs``.
        output: folder to write to; made if missing.

    Returns:
        The page's path.

    Raises:
        RunLogError: there is no run, or a file of one cannot be read; names it.
    """
    if not find_runs(runs_folder):
        raise RunLogError(f"{runs_folder}: holds no run (no config.yaml at any depth)")
    summary = load_summary(runs_folder)
    studies = _studies(load_runs(runs_folder), summary)
    for study in studies:
        for curve in study["curves"]:
            curve.save(output / "figures")
    _write_tables(studies, output / "tables")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "count": lambda value: f"{value:,.0f}"}
    finished = summary[summary["state"] == "finished"]
    page = environment.get_template("report.html.j2").render(
        studies=studies,
        num_runs=len(summary),
        num_finished=len(finished),
        num_seeds=finished["seed"].nunique(),
        num_iterations=int(summary["iteration"].sum()),
        unfinished=summary[summary["state"] != "finished"].to_dict("records"),
        all_runs=[
            {"label": cell.label} | run for cell, rows in split_cells(summary) for run in rows.to_dict("records")
        ],
        min_seeds=MIN_SEEDS_FOR_INTERVAL,
    )
    (output / "report.html").write_text(page, encoding="utf-8")
    return output / "report.html"


def cell_table(runs: pd.DataFrame, summary: pd.DataFrame, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """One row a cell, from its finished runs.

    Args:
        runs: rows of ``load_runs``, of one experiment and reward.
        summary: rows of ``load_summary`` of the same runs.
        metrics: evaluation metrics to compare before and after training.

    Returns:
        For each metric, ``before`` and ``after`` are means over seeds on test prompts, ``sd`` is the sample standard
        deviation of ``after`` (NaN for one seed). ``before`` is the untrained model's test; a run without one takes
        that of other runs of the same model, or else its own first validation (then ``before_split`` says so).
    """
    ends = runs.merge(summary[["run_id", "model"]], on="run_id")
    untrained = ends[(ends["iteration"] == 0) & ends["metric"].isin(metrics)]
    after = ends[(ends["split"] == "test") & (ends["iteration"] > 0)]
    rows = []
    for cell, members in split_cells(summary):
        finished = members[members["state"] == "finished"]
        ids, costs = list(finished["run_id"]), finished if len(finished) else members
        before, before_split = _before(untrained, ids, members["model"].iloc[0])
        trained = after[after["run_id"].isin(ids)].groupby("metric")["value"]
        mean, sd = trained.mean(), trained.std()
        rows.append(
            {
                "cell": cell,
                "label": cell.label,
                "seeds": finished["seed"].nunique(),
                "repeated_seeds": int(finished["seed"].duplicated().sum()),
                "num_runs": len(members),
                "num_finished": len(finished),
                "iterations": int(costs["iteration"].max()),
                "before_split": before_split,
                "metrics": {m: {"before": before.get(m), "after": mean.get(m), "sd": sd.get(m)} for m in metrics},
                "run_ids": sorted(members["run_id"]),
            }
            | {name: float(costs[name].mean()) for name in ("seconds_per_iteration", *_COSTS)}
        )
    return rows


_COSTS = ("sample_forwards", "train_forwards", "compute", "reward_calls")


def _before(untrained: pd.DataFrame, ids: Sequence[str], model: str) -> tuple[pd.Series, str]:
    test = untrained[untrained["split"] == "test"]
    own = untrained["run_id"].isin(list(ids))
    for rows, split in (
        (test[own.reindex(test.index)], "test"),
        (test[test["model"] == model], "test"),
        (untrained[own & (untrained["split"] == "validation")], "validation"),
    ):
        if len(rows):
            return rows.groupby("metric")["value"].mean(), split
    return pd.Series(dtype=float), "none"


def _studies(runs: pd.DataFrame, summary: pd.DataFrame) -> list[dict[str, Any]]:
    """What belongs together: runs of one experiment on one reward."""
    studies = []
    for (experiment, reward), members in summary.groupby(["experiment", "reward"]):
        of_study = runs[(runs["experiment"] == experiment) & (runs["reward"] == reward)]
        logged = set(of_study.loc[of_study["split"] != "train", "metric"])
        judges = list(dict.fromkeys(judge for judges in members["judges"] for judge in judges))
        unseen = [judge for judge in judges if all(judge in row for row in members["unseen_judges"])]
        # A judge that reads words comes first: its accuracy is the plainest of the measures.
        readers = [judge for judge in unseen if f"{judge}/word_accuracy" in logged]
        metrics = {TRAINING_REWARD: f"Training reward ({reward})"}
        for judge in sorted(judges, key=lambda judge: judge not in readers):
            metrics |= {judge: f"Unseen judge {judge}" if judge in readers else judge.capitalize()}
            metrics |= {f"{judge}/word_accuracy": f"Word accuracy ({judge})"} if judge in readers else {}
        metrics = {metric: name for metric, name in metrics.items() if metric in logged and metric != reward}
        several = summary[["experiment", "reward"]].drop_duplicates().shape[0] > 1
        prefix = f"{experiment}-{reward}-".replace("*", "x").replace("+", "-plus-") if several else ""
        finished = set(members.loc[members["state"] == "finished", "run_id"])
        curves = draw_curves(of_study, str(reward), readers[0] if readers else None, finished, prefix)
        studies.append(
            {
                "experiment": experiment,
                "reward": reward,
                "metrics": metrics,
                "cells": cell_table(of_study, members, list(metrics)),
                "curves": curves,
                "gallery": [entry for cell, rows in split_cells(members) if (entry := _gallery(cell, rows))],
            }
        )
    return studies


def _gallery(cell: Cell, members: pd.DataFrame) -> dict[str, Any] | None:
    """Pictures of a cell's first seed that has some, before and after training."""
    for run in members.sort_values(["seed", "run_id"]).to_dict("records"):
        folder = Path(run["folder"]) / "images"
        stacks = sorted(folder.glob("validation-*.png"))
        if len(stacks) < 2 or not (folder / "prompts.json").is_file():
            continue
        try:
            prompts = [str(prompt) for prompt in json.loads((folder / "prompts.json").read_text(encoding="utf-8"))]
        except ValueError as error:
            raise RunLogError(f"{folder / 'prompts.json'}: not JSON: {error}") from None
        pictures = zip(prompts, _slices(stacks[0], len(prompts)), _slices(stacks[-1], len(prompts)), strict=True)
        before, after = (int(stack.stem.rpartition("-")[2]) for stack in (stacks[0], stacks[-1]))
        return {"label": cell.label, "run": run, "before": before, "after": after, "pictures": list(pictures)}
    return None


def _slices(path: Path, num_pictures: int) -> list[str]:
    """Data URIs of the pictures that a PNG stacks in one column."""
    try:
        with Image.open(path) as image:
            stack = image.convert("RGB")
    except OSError as error:
        raise RunLogError(f"{path}: cannot be read: {error}") from None
    if num_pictures == 0 or stack.height % num_pictures:
        raise RunLogError(f"{path}: height {stack.height} does not divide into {num_pictures} prompts' pictures")
    height, uris = stack.height // num_pictures, []
    for top in range(0, stack.height, height):
        picture = stack.crop((0, top, stack.width, top + height))
        picture.thumbnail((_LARGEST_PICTURE, _LARGEST_PICTURE))
        buffer = BytesIO()
        picture.save(buffer, format="PNG")
        uris.append(f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}")
    return uris


def _write_tables(studies: Sequence[dict[str, Any]], folder: Path) -> None:
    """summary.csv with full numbers, summary.md for a README."""
    folder.mkdir(parents=True, exist_ok=True)
    records, text = [], []
    for study in studies:
        names = list(study["metrics"].values())
        text += [
            f"Experiment {study['experiment']}, trained on {study['reward']}; test prompts, before → after (sd)",
            "",
        ]
        text += [
            f"| {' | '.join(['Cell', 'Seeds', *names, 's/iteration', 'Forwards'])} |",
            "|---" * (len(names) + 4) + "|",
        ]
        for row in study["cells"]:
            values = [
                f"{_number(v['before'])} → {_number(v['after'])}{_spread(v['sd'])}" for v in row["metrics"].values()
            ]
            cost = [_number(row["seconds_per_iteration"], 2), f"{row['compute']:,.0f}"]
            text.append(f"| {' | '.join([row['label'], str(row['seeds']), *values, *cost])} |")
            record = {"experiment": study["experiment"], "reward": study["reward"], "cell": row["label"]}
            counts = ("seeds", "num_runs", "num_finished", "iterations", "before_split")
            record |= row["cell"]._asdict() | {name: row[name] for name in counts}
            record |= {f"{m}_{end}": value for m, values_ in row["metrics"].items() for end, value in values_.items()}
            record |= {name: row[name] for name in ("seconds_per_iteration", *_COSTS)}
            records.append(record | {"run_ids": " ".join(row["run_ids"])})
        text.append("")
    pd.DataFrame(records).to_csv(folder / "summary.csv", index=False, lineterminator="\n")
    (folder / "summary.md").write_text("\n".join(text), encoding="utf-8")


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or pd.isna(value) else f"{value:.{digits}f}"


def _spread(sd: float | None) -> str:
    return "" if sd is None or pd.isna(sd) else f" ({sd:.3f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m analysis.report RUNS OUTPUT``: write the report, print its path; 2 when runs cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.report", description="Write the report of a folder of runs."
    )
    parser.add_argument("runs", type=Path, help="folder that holds run directories, at any depth")
    parser.add_argument("output", type=Path, help="folder to write to")
    parsed = parser.parse_args(arguments)
    try:
        print(write_report(parsed.runs, parsed.output))
    except RunLogError as error:
        parser.exit(2, f"{error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
