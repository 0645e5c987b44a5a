"""A sweep's page says what its study says: the best, the collapsed, and what is left on fresh seeds."""

import csv
import math
import re
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from analysis.sweep import page
from analysis.sweep.confirmation import judge, sentences
from analysis.sweep.page import write_sweep_report
from analysis.sweep.tables import DEFINITION, SweepStudy

DECAYS = [0.8, 0.6, 0.9, 0.95, 0.7, 0.85, 0.65, 0.75, 0.88, 0.99]
WEIGHTS = [1, 0.1, 3, 10, 0.5, 2, 0.2, 5, 4, 14]
VALUES = [0.70, 0.55, 0.90, 0.75, 0.60, 0.80, 0.56, 0.71, 0.88, 0.95]
COLUMNS = {"capability.decay": "decay", "fusion.weight": "weight"}
SPACE = {"capability.decay": FloatDistribution(0.5, 0.995), "fusion.weight": FloatDistribution(0.01, 15, log=True)}


def new_study(columns: dict[str, str], objectives: dict[str, str]) -> optuna.Study:
    study = optuna.create_study(study_name="example", directions=list(objectives.values()))
    space = {path: {"column": column} for path, column in columns.items()}
    study.set_user_attr(DEFINITION, {"space": space, "objectives": objectives, "seeds": [1000, 1001]})
    return study


@pytest.fixture
def study() -> SweepStudy:
    """Ten trials: the reference, seven complete, one pruned (6), one that collapsed from the highest value (9)."""
    study = new_study(COLUMNS, {"training_reward": "maximize"})
    for i in range(10):
        seeds = (1000,) if i == 6 else (1000, 1001)
        curve = [(iteration, 0.5 + (VALUES[i] - 0.5) * iteration / 8) for iteration in (0, 4, 8)]
        trial = create_trial(
            state=TrialState.PRUNED if i == 6 else TrialState.COMPLETE,
            params={"capability.decay": DECAYS[i], "fusion.weight": WEIGHTS[i]},
            distributions=dict(SPACE),
            value=VALUES[i],
            user_attrs={"seeds": [{"seed": seed, "run_id": f"r{i}", "curve": curve} for seed in seeds]}
            | ({"origin": "reference"} if i == 0 else {}),
            system_attrs={"constraints:below_base": 1.0 if i == 9 else -1.0},
            intermediate_values={4: curve[1][1]},
        )
        study.add_trial(trial)
    return SweepStudy(study)


def confirm(folder: Path, gains: dict[int, list[float]]) -> pd.DataFrame:
    """Runs on fresh seeds: the reference rises from .6 in steps of .01 per seed; the others differ from it by gains."""
    rows: list[dict[str, Any]] = []
    for trial, differences in {0: [0.0] * len(next(iter(gains.values()))), **gains}.items():
        for seed, difference in enumerate(differences):
            for split, shift in (("validation", 0.02), ("test", 0.0)):
                value = 0.6 + 0.01 * seed + difference + shift
                common = {"trial": trial, "is_reference": trial == 0, "decay": DECAYS[trial], "weight": WEIGHTS[trial]}
                common |= {"seed": seed, "run_id": f"r{trial}-{seed}", "split": split}
                metrics = {"training_reward": value, "ocr": value, "ocr-v4": 0.5 - difference}
                rows += [common | {"metric": metric, "value": number} for metric, number in metrics.items()]
    pd.DataFrame(rows).to_csv(folder / "confirmation.csv", index=False)
    return pd.DataFrame(rows)


