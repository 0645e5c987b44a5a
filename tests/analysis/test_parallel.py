"""Work on several cores gives what it gives on one."""

import os

import pytest

from analysis.cells import parallel
from analysis.cells.parallel import side_by_side
from harness.foundation.errors import ConfigError


@pytest.mark.parametrize("cores", [1, 2])
def test_results_and_errors_are_those_of_a_loop(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_cores", lambda: cores)
    offset = 10  # a closure cannot be pickled, and need not be
    assert side_by_side(lambda item: item + offset, range(7), chunk=2) == list(range(10, 17))
    assert side_by_side(lambda item: item, []) == []
    processes = set(side_by_side(lambda _: os.getpid(), range(64)))
    assert (processes == {os.getpid()}) == (cores == 1)
    assert len(processes) <= cores
    assert set(side_by_side(lambda _: os.getpid(), range(4), chunk=4)) == {os.getpid()}

    def fail(item: int) -> int:
        raise ConfigError(f"folder/{item}: broken")

    with pytest.raises(ConfigError, match=r"^folder/0: broken$"):
        side_by_side(fail, range(5))
