"""Work on several cores gives what it gives on one."""

import os
from pathlib import Path

import pytest

from analysis.cells import logs, parallel
from analysis.cells.logs import load_logs
from analysis.cells.parallel import side_by_side
from analysis.cells.study import split_studies
from analysis.figures import draw_study
from analysis.runs.runlog import RunLogError


@pytest.fixture(params=[1, 2])
def cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(parallel, "_cores", lambda: request.param)
    return request.param


def test_results_keep_the_order_of_items(cores: int) -> None:
    offset = 10  # a closure cannot be pickled, and need not be
    assert side_by_side(lambda item: item + offset, range(7), chunk=2) == list(range(10, 17))
    assert side_by_side(lambda item: item, []) == []


def test_as_many_processes_work_as_there_are_cores(cores: int) -> None:
    processes = set(side_by_side(lambda _: os.getpid(), range(64)))
    assert (processes == {os.getpid()}) == (cores == 1)
    assert len(processes) <= cores


def test_few_items_are_worked_on_here(cores: int) -> None:
    assert set(side_by_side(lambda _: os.getpid(), range(4), chunk=4)) == {os.getpid()}


def test_an_error_is_the_function_s_own(cores: int) -> None:
    def fail(item: int) -> int:
        if item == 3:
            raise RunLogError("folder/3: broken")
        return item

    with pytest.raises(RunLogError, match=r"^folder/3: broken$"):
        side_by_side(fail, range(5))
    assert side_by_side(abs, [-1, -2]) == [1, 2]


def test_runs_and_figures_are_the_same(same_grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_RUNS_AT_A_TIME", 1)
    read, drawn = [], []
    for cores in (1, 2):
        monkeypatch.setattr(parallel, "_cores", lambda cores=cores: cores)
        read.append(load_logs(same_grid))
        drawn.append([draw_study(study).drawings for study in split_studies(read[-1])])
    assert read[0].runs.equals(read[1].runs)
    assert read[0].summary.equals(read[1].summary)
    for name in ("test_prompts", "validation_prompts"):
        for one, other in zip(getattr(read[0], name), getattr(read[1], name), strict=True):
            assert {metric: list(values) for metric, values in one.items()} == {
                metric: list(values) for metric, values in other.items()
            }
    assert read[0].configs == read[1].configs
    assert drawn[0] == drawn[1]