def test_the_page_is_complete_loads_nothing_and_is_the_same_each_time(study: SweepStudy, tmp_path: Path) -> None:
    confirm(tmp_path, {2: [0.1, 0.12, 0.11], 8: [0.0, 0.01, -0.01]})
    write_sweep_report(study, "profile smoke", 12, tmp_path)
    names = {path.stem for path in (tmp_path / "figures").glob("*.svg")}
    assert names == {"history", "contour", "slice", "importance", "parallel", "intermediate", "confirmation"}
    first = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    write_sweep_report(study, "profile smoke", 12, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == first
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "10 of 12 trials are finished: 9 complete, 1 pruned; 1 collapsed" in text
    assert "test prompts were not read" in text
    summary = (tmp_path / "summary.md").read_text()
    # Other judges stand beside the trained reward, but not the reward again under its own name.
    assert "| ocr-v4 | −0.110 [" in summary
    assert "| ocr | " not in summary
    # Collapsed and pruned trials are not among the best.
    best = [line.split("|")[1].strip() for line in summary.splitlines() if line.startswith("| ")]
    assert best[-9:] == ["Trial", "2", "8", "5", "3", "7", "0 (reference)", "4", "1"]
    with (tmp_path / "trials.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    told = [(row["state"], row["feasible"], row["seeds"], row["collapse"], row["origin"]) for row in rows]
    assert told[0] == ("complete", "True", "2", "", "reference")
    assert told[6] == ("pruned", "True", "1", "", "sampled")
    assert told[9] == ("complete", "False", "2", "below_base", "sampled")


def test_differences_are_paired_and_the_sweep_s_optimism_is_what_it_claimed_beyond_them(
    study: SweepStudy, tmp_path: Path
) -> None:
    runs = confirm(tmp_path, {2: [0.10, 0.12, 0.11], 8: [0.02, -0.02, 0.0]})
    judged = judge(study, runs, "training_reward")
    better, equal = (row for _, row in judged.iterrows())
    assert better["difference"] == pytest.approx(0.11)
    assert (better["test"], better["reference_test"]) == (pytest.approx(0.72), pytest.approx(0.61))
    assert better["claimed_difference"] == pytest.approx(0.90 - 0.70)
    assert better["optimism"] == pytest.approx(0.20 - 0.11)
    assert better["validation_difference"] == pytest.approx(0.11)
    # .90 in the sweep; .72, .75, .75 on fresh seeds and the same prompts.
    assert better["too_good"] == pytest.approx(0.90 - 0.74)
    assert 0 < better["too_good_low"] < better["too_good"] < better["too_good_high"]
    assert better["low"] > 0 > equal["low"]
    assert (better["verdict"], equal["verdict"]) == ("better", "no difference shown")
    alone = judge(study, confirm(tmp_path, {2: [0.10, 0.12, 0.11]}), "training_reward").iloc[0]
    assert better["low"] < alone["low"]  # more trials ask for more evidence
    assert math.isnan(judge(study, runs, "ocr-v4")["too_good"][0])  # the sweep did not seek it
    said = sentences(study, runs, "training_reward", judged)
    assert said[0].startswith("The reference is decay 0.8, weight 1: 0.610 [")
    assert "had 0.700 in the sweep and has 0.630 on fresh seeds" in said[0]
    assert "too optimistic by 0.090" in said[1]
    assert said[-1] == "Better than the reference beyond the noise of seeds: trial 2."
    *_, none, since = sentences(study, runs[runs["trial"] != 2], "training_reward", judged[1:])
    assert none.startswith("None of the best")
    assert since.startswith("Trial 2 (decay 0.9, weight 3), the sweep's best by now, has not been measured")


def test_seeds_that_one_side_lacks_or_that_two_processors_made_do_not_count(study: SweepStudy, tmp_path: Path) -> None:
    runs = confirm(tmp_path, {2: [0.1, 0.1, 0.4]})
    fewer = judge(study, runs[~(runs["is_reference"] & (runs["seed"] == 2))], "training_reward").iloc[0]
    assert (fewer["seeds"], fewer["difference"]) == (2, pytest.approx(0.1))
    elsewhere = runs.assign(processor=["B" if run == "r2-2" else "A" for run in runs["run_id"]])
    assert judge(study, elsewhere, "training_reward").iloc[0]["seeds"] == 2
    single = runs[runs["seed"] == 0]
    judged = judge(study, single, "training_reward")
    assert judged.empty
    assert sentences(study, single, "training_reward", judged)[1].startswith("Nothing can be concluded")


def test_choices_and_several_objectives_are_drawn_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "_PLOTS", {name: page._PLOTS[name] for name in ("history", "contour", "parallel")})
    study = new_study({"decay": "decay", "ema": "ema"}, {"training_reward": "maximize", "compute": "minimize"})
    space = {"decay": SPACE["capability.decay"], "ema": CategoricalDistribution([None, 0.9])}
    for i in range(9):
        params, values = {"decay": DECAYS[i], "ema": (None, 0.9)[i % 2]}, [VALUES[i], 100.0 * (i % 4)]
        study.add_trial(create_trial(params=params, distributions=space, values=values, user_attrs={"seeds": []}))
    write_sweep_report(SweepStudy(study), "", None, tmp_path)
    names = {path.stem for path in (tmp_path / "figures").glob("*.svg")}
    of_each = {f"{name}-{metric}" for name in page._PLOTS for metric in ("training_reward", "compute")}
    assert names == {"pareto", *of_each}
    # Best reward at each cost: trials 8 (0), 5 (100), 2 (200); 3 and 7 cost more and give less.
    assert [trial.number for trial in SweepStudy(study).best] == [2, 8]
    assert "None" in (tmp_path / "trials.csv").read_text()


def test_a_study_without_trials_or_finished_confirmation_yet_has_a_page(tmp_path: Path) -> None:
    study = SweepStudy(new_study(COLUMNS, {"training_reward": "maximize"}))
    summary = write_sweep_report(study, "", 12, tmp_path).read_text()
    assert "0 of 12 trials are finished" in summary
    assert "Not measured again yet" in summary
    confirm(tmp_path, {2: [0.1]})[:0].to_csv(tmp_path / "confirmation.csv", index=False)
    assert "Nothing can be concluded" in write_sweep_report(study, "", 12, tmp_path).read_text()
