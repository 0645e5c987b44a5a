"""A sweep's page says what its tables say: the best, the collapsed, and what is left on fresh seeds."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.sweep import write_sweep_report
from analysis.sweep.confirmation import conclusion, judge, main_objective
from analysis.sweep.surface import best_bandwidth, smooth
from analysis.sweep.tables import Objective, SweepTableError, load_sweep_tables, pareto_front

DECAYS = [0.8, 0.6, 0.9, 0.95, 0.7, 0.85, 0.65, 0.75, 0.88, 0.99]
WEIGHTS = [1, 0.1, 3, 10, 0.5, 2, 0.2, 5, 4, 14]
VALUES = [0.70, 0.55, 0.90, 0.75, 0.60, 0.80, 0.56, 0.71, 0.88, 0.20]
PARAMETERS = [
    {"path": "capability.decay", "column": "decay", "low": 0.5, "high": 0.995, "log": False},
    {"path": "fusion.weight", "column": "weight", "low": 0.01, "high": 15, "log": True},
]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten trials: the reference, seven complete, one pruned, one collapsed."""
    about = {
        "name": "example",
        "profile": "miniature-luck",
        "method": "flow_grpo",
        "reward": {"ocr": 1.0},
        "iterations": 8,
        "seeds": [1000, 1001],
        "parameters": PARAMETERS,
        "objectives": [{"metric": "training_reward", "direction": "maximize", "column": "value"}],
        "reference": {"decay": 0.8, "weight": 1},
        "sampler": {"kind": "tpe"},
        "pruner": {"kind": "median"},
        "trials": 12,
    }
    (tmp_path / "study.json").write_text(json.dumps(about))
    trials = [
        {
            "trial": i,
            "decay": DECAYS[i],
            "weight": WEIGHTS[i],
            "value": VALUES[i],
            "seeds": 1 if i == 6 else 2,
            "state": "pruned" if i == 6 else "complete",
            "feasible": i != 9,
            "collapse": "below_base" if i == 9 else "",
            "base": 0.5,
            "origin": "reference" if i == 0 else "sampled",
            "seconds": 1.0,
        }
        for i in range(10)
    ]
    write_csv(tmp_path / "trials.csv", trials)
    curves = [
        {
            "trial": i,
            "seed": seed,
            "run_id": f"r{i}",
            "iteration": iteration,
            "value": 0.5 + (VALUES[i] - 0.5) * iteration / 8,
        }
        for i in range(10)
        for seed in (1000, 1001)[: 1 if i == 6 else 2]
        for iteration in ((0, 4) if i == 6 else (0, 4, 8))
    ]
    write_csv(tmp_path / "curves.csv", curves)
    shares = [("weight", 0.7), ("decay", 0.3)]
    write_csv(
        tmp_path / "importance.csv",
        [{"objective": "training_reward", "parameter": name, "importance": share} for name, share in shares],
    )
    return tmp_path


def confirm(folder: Path, gains: dict[int, list[float]]) -> None:
    """Runs on fresh seeds: the reference rises from .6 in steps of .01 a seed; the others differ from it by gains."""
    rows = []
    for trial, differences in {0: [0.0] * len(next(iter(gains.values()))), **gains}.items():
        for seed, difference in enumerate(differences):
            for split, shift in (("validation", 0.02), ("test", 0.0)):
                value = 0.6 + 0.01 * seed + difference + shift
                common = {"trial": trial, "is_reference": trial == 0, "decay": DECAYS[trial], "weight": WEIGHTS[trial]}
                common |= {"seed": seed, "run_id": "r", "split": split}
                metrics = {"training_reward": value, "ocr": value, "ocr-v4": 0.5 - difference}
                rows += [common | {"metric": metric, "value": number} for metric, number in metrics.items()]
    write_csv(folder / "confirmation.csv", rows)


