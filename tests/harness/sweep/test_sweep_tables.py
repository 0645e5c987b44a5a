"""A study as tables, and its best measured again."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from landscape import BASE, PEAK_DECAY, PEAK_WEIGHT, execute, height, make_sweep
from optuna import create_study
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from analysis.sweep import write_sweep_report
from harness.config import ConfigError, RunConfig
from harness.experiments.sweep.confirm import candidates, confirmation_configs, write_confirmation
from harness.experiments.sweep.definition import Sweep
from harness.experiments.sweep.study import RETRY, make_pruner, make_sampler
from harness.experiments.sweep.summary import summary
from harness.experiments.sweep.tables import best_trials, importance, listed_trials, write_tables
from harness.experiments.sweep.trial import Objective, OnValidation, RunResult
from harness.runs.directory import RunDirectory

REFERENCE = {"capability.decay": 0.8, "fusion.weight": 1.0}
PEAK = {"capability.decay": PEAK_DECAY, "fusion.weight": PEAK_WEIGHT}
HILL = {"capability.decay": 0.85, "fusion.weight": 2.0}
BAD, BROKEN = {"capability.decay": 0.55, "fusion.weight": 0.02}, {"capability.decay": 0.99, "fusion.weight": 15.0}


def breaking(config: RunConfig, on_validation: OnValidation) -> RunResult:
    if config.capability.decay != BROKEN["capability.decay"]:
        return execute(config, on_validation)
    on_validation(0, {"ocr": BASE})
    on_validation(2, {"ocr": 0.99})
    return RunResult("broken", {}, "pictures are not finite at iteration 3")


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return make_sweep(tmp_path, pruner={"kind": "median", "startup_trials": 2})


@pytest.fixture
def study(sweep: Sweep) -> Study:
    """Reference, peak twice, hill, pruned, collapsed; two wait."""
    study = create_study(direction="maximize", sampler=make_sampler(sweep), pruner=make_pruner(sweep))
    study.enqueue_trial(REFERENCE, user_attrs={"origin": "reference"})
    for point in (PEAK, HILL, BAD, BROKEN, PEAK, HILL, HILL):
        study.enqueue_trial(point)
    study.optimize(Objective(sweep, breaking, lambda line: None), n_trials=6)
    return study


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_the_trials_table_is_tidy_and_says_what_became_of_each(sweep: Sweep, study: Study, tmp_path: Path) -> None:
    write_tables(sweep, study, tmp_path / "out")
    table = rows(tmp_path / "out" / "trials.csv")
    assert list(table[0])[:6] == ["trial", "decay", "weight", "value", "seeds", "state"]
    states = ["complete", "complete", "complete", "pruned", "complete", "complete", "waiting", "waiting"]
    assert [row["state"] for row in table] == states
    assert [row["origin"] for row in table] == ["reference", *["sampled"] * 7]
    assert [row["feasible"] for row in table[:6]] == ["True", "True", "True", "True", "False", "True"]
    assert table[4]["collapse"] == "pictures are not finite at iteration 3"
    assert [row["seeds"] for row in table] == ["2", "2", "2", "1", "1", "2", "0", "0"]
    expected = sum(height(config) for config in sweep.configs(PEAK, [1000, 1001])) / 2
    assert float(table[1]["value"]) == pytest.approx(expected)
    assert (float(table[6]["decay"]), table[6]["value"]) == (0.85, "")


def test_curves_importance_and_description_go_with_it(sweep: Sweep, study: Study, tmp_path: Path) -> None:
    write_tables(sweep, study, tmp_path / "out")
    curves = rows(tmp_path / "out" / "curves.csv")
    assert [int(row["iteration"]) for row in curves if (row["trial"], row["seed"]) == ("0", "1001")] == [0, 2, 4, 6, 8]
    assert {row["seed"] for row in curves if row["trial"] == "3"} == {"1000"}
    shares = {row["parameter"]: float(row["importance"]) for row in rows(tmp_path / "out" / "importance.csv")}
    assert set(shares) == {"decay", "weight"}
    assert sum(shares.values()) == pytest.approx(1)
    about = json.loads((tmp_path / "out" / "study.json").read_text())
    assert about["reference"] == {"decay": 0.8, "weight": 1.0}
    assert str(tmp_path) not in json.dumps(about)


def test_the_same_study_gives_the_same_bytes(sweep: Sweep, study: Study, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_tables(sweep, study, tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_the_best_have_not_collapsed_though_their_last_value_was_higher(sweep: Sweep, study: Study) -> None:
    assert [trial.number for trial in best_trials(sweep, study)][:2] == [1, 5]
    lines = "\n".join(summary(sweep, study))
    assert "6 of 10 trials (5 complete, 1 pruned, 2 waiting, 1 of them collapsed)" in lines
    assert "reference: training_reward 0.7" in lines


def test_a_collapsed_trial_does_not_count_as_good_for_importance(
    sweep: Sweep, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs: dict[int, float] = {}

    def shares(study: Study, target: Callable[[FrozenTrial], float]) -> dict[str, float]:
        costs.update({trial.number: target(trial) for trial in study.get_trials(states=(TrialState.COMPLETE,))})
        return {}

    monkeypatch.setattr(optuna.importance, "get_param_importances", shares)
    importance(sweep, study)
    assert set(costs) == {0, 1, 2, 4, 5}
    assert costs[4] == costs[0] == max(costs.values())  # its last value, .99, was the highest


def test_the_reference_and_the_best_other_points_are_measured_again(sweep: Sweep, study: Study) -> None:
    chosen = candidates(sweep, study, top=2)
    assert [(c.trial, c.is_reference, c.values) for c in chosen] == [
        (0, True, REFERENCE),
        (1, False, PEAK),  # trial 5 is the same point
        (2, False, HILL),
    ]
    assert len(candidates(sweep, study, top=1)) == 2
    configs = confirmation_configs(sweep, chosen[1], [0, 1])
    assert [config.seed for config in configs] == [0, 1]
    assert all(config.evaluation.test and config.capability.decay == PEAK_DECAY for config in configs)


@pytest.mark.parametrize(
    ("seeds", "expected"), [([1, 1001], "1001 chose the best trials already"), ([1], "at least 2")]
)
def test_seeds_that_chose_the_best_cannot_judge_them(
    sweep: Sweep, study: Study, seeds: list[int], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        confirmation_configs(sweep, candidates(sweep, study, top=1)[0], seeds)


def test_without_a_complete_trial_nothing_can_be_confirmed(sweep: Sweep) -> None:
    with pytest.raises(ConfigError, match="no trial is complete"):
        candidates(sweep, create_study(direction="maximize"), top=1)


def test_confirmation_holds_every_metric_of_finished_runs(sweep: Sweep, study: Study, tmp_path: Path) -> None:
    def written(seed: int, test: float, state: str = "finished") -> RunDirectory:
        folder = tmp_path / "runs" / f"run-{seed}-{test}"
        folder.mkdir(parents=True)
        (config,) = sweep.configs(PEAK, [seed], test=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        (folder / "status.json").write_text(json.dumps({"state": state, "iteration": 8, "files": {}}))
        lines: list[dict[str, Any]] = [
            {"iteration": 0, "split": "validation", "metrics": {"ocr": 0.1}},
            {"iteration": 8, "split": "validation", "metrics": {"ocr": test + 0.1}},
            {"iteration": 8, "split": "test", "metrics": {"ocr": test, "colour": 0.9}},
        ]
        (folder / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return RunDirectory(folder)

    reference, best = candidates(sweep, study, top=1)
    measured = [(reference, [written(0, 0.5), written(1, 0.6)]), (best, [written(0, 0.7), written(1, 0.8, "failed")])]
    write_confirmation(sweep, measured, tmp_path)
    table = rows(tmp_path / "confirmation.csv")
    key = ("trial", "is_reference", "decay", "seed", "split", "metric", "value")
    found = [tuple(row[name] for name in key) for row in table if row["metric"] == "training_reward"]
    assert found == [
        ("0", "True", "0.8", "0", "validation", "training_reward", "0.6"),
        ("0", "True", "0.8", "0", "test", "training_reward", "0.5"),
        ("0", "True", "0.8", "1", "validation", "training_reward", "0.7"),
        ("0", "True", "0.8", "1", "test", "training_reward", "0.6"),
        ("1", "False", "0.9", "0", "validation", "training_reward", "0.7999999999999999"),
        ("1", "False", "0.9", "0", "test", "training_reward", "0.7"),
    ]
    assert {row["metric"] for row in table} == {"training_reward", "ocr", "colour"}


def test_a_choice_of_nothing_is_drawn_like_any_other(tmp_path: Path) -> None:
    space = {"optimizer.weight_ema": [None, 0.9]}
    sweep = make_sweep(tmp_path, space=space, reference={"optimizer.weight_ema": None})
    study = create_study(direction="maximize")
    for label in (None, 0.9):
        study.enqueue_trial({"optimizer.weight_ema": label}, user_attrs={"origin": "sampled" if label else "reference"})
    study.optimize(Objective(sweep, execute, lambda line: None), n_trials=2)
    write_tables(sweep, study, tmp_path)
    assert [row["weight_ema"] for row in rows(tmp_path / "trials.csv")] == ["None", "0.9"]
    write_confirmation(sweep, [(candidates(sweep, study, top=1)[0], [])], tmp_path)
    page, _ = write_sweep_report(tmp_path)
    assert "weight_ema None" in page.read_text()


def test_a_study_without_trials_has_tables_and_a_page(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, reference=None)
    write_tables(sweep, create_study(direction="maximize"), tmp_path)
    assert "0 of 10 trials are finished" in write_sweep_report(tmp_path)[0].read_text()


def test_a_confirmation_of_which_no_run_is_finished_says_that_nothing_can_be_concluded(
    tmp_path: Path, sweep: Sweep, study: Study
) -> None:
    write_tables(sweep, study, tmp_path)
    write_confirmation(sweep, [(candidate, []) for candidate in candidates(sweep, study, top=1)], tmp_path)
    _, conclusion = write_sweep_report(tmp_path)
    assert any(sentence.startswith("Nothing can be concluded") for sentence in conclusion)


def test_states_of_trials_that_only_failed_are_listed_once(sweep: Sweep) -> None:
    study = create_study(direction="maximize")

    def failing(config: RunConfig, on_validation: OnValidation) -> RunResult:
        raise OSError("disk full")

    for _ in range(2):
        study.optimize(Objective(sweep, failing, lambda line: None), n_trials=1, catch=(OSError,))
        RETRY(study, study.get_trials()[-1])
    assert [trial.state for trial in study.get_trials()] == [TrialState.FAIL] * 2 + [TrialState.WAITING]
    assert [trial.number for trial in listed_trials(study)] == [2]
    study.optimize(Objective(sweep, failing, lambda line: None), n_trials=1, catch=(OSError,))
    assert "(1 failed)" in summary(sweep, study)[0]
