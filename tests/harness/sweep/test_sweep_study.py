"""Studies and their storage: refused in one line where they do not fit, whatever the database."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from landscape import FILE, make_sweep

from harness.config import ConfigError
from harness.experiments.sweep.study import find_study, open_storage, open_study, storage_errors

SPACE = FILE["space"]


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "nosuch://me:secret@somewhere/else",
        "postgresql://me:secret@127.0.0.1:1/study",
        "sqlite:////no/such/folder/study.db",
        f"sqlite:///{Path(__file__)}",
    ],
)
def test_a_storage_that_cannot_be_reached_is_one_line_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="storage") as error:
        open_storage(url)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"space": SPACE | {"fusion.weight": {"low": 0.01, "high": 20, "log": True}}},
            "fusion.weight.high 15.0 where this one has 20.0",
        ),
        (
            {"space": {"selection": ["random", "medium"]}, "reference": {"selection": "random"}, "settings": {}},
            "space.selection",
        ),
        ({"settings": FILE["settings"] | {"iterations": 9}}, "iterations 8 where this one has 9"),
        (
            {"objectives": {"training_reward": "maximize", "compute": "minimize"}},
            "objectives.compute None where this one has minimize",
        ),
    ],
)
def test_a_study_of_another_sweep_is_refused_with_the_difference(
    tmp_path: Path, sqlite_url: str, changes: dict[str, Any], expected: str
) -> None:
    open_study(make_sweep(tmp_path), open_storage(sqlite_url), "identity")
    with pytest.raises(ConfigError) as error:
        open_study(make_sweep(tmp_path, **changes), open_storage(sqlite_url), "identity")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_another_model_is_another_study_but_can_be_shown_and_budget_sampler_and_pruner_may_change(
    tmp_path: Path, sqlite_url: str
) -> None:
    open_study(make_sweep(tmp_path), open_storage(sqlite_url), "old")
    sweep = make_sweep(tmp_path, trials=99, sampler={"kind": "random"}, pruner={"kind": "median"})
    assert len(open_study(sweep, open_storage(sqlite_url), "old").get_trials()) == 1  # the reference, queued once
    with pytest.raises(ConfigError, match="model, prompt lists and rewards old where this one has new"):
        open_study(sweep, open_storage(sqlite_url), "new")
    assert find_study(sweep, open_storage(sqlite_url)).study_name == "landscape"


def test_a_study_that_no_sweep_made_is_left_alone(tmp_path: Path, sqlite_url: str) -> None:
    foreign = optuna.create_study(storage=sqlite_url, study_name="landscape", direction="maximize")
    foreign.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(ConfigError, match="is another sweep's"):
        open_study(make_sweep(tmp_path), open_storage(sqlite_url), "identity")
    assert len(foreign.get_trials()) == 1


def test_a_storage_that_is_lost_in_the_middle_is_one_line(tmp_path: Path, sqlite_url: str) -> None:
    study = open_study(make_sweep(tmp_path), open_storage(sqlite_url), "identity")
    (tmp_path / "study.db").unlink()
    (tmp_path / "study.db").mkdir()
    study._storage._backend.engine.dispose()  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="unable to open database file") as error, storage_errors(sqlite_url):
        study.get_trials()
    assert "\n" not in str(error.value)


def test_a_study_that_is_not_there_is_named_beside_those_that_are(tmp_path: Path, sqlite_url: str) -> None:
    optuna.create_study(storage=sqlite_url, study_name="another")
    with pytest.raises(ConfigError, match="no study 'landscape'; there are: another"):
        find_study(make_sweep(tmp_path), open_storage(sqlite_url))