def test_the_page_and_the_figures_are_complete_and_the_same_each_time(folder: Path) -> None:
    confirm(folder, {2: [0.1, 0.12, 0.11], 8: [0.0, 0.01, -0.01]})
    page, _ = write_sweep_report(folder)
    names = {path.stem for path in (folder / "figures").glob("*.svg")}
    assert names == {
        "history",
        "contour",
        "slice-decay",
        "slice-weight",
        "importance",
        "parallel",
        "intermediate",
        "confirmation",
    }
    first = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert page in first
    write_sweep_report(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == first
    # Other judges stand beside the trained reward, but not the reward again under its own name.
    text = (folder / "summary.md").read_text()
    assert "| ocr-v4 | −0.110 [" in text
    assert "| ocr | " not in text


def test_the_page_says_what_became_of_the_trials_and_loads_nothing(folder: Path) -> None:
    page = write_sweep_report(folder)[0].read_text()
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "10 of 12 trials are finished: 9 complete, 1 pruned; 1 of the complete ones collapsed" in text
    assert "test prompts were not read" in text
    assert "Not measured again yet" in text
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    lines = (folder / "summary.md").read_text().splitlines()
    best = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    # Collapsed and pruned trials are not there.
    assert best == ["Trial", "---", "2", "8", "5", "3", "7", "0 (reference)", "4", "1"]


def test_differences_are_paired_and_the_sweep_s_optimism_is_what_it_claimed_beyond_them(folder: Path) -> None:
    confirm(folder, {2: [0.10, 0.12, 0.11], 8: [0.02, -0.02, 0.0]})
    tables = load_sweep_tables(folder)
    objective = main_objective(tables)
    better, equal = judge(tables, objective.metric)
    assert better.difference.estimate == pytest.approx(0.11)
    assert (better.value, better.reference_value) == (pytest.approx(0.72), pytest.approx(0.61))
    assert better.claimed == pytest.approx(0.90 - 0.70)
    assert better.optimism(objective) == pytest.approx(0.20 - 0.11)
    assert better.validation_difference == pytest.approx(0.11)
    assert better.difference.low > 0
    assert (better.verdict(objective), equal.verdict(objective)) == ("better", "no difference shown")
    assert equal.difference.low < 0 < equal.difference.high
    text = " ".join(conclusion([better, equal], objective))
    assert "too optimistic by 0.090" in text
    assert "Better than the reference beyond the noise of seeds: trial 2." in text
    assert "None of the best" in " ".join(conclusion([equal], objective))


def test_the_page_says_how_much_too_good_a_trial_s_own_value_was_and_what_the_seeds_alone_do(folder: Path) -> None:
    confirm(folder, {2: [0.10, 0.12, 0.11], 8: [0.02, -0.02, 0.0]})
    tables = load_sweep_tables(folder)
    objective = main_objective(tables)
    best, _ = judge(tables, objective.metric)
    # .90 in the sweep; .72, .75, .75 on fresh seeds and the same prompts.
    too_good = best.too_good(objective)
    assert too_good.estimate == pytest.approx(0.90 - 0.74)
    assert 0 < too_good.low < too_good.estimate < too_good.high
    mirrored = best.too_good(Objective("loss", "value", is_maximized=False))
    assert mirrored == (-too_good.estimate, -too_good.high, -too_good.low)
    assert pd.isna(judge(tables, "ocr-v4")[0].too_good(objective).estimate)  # the sweep did not seek it
    page, sentences = write_sweep_report(folder)
    assert sentences[0].startswith("The reference is decay 0.8, weight 1: 0.610 [")
    assert "On validation prompts it had 0.700 in the sweep and has 0.630 on fresh seeds" in sentences[0]
    assert "0.900, is 0.740 on fresh seeds and the same validation prompts: too good by +0.160 [" in sentences[1]
    for text in (page.read_text(), (folder / "summary.md").read_text()):
        assert sentences[0] in text
        assert "Too good by" in text


def test_more_trials_ask_for_more_evidence(folder: Path) -> None:
    gains = [0.02, 0.05, 0.08, 0.03, 0.07, 0.01, 0.04, 0.06, 0.05, 0.03]
    confirm(folder, {2: gains})
    (alone,) = judge(load_sweep_tables(folder), "training_reward")
    confirm(folder, {2: gains, 8: gains, 5: gains})
    together = judge(load_sweep_tables(folder), "training_reward")[0]
    assert together.difference.low < alone.difference.low
    assert together.difference.estimate == alone.difference.estimate


def test_a_best_trial_found_since_is_named_as_not_measured_again(folder: Path) -> None:
    confirm(folder, {8: [0.1, 0.2, 0.1]})
    _, sentences = write_sweep_report(folder)
    assert sentences[-1].startswith("Trial 2 (decay 0.9, weight 3), the sweep's best by now, has not been measured")
    confirm(folder, {2: [0.1, 0.2, 0.1], 8: [0.1, 0.2, 0.1]})
    assert not any("by now" in sentence for sentence in write_sweep_report(folder)[1])


def test_seeds_that_one_side_lacks_do_not_count(folder: Path) -> None:
    confirm(folder, {2: [0.1, 0.1, 0.4]})
    table = pd.read_csv(folder / "confirmation.csv")
    table[~(table["is_reference"] & (table["seed"] == 2))].to_csv(folder / "confirmation.csv", index=False)
    (one,) = judge(load_sweep_tables(folder), "training_reward")
    assert (one.num_seeds, one.difference.estimate) == (2, pytest.approx(0.1))
    table[table["seed"] == 0].to_csv(folder / "confirmation.csv", index=False)
    assert judge(load_sweep_tables(folder), "training_reward") == []


def test_choices_and_several_objectives_are_drawn_too(folder: Path) -> None:
    about = json.loads((folder / "study.json").read_text())
    about["parameters"] = [PARAMETERS[0], {"path": "selection", "column": "selection", "choices": ["random", "none"]}]
    about["objectives"] = [
        {"metric": "training_reward", "direction": "maximize", "column": "value_training_reward"},
        {"metric": "compute", "direction": "minimize", "column": "value_compute"},
    ]
    (folder / "study.json").write_text(json.dumps(about))
    trials = pd.read_csv(folder / "trials.csv").rename(columns={"value": "value_training_reward"})
    trials["selection"] = ["random", "none"] * 5
    trials["value_compute"] = [100.0 * (i % 4) for i in range(10)]
    trials.to_csv(folder / "trials.csv", index=False)
    write_sweep_report(folder)
    names = {path.stem for path in (folder / "figures").glob("*.svg")}
    assert {"pareto", "slice-selection-compute", "parallel-training_reward", "history-compute"} <= names
    assert not any(name.startswith("contour") for name in names)  # there is one range
    # Best reward at each cost: trials 8 (0), 5 (100), 2 (200); 3, 7 cost more and give less.
    assert set(load_sweep_tables(folder).best()["trial"]) == {8, 2}


def test_the_pareto_front_is_what_no_other_beats() -> None:
    reward, saved = pd.Series([1.0, 2.0, 3.0, 2.0, 3.0]), pd.Series([5.0, 4.0, 1.0, 3.0, 1.0])
    assert pareto_front([reward, saved]).tolist() == [True, True, True, False, True]


def test_smoothing_keeps_a_constant_and_passes_between_two_points() -> None:
    points, at = np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([[0.5, 0.0], [0.0, 0.0], [9.0, 0.0]])
    assert smooth(points, np.array([2.0, 2.0]), at, 0.1).tolist() == [2.0, 2.0, 2.0]
    middle, left, far = smooth(points, np.array([0.0, 1.0]), at, 0.2)
    assert middle == pytest.approx(0.5)
    assert left < 0.01
    assert far == pytest.approx(1)  # of the nearest, not 0 / 0


def test_the_bandwidth_is_wide_for_noise_and_narrow_for_a_steep_surface() -> None:
    generator = np.random.default_rng(0)
    points = generator.random((60, 2))
    noise, steep = generator.standard_normal(60), np.sin(8 * points[:, 0])
    assert best_bandwidth(points, noise) > best_bandwidth(points, steep)


def test_a_study_without_trials_yet_has_a_page(folder: Path) -> None:
    for name in ("trials", "curves", "importance"):
        header = (folder / f"{name}.csv").read_text().splitlines()[0]
        (folder / f"{name}.csv").write_text(header + "\n")
    assert "0 of 12 trials are finished" in write_sweep_report(folder)[0].read_text()


@pytest.mark.parametrize("name", ["study.json", "trials.csv", "curves.csv"])
def test_a_missing_table_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(SweepTableError, match=name):
        write_sweep_report(folder)
