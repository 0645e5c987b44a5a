"""``adagrpo sweep``: bad input is one line and exit code 2, before anything heavy is loaded."""

import subprocess
import sys
from pathlib import Path

import pytest
from landscape import write_sweep

from harness.commands.sweep import worker_environments
from harness.config import ROOT, ConfigError
from harness.launch import slots
from harness.sweep import STORAGE_VARIABLE
from harness.sweep.definition import load_sweep

_CODE = """
import sys
from harness.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print("torch" in sys.modules)
    raise
"""


def adagrpo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _CODE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["no-such-sweep"], "files there: cost, ema_fusion, smoke"),
        (["smoke", "--top", "3"], "--top belongs to adagrpo sweep confirm"),
        (["show"], "name a sweep"),
        (["show", "smoke", "--workers", "2"], "--workers belongs to adagrpo sweep, not here"),
        (["smoke", "--workers", "0"], "--workers 0: must be above 0"),
        (["smoke", "--workers", "1", "fusion.weight=2"], "the sweep itself sets fusion.weight"),
        (["smoke", "--storage", "sqlite:////no/such/folder/x.db"], "unable to open database file"),
        (["show", "smoke", "--name", "not-begun"], "not begun"),
        (["confirm", "smoke", "--seeds", "4-2"], "the range 4-2 is empty"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_and_loads_nothing_heavy(arguments: list[str], expected: str) -> None:
    result = adagrpo("sweep", *arguments)
    assert result.returncode == 2
    assert expected in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout.strip() == "False"


def test_a_wrong_path_in_the_file_is_named_with_the_nearest(tmp_path: Path) -> None:
    result = adagrpo("sweep", str(write_sweep(tmp_path, space={"capability.dekay": {"low": 0.1, "high": 1}})))
    assert result.returncode == 2
    assert "the nearest is 'capability.decay'" in result.stderr


def test_each_worker_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "visible_gpus", lambda: ("0", "1"))
    sweep = load_sweep("smoke", None, [], None)
    environments = worker_environments(sweep, 2, "sqlite:///x.db")
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in environments] == ["0", "1"]
    assert {environment[STORAGE_VARIABLE] for environment in environments} == {"sqlite:///x.db"}
    with pytest.raises(ConfigError, match="3"):
        worker_environments(sweep, 3, "sqlite:///x.db")


def test_without_gpus_workers_have_the_threads_that_a_run_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "visible_gpus", lambda: ())
    environments = worker_environments(load_sweep("smoke", None, ["runtime.threads=3"], None), 2, "sqlite:///x.db")
    assert [environment["OMP_NUM_THREADS"] for environment in environments] == ["3", "3"]
