"""Measures, per cell, of how steady training is and whether it hacks its reward or collapses."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis.cells.labels import Cell
from analysis.cells.logs import TRAINING_REWARD
from analysis.cells.study import Study
from analysis.formats import Entry, WideTable

ROUGHNESS, SEED_SD, GAP, DISAGREEMENT = "roughness", "seed_sd", "judges_gap", "judges_disagreement"
HEADINGS = {
    ROUGHNESS: "Roughness of the curve",
    SEED_SD: "sd between seeds",
    GAP: "Trained less unseen reader",
    DISAGREEMENT: "Readers' disagreement a word",
    "colour/background_error": "Background error",
    "pictures/texture": "Background texture",
    "pictures/font_mono": "Share of mono font",
    "pictures/font_spread": "Two pictures differ in font",
    "pictures/colour_spread": "Colour spread",
    "pictures/pixel_spread": "Pixel spread",
}
"""Headings of a cell's measures, in the order of columns; those after the fourth are logged metrics."""
GROUP_SPREADS = {
    f"group/{name}": HEADINGS[f"pictures/{name}"] for name in ("font_spread", "colour_spread", "pixel_spread")
} | {"zero_std_share": "Share without advantages"}
"""Headings of the spreads of pictures within a group that is trained on, which training logs when a validation is due,
and of the share of groups from which nothing is learnt, since all their advantages are 0."""


def roughness(values: ArrayLike) -> float:
    """Standard deviation of a curve about its trend, from differences of neighbours, without fitting the trend.

    With d_i = (y_{i-1} + y_{i+1}) / 2 - y_i of equally spaced points it is sqrt(2 / (3 (n - 2)) sum d_i^2). For
    independent noise of standard deviation s on a straight line its square has mean s^2 (Gasser, Sroka,
    Jennen-Steinmetz 1986, "Residual variance and residual pattern in nonlinear regression", Biometrika 73(3)).

    Args:
        values: ``[n]``, in order.

    Returns:
        The roughness in the units of the values; NaN for n < 3.
    """
    curve = np.asarray(values, dtype=float)
    if len(curve) < 3:
        return math.nan
    deviations = (curve[:-2] + curve[2:]) / 2 - curve[1:-1]
    return float(np.sqrt(2 / 3 * np.mean(deviations**2)))


def roughness_by_seed(study: Study, cell: Cell) -> pd.Series:
    """Compute ``roughness`` of the validation reward of each finished run of a cell, without iteration 0, by seed.

    Every validation uses the same prompts and noises, so that only the policy changes. The training reward would also
    change with the selected prompts.
    """
    of_runs = (
        study.validations(cell)
        .query("iteration > 0")
        .groupby(["seed", "run_id"], observed=True)["value"]
        .agg(roughness)
    )
    return of_runs.dropna().groupby("seed").mean()


def stability_frame(study: Study) -> pd.DataFrame:
    """Table of measures: a row for the untrained model, then one per cell with a finished run.

    ``judges_gap`` is the mean score of the reader that was trained on less that of the unseen one, on test prompts: it
    grows if pictures please only the former. ``judges_disagreement`` is their mean absolute difference over prompts.
    Roughness is that of the validation reward; everything else is measured on test prompts. ``pictures/...`` are logged
    properties of pictures: texture behind the word, font, and distances between two pictures of one prompt.

    Returns:
        Columns experiment, reward, cell, seeds, and each of ``HEADINGS`` as NAME_mean and NAME_sd over seeds; NaN if
        it was not logged.
    """
    cells = [cell for cell, _ in study.cells if len(study.values(cell, TRAINING_REWARD))]
    rows = [(cell.label, len(study.values(cell, TRAINING_REWARD)), _measures(study, cell)) for cell in cells]
    if cells:
        rows.insert(0, ("Untrained", 0, _untrained(study, cells[0])))
    records = []
    for label, seeds, measured in rows:
        record = {"experiment": study.experiment, "reward": study.reward, "cell": label, "seeds": seeds}
        for name in HEADINGS:
            values = pd.Series(np.asarray(measured.get(name, ()), dtype=float))
            record |= {f"{name}_mean": float(values.mean()), f"{name}_sd": float(values.std())}
        records.append(record)
    return pd.DataFrame(records)


def stability_table(study: Study, frame: pd.DataFrame) -> WideTable | None:
    """Format ``stability_frame`` for readers; None without a finished run, or if nothing was measured."""
    shown = [name for name in HEADINGS if len(frame) and frame[f"{name}_mean"].notna().any()]
    if not shown:
        return None
    rows = [
        (str(row["cell"]), [Entry(row["seeds"], digits=0), *(Entry(row[f"{n}_mean"], row[f"{n}_sd"]) for n in shown)])
        for row in frame.to_dict("records")
    ]
    title = (
        f"Experiment {study.experiment}, trained on {study.reward}: stability, signs of hacking, mean ± sd over seeds"
    )
    return WideTable(title, ["Cell", "Seeds", *(HEADINGS[name] for name in shown)], rows)


def _measures(study: Study, cell: Cell) -> Mapping[str, ArrayLike]:
    """Values of each measure of a cell, by seed."""
    measured: dict[str, ArrayLike] = {name: study.values(cell, name) for name in list(HEADINGS)[4:]}
    measured |= {ROUGHNESS: roughness_by_seed(study, cell), SEED_SD: [study.values(cell, TRAINING_REWARD).std()]}
    readers = _readers(study)
    if readers:
        trained, unseen = (study.values(cell, reader) for reader in readers)
        _, pair = study.pair_of_metrics(cell, *readers)
        measured[GAP] = trained - unseen
        if pair.treatment.ndim == 2:
            measured[DISAGREEMENT] = np.abs(pair.treatment - pair.control).mean(axis=1)
    return measured


def _untrained(study: Study, cell: Cell) -> Mapping[str, ArrayLike]:
    """Measures of the model that a cell started from, on ``endpoint`` prompts; empty if it was not measured there."""
    before, split = study.untrained(cell)
    if split != study.endpoint:
        return {}
    trained, unseen = _readers(study) or ("", "")
    gap = [before.get(trained, math.nan) - before.get(unseen, math.nan)]
    return {name: [before[name]] for name in HEADINGS if name in before} | {GAP: gap}


def _readers(study: Study) -> tuple[str, str] | None:
    """A reading judge that was trained on, and one that was not; None if either is missing."""
    unseen = study.reader
    trained = next((j for j in study.reading_judges if all(j not in u for u in study.summary["unseen_judges"])), None)
    return None if trained is None or unseen is None else (trained, unseen)
