"""Studies and their storage: refused in one line where they do not fit, whatever the database."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from landscape import FILE, make_sweep

from harness.config import ConfigError
from harness.experiments.sweep import study as study_module
from harness.experiments.sweep.study import find_study, open_storage, open_study, storage_errors


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense", "storage"),
        ("nosuch://me:secret@somewhere/else", "storage"),
        ("postgresql://me:secret@127.0.0.1:1/study", "storage"),
        ("sqlite:////no/such/folder/study.db", "continues when it is back"),
        (f"sqlite:///{Path(__file__)}", "name another --storage"),
    ],
)
def test_a_storage_that_cannot_be_reached_is_one_line_without_its_password(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error, storage_errors(url):
        open_storage(url)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"space": FILE["space"] | {"fusion.weight": {"low": 0.01, "high": 20, "log": True}}},
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
    open_study(make_sweep(tmp_path), open_storage(sqlite_url))
    with pytest.raises(ConfigError) as error:
        open_study(make_sweep(tmp_path, **changes), open_storage(sqlite_url))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_another_model_is_another_study_but_can_be_shown_and_budget_sampler_and_pruner_may_change(
    tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(sqlite_url)
    monkeypatch.setattr(study_module, "find_run", lambda config: SimpleNamespace(run_id="old"))
    open_study(make_sweep(tmp_path), storage)
    sweep = make_sweep(tmp_path, trials=99, sampler={"kind": "random"}, pruner={"kind": "median"})
    assert len(open_study(sweep, storage).get_trials()) == 1  # the reference, queued once
    monkeypatch.setattr(study_module, "find_run", lambda config: SimpleNamespace(run_id="new"))
    with pytest.raises(ConfigError, match="model, prompt lists and rewards old where this one has new"):
        open_study(sweep, storage)
    assert find_study(sweep, storage).study_name == "landscape"


def test_studies_that_are_not_the_sweep_s_are_left_alone_and_named(tmp_path: Path, sqlite_url: str) -> None:
    storage = open_storage(sqlite_url)
    foreign = optuna.create_study(storage=sqlite_url, study_name="another", direction="maximize")
    foreign.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(ConfigError, match="no study 'landscape'; there are: another"):
        find_study(make_sweep(tmp_path), storage)
    copy = {"from_storage": sqlite_url, "to_storage": sqlite_url, "to_study_name": "landscape"}
    optuna.copy_study(from_study_name="another", **copy)
    with pytest.raises(ConfigError, match="is another sweep's"):
        open_study(make_sweep(tmp_path), storage)
    assert len(optuna.load_study(study_name="landscape", storage=storage).get_trials()) == 1


def test_a_storage_that_is_lost_in_the_middle_is_one_line(tmp_path: Path, sqlite_url: str) -> None:
    study = open_study(make_sweep(tmp_path), open_storage(sqlite_url))
    (tmp_path / "study.db").unlink()
    (tmp_path / "study.db").mkdir()
    study._storage._backend.engine.dispose()  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="unable to open database file") as error, storage_errors(sqlite_url):
        study.get_trials()
    assert "\n" not in str(error.value)
