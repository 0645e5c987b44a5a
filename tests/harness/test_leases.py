"""Leases: on a file system without locks a thing is held by one, and by another when the holder is dead or silent."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from harness.config import ROOT
from harness.foundation import files, leases
from harness.foundation.files import lock
from harness.foundation.places import process_environment

SHIM = """
import errno, fcntl, os, socket
def flock(stream, flags):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
socket.gethostname = lambda: os.environ.get("ANOTHER_HOST", "here")
"""


@pytest.fixture(autouse=True)
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(stream: object, flags: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(leases, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.1)
    files._say_once.cache_clear()


def is_free(path: Path) -> bool:
    held = lock(path, shared=True)
    return held is not None


def of_another(monkeypatch: pytest.MonkeyPatch, take: Callable[[], Any], machine: str = "elsewhere") -> Any:
    """What another machine's process takes."""
    with monkeypatch.context() as patch:
        patch.setattr(leases, "_machine", lambda: machine)
        return take()


def test_one_holds_it_until_it_gives_it_back_and_that_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lock"
    for _ in range(3):
        held = lock(path)
        assert held is not None
        assert lock(path) is None
        assert not is_free(path)
        held.close()
        assert is_free(path)
    assert len(list(tmp_path.iterdir())) == 2  # the lock's own file and the last lease
    [line] = capsys.readouterr().err.splitlines()
    assert str(tmp_path) in line


def test_a_dead_process_holds_nothing_and_neither_does_one_that_got_its_number(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    pid = os.fork()
    if pid == 0:
        lost = lock(path)
        os.kill(os.getpid() if lost else 0, signal.SIGKILL)
    os.waitpid(pid, 0)
    held: Any = lock(path)
    assert held is not None
    held._ended.set()
    [file] = tmp_path.glob(".lock.lease-*")
    machine, number, started = file.read_text().split()
    assert number == str(os.getpid())
    file.write_text(f"{machine} {number} {int(started) - 1}\n")  # as of an earlier process of this number
    assert lock(path) is not None


@pytest.mark.parametrize("jump", [-86400.0, 86400.0])
def test_another_machines_lease_is_taken_when_it_is_silent_whatever_clocks_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    path, clock = tmp_path / "lock", time.time
    held: Any = of_another(monkeypatch, lambda: lock(path))
    monkeypatch.setattr(time, "time", lambda: clock() + jump)
    began = time.monotonic()
    while time.monotonic() - began < 1.2:  # it beats
        assert lock(path) is None
        time.sleep(0.05)
    held._ended.set()  # as a machine that lost its power
    [file] = tmp_path.glob(".lock.lease-*")
    os.utime(file, (clock() + jump, clock() + jump))
    assert lock(path) is None
    time.sleep(0.6)
    assert lock(path) is None  # who has watched makes it free for all
    assert is_free(path)
    assert lock(path) is not None


def test_of_many_that_see_it_free_one_gets_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for _ in range(5):  # at first there is no lease, then one of a dead process
        pids, (wait, go) = [], os.pipe()
        for _ in range(8):
            pids.append(os.fork())
            if pids[-1] == 0:
                os.close(go)
                os.read(wait, 1)
                held = lock(path)
                time.sleep(1)
                os._exit(0 if held is None else 1)
        os.close(go)
        assert sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids) == 1
        os.close(wait)


def test_a_process_that_was_stopped_while_another_took_its_lease_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    pid = os.fork()
    if pid == 0:
        held: IO[bytes] | None = lock(path)
        time.sleep(60)
        os._exit(0 if held else 1)
    while is_free(path):
        time.sleep(0.01)
    leases.Lease(path, 2)  # as a machine would that cannot see the process
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == leases.LOST


def test_launchers_of_two_machines_share_a_folder_without_locks_and_one_takes_over_what_the_other_lost(
    tmp_path: Path,
) -> None:
    (tmp_path / "shim").mkdir()
    (tmp_path / "shim/sitecustomize.py").write_text(
        SHIM + "from harness.foundation import leases\nleases.SILENT_SECONDS, leases.BEAT_SECONDS = 4.0, 0.5\n"
    )
    (tmp_path / "launcher.py").write_text(
        "import sys\nfrom functools import partial\nfrom pathlib import Path\n"
        "from harness.config import compose\nfrom harness.experiments.jobs.job import Job\n"
        "from harness.experiments.jobs.runner import run_jobs\n"
        "folder = Path(sys.argv[1])\nconfig = compose('smoke', overrides=['runtime.device=cpu'])\n"
        "def job(name):\n"
        "    code = f\"import time; open('{folder}/{name}.begun', 'a').write('x'); time.sleep({sys.argv[2]});\" \\\n"
        "        f\"open('{folder}/{name}', 'w')\"\n"
        "    return Job(id=name, call=partial(exec, code, {}), done=folder / name, log=folder / 'log', config=config)\n"
        "sys.exit(len(run_jobs([job(name) for name in 'abcd'], 1, folder, print).failed))\n"
    )
    folder = tmp_path / "jobs"
    environment = process_environment()
    environment["PYTHONPATH"] = f"{tmp_path / 'shim'}:{ROOT}"

    def launch(host: str, seconds: float) -> subprocess.Popen[str]:
        command = [sys.executable, str(tmp_path / "launcher.py"), str(folder), str(seconds)]
        return subprocess.Popen(command, env=environment | {"ANOTHER_HOST": host}, stdout=subprocess.PIPE, text=True,
                                stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip

    lost = launch("first", 600)
    while not (folder / "a.begun").exists():
        time.sleep(0.05)
    others = [launch("second", 0.2), launch("third", 0.2)]
    time.sleep(1)
    worker = int(subprocess.run(["pgrep", "-P", str(lost.pid)], capture_output=True, text=True, check=True).stdout)
    for process in (lost.pid, worker):  # the whole machine
        os.kill(process, signal.SIGKILL)
    said = [other.communicate(timeout=90)[0] for other in others]
    assert [other.returncode for other in others] == [0, 0], said
    assert "4 of 4 finished" in said[0] or all((folder / name).exists() for name in "abcd")
    counts = {name: len((folder / f"{name}.begun").read_text()) for name in "abcd"}
    assert counts == {"a": 2, "b": 1, "c": 1, "d": 1}
