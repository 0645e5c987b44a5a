"""Studies and their storage: refused in one line where they do not fit, whatever the database."""

import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from landscape import FILE, make_sweep

from harness.config import ConfigError
from harness.experiments.sweep.study import (
    find_study,
    lost_storage_is_one_line,
    open_storage,
    open_study,
    shared_url,
    shown_url,
)

SPACE = FILE["space"]
GRID = {
    "capability.decay": {"low": 0.5, "high": 0.8, "points": 2},
    "fusion.weight": {"low": 1, "high": 4, "step": 3},
}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("nonsense", "no database URL"),
        ("postgresql://me:secret@host:port/study", "no database URL"),
        ("oracle://somewhere/else", "needs a driver that is not installed"),
        ("nosuch://somewhere/else", "needs a driver that is not installed"),
        ("sqlite:////no/such/folder/study.db", "unable to open database file"),
        (f"sqlite:///{Path(__file__)}", "file is not a database"),
    ],
)
def test_a_storage_that_cannot_be_reached_is_one_line(url: str, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        open_storage(url)
    assert expected in str(error.value)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_server_that_does_not_answer_is_named_without_its_password() -> None:
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
    with pytest.raises(ConfigError) as error:
        open_storage("postgresql://me:secret@127.0.0.1:1/study")
    assert "postgresql://me:***@127.0.0.1:1/study: cannot be reached" in str(error.value)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)
    assert shown_url("postgresql://me:secret@host/study") == "postgresql://me:***@host/study"
    assert shown_url("sqlite:////a(b)/study.db") == "sqlite:////a(b)/study.db"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"space": SPACE | {"fusion.weight": {"low": 0.01, "high": 20, "log": True}}},
            "space fusion.weight high 15.0 where this one has 20.0",
        ),
        ({"space": SPACE | {"selection": ["random", "medium"]}, "settings": {}, "reference": None}, "space selection"),
        ({"seeds": [1000]}, "seeds [1000, 1001] where this one has [1000]"),
        ({"settings": FILE["settings"] | {"iterations": 9}}, "configuration iterations 8 where this one has 9"),
    ],
)
def test_a_study_of_another_sweep_is_refused_with_the_difference(
    tmp_path: Path, sqlite_url: str, changes: dict[str, Any], expected: str
) -> None:
    open_study(make_sweep(tmp_path), open_storage(sqlite_url), "identity")
    with pytest.raises(ConfigError) as error:
        open_study(make_sweep(tmp_path, **changes), open_storage(sqlite_url), "identity")
    assert "is another sweep's" in str(error.value)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_other_objectives_are_another_study(tmp_path: Path, sqlite_url: str) -> None:
    open_study(make_sweep(tmp_path), open_storage(sqlite_url), "identity")
    other = make_sweep(tmp_path, objectives={"training_reward": "maximize", "compute": "minimize"})
    with pytest.raises(ConfigError, match="objectives compute None where this one has minimize"):
        open_study(other, open_storage(sqlite_url), "identity")


def test_another_model_or_list_of_prompts_is_another_study_but_can_be_shown(tmp_path: Path, sqlite_url: str) -> None:
    sweep = make_sweep(tmp_path)
    open_study(sweep, open_storage(sqlite_url), "old")
    with pytest.raises(ConfigError, match="model, prompt lists and rewards old where this one has new"):
        open_study(sweep, open_storage(sqlite_url), "new")
    assert find_study(sweep, open_storage(sqlite_url)).study_name == "landscape"


def test_budget_sampler_and_pruner_may_change_from_call_to_call(tmp_path: Path, sqlite_url: str) -> None:
    open_study(make_sweep(tmp_path), open_storage(sqlite_url), "identity")
    later = make_sweep(tmp_path, trials=99, sampler={"kind": "random"}, pruner={"kind": "median"})
    study = open_study(later, open_storage(sqlite_url), "identity")
    assert len(study.get_trials()) == 1  # the reference is not queued again


def test_a_study_whose_maker_was_killed_is_made_to_the_end(
    tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    sweep = make_sweep(tmp_path, sampler={"kind": "grid"}, space=GRID, reference=None)
    begun = optuna.create_study(storage=sqlite_url, study_name="landscape", directions=["maximize"])
    begun.enqueue_trial(sweep.planned_points()[2])
    study = open_study(sweep, open_storage(sqlite_url), "identity")
    queued = [trial.system_attrs["fixed_params"] for trial in study.get_trials()]
    assert sorted(map(str, queued)) == sorted(map(str, sweep.planned_points()))
    assert find_study(sweep, open_storage(sqlite_url), "identity").study_name == "landscape"


def test_a_study_that_no_sweep_made_is_left_alone(
    tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    foreign = optuna.create_study(storage=sqlite_url, study_name="landscape", direction="maximize")
    foreign.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(ConfigError, match="was never made to the end, or not by a sweep"):
        open_study(make_sweep(tmp_path), open_storage(sqlite_url), "identity")
    assert len(foreign.get_trials()) == 1


def test_a_relative_file_is_the_same_for_workers_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shared_url("sqlite:///study.db") == f"sqlite:///{tmp_path}/study.db"
    for url in ("postgresql://me:secret@host/study", "sqlite:///file:/x/study.db?uri=true"):
        assert shared_url(url) == url
    for url in ("sqlite://", "sqlite:///:memory:"):
        with pytest.raises(ConfigError, match="cannot share a database in memory"):
            shared_url(url)


def test_a_storage_that_is_lost_in_the_middle_is_one_line(tmp_path: Path, sqlite_url: str) -> None:
    study = open_study(make_sweep(tmp_path), open_storage(sqlite_url), "identity")
    database = tmp_path / "study.db"
    for file in tmp_path.glob("study.db*"):
        file.unlink()
    database.mkdir()
    study._storage._backend.engine.dispose()  # type: ignore[attr-defined]
    with pytest.raises(ConfigError) as error, lost_storage_is_one_line(sqlite_url):
        study.get_trials()
    assert f"storage {sqlite_url}: lost: unable to open database file" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_study_that_is_not_there_is_named_beside_those_that_are(tmp_path: Path, sqlite_url: str) -> None:
    optuna.create_study(storage=sqlite_url, study_name="another")
    with pytest.raises(ConfigError, match="no study 'landscape'; there are: another"):
        find_study(make_sweep(tmp_path), open_storage(sqlite_url))
