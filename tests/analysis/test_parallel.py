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


def test_results_and_errors_are_those_of_a_loop(cores: int) -> None:
    offset = 10  # a closure cannot be pickled, and need not be
    assert side_by_side(lambda item: item + offset, range(7), chunk=2) == list(range(10, 17))
    assert side_by_side(lambda item: item, []) == []

    def fail(item: int) -> int:
        raise RunLogError(f"folder/{item}: broken")

    with pytest.raises(RunLogError, match=r"^folder/0: broken$"):
        side_by_side(fail, range(5))


def test_as_many_processes_work_as_there_are_cores(cores: int) -> None:
    processes = set(side_by_side(lambda _: os.getpid(), range(64)))
    assert (processes == {os.getpid()}) == (cores == 1)
    assert len(processes) <= cores
    assert set(side_by_side(lambda _: os.getpid(), range(4), chunk=4)) == {os.getpid()}


def test_runs_and_figures_are_the_same(same_grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_RUNS_AT_A_TIME", 1)
    read, drawn = [], []
    for cores in (1, 2):
        monkeypatch.setattr(parallel, "_cores", lambda cores=cores: cores)
        read.append(load_logs(same_grid))
        drawn.append([draw_study(study) for study in split_studies(read[-1])])
    assert read[0].runs.equals(read[1].runs)
    assert read[0].summary.equals(read[1].summary)
    assert drawn[0] == drawn[1]
