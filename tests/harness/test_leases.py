"""Leases: on a file system without locks a thing is held by one, and by another when the holder is dead or silent."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest

from harness.config import ROOT, compose
from harness.experiments.jobs.job import Job
from harness.experiments.jobs.launchers import JOB
from harness.experiments.jobs.runner import run_jobs
from harness.experiments.runs import hand_over_all
from harness.foundation import files, leases
from harness.foundation.files import lock
from harness.foundation.places import process_environment
from harness.runs.directory import prepare_run
from tests.harness.conftest import SHORT

SHIM = """
import errno, fcntl, os, socket
def flock(stream, flags):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
socket.gethostname = lambda: os.environ["HOST"]
from harness.foundation import leases
leases.SILENT_SECONDS, leases.BEAT_SECONDS = 4.0, 0.5
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


def silence(held: Any) -> None:
    """End a lease's touches without releasing it, as a machine that lost its power; on return the last one is over."""
    held._ended.set()
    held._beats.join()


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
    silence(held)
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
    silence(held)
    [file] = tmp_path.glob(".lock.lease-*")
    os.utime(file, (clock() + jump, clock() + jump))
    assert not is_free(path)
    time.sleep(0.6)
    assert not is_free(path)  # who has watched makes it free for all
    assert is_free(path)


def test_who_wants_another_machines_lease_watches_it_until_it_is_touched_or_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    held: Any = of_another(monkeypatch, lambda: lock(path))
    began = time.monotonic()
    assert lock(path) is None
    assert time.monotonic() - began < leases.SILENT_SECONDS
    silence(held)
    leases._seen.clear()  # as a process that has just begun
    assert lock(path) is not None
    assert time.monotonic() - began > leases.SILENT_SECONDS


def test_runs_that_other_machines_hold_are_watched_together_and_those_of_dead_ones_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [prepare_run(compose("miniature-luck", overrides=[*SHORT, f"seed={seed}"]), tmp_path) for seed in range(3)]
    held: list[Any] = [of_another(monkeypatch, run.lock) for run in runs]
    for dead in held[1:]:
        silence(dead)
    monkeypatch.setattr(leases, "SILENT_SECONDS", 1.5)
    leases._seen.clear()  # as a process that has just begun
    said, began = list[str](), time.monotonic()
    hand_over_all(runs, "print", said.append)
    assert 1.5 < time.monotonic() - began < 5
    assert said[0].startswith("3 leases")
    assert [(run.folder / JOB).exists() for run in runs] == [False, True, True]
    held[0].close()


@pytest.mark.parametrize(("options", "count"), [("rw,nolock,local_lock=all", 2), ("rw,local_lock=none", 1)])
def test_locks_that_other_machines_do_not_see_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, count: int
) -> None:
    (tmp_path / "mounts").write_text(f"none / ext4 rw 0 0\nserver:/x {tmp_path} nfs {options} 0 0\n")
    monkeypatch.setattr(files, "_MOUNTS", tmp_path / "mounts")
    monkeypatch.setattr(fcntl, "flock", lambda stream, flags: None)
    files._locks_are_local.cache_clear()
    (tmp_path / "runs").mkdir()
    held = lock(tmp_path / "runs" / "lock")
    assert held is not None
    assert len(list((tmp_path / "runs").iterdir())) == count
    files._locks_are_local.cache_clear()


def test_of_many_that_see_it_free_one_gets_it(tmp_path: Path) -> None:
    path, count = tmp_path / "lock", 6
    for _ in range(3):  # at first there is no lease, then one of a dead process
        pids, (wait, go), (answers, answer) = [], os.pipe(), os.pipe()
        for _ in range(count):
            pids.append(os.fork())
            if pids[-1] == 0:
                os.close(go)
                os.read(wait, 1)
                held = lock(path)
                os.write(answer, b"-" if held is None else b"+")
                signal.pause()  # all others have answered before it lets go
        os.close(go)
        assert sorted(b"".join(os.read(answers, 1) for _ in pids)) == sorted(b"+" + b"-" * (count - 1))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for end in (wait, answers, answer):
            os.close(end)


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


def launch(folder: Path, seconds: str) -> int:
    """A launcher of four jobs that take their time, one at a time; how many have failed."""
    config = compose("smoke", overrides=["runtime.device=cpu"])

    def job(name: str) -> Job:
        code = f"import time; open('{folder}/{name}.begun', 'a').write('x'); time.sleep({seconds})"
        call = partial(exec, f"{code}; open('{folder}/{name}', 'w')", {})
        return Job(id=name, call=call, done=folder / name, log=folder / "log", config=config)

    return len(run_jobs([job(name) for name in "abcd"], 1, folder, print).failed)


def test_launchers_of_three_machines_share_a_folder_without_locks_and_take_over_what_one_lost(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SHIM)
    environment, folder = process_environment() | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}, tmp_path / "jobs"
    words = "import sys, pathlib; from tests.harness.test_leases import launch; sys.exit(launch(pathlib.Path("

    def on(host: str, seconds: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", f"{words}{str(folder)!r}), '{seconds}'))"]
        return subprocess.Popen(command, env=environment | {"HOST": host}, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    lost = on("first", 600)
    while not (folder / "a.begun").exists():
        time.sleep(0.05)
    others = [on("second", 0.2), on("third", 0.2)]
    worker = int(subprocess.run(["pgrep", "-P", str(lost.pid)], capture_output=True, text=True, check=True).stdout)
    for process in (lost.pid, worker):  # the whole machine
        os.kill(process, signal.SIGKILL)
    said = [other.communicate(timeout=90)[0] for other in others]
    assert [other.returncode for other in others] == [0, 0], said
    assert {name: len((folder / f"{name}.begun").read_text()) for name in "abcd"} == {"a": 2, "b": 1, "c": 1, "d": 1}
    assert all((folder / name).exists() for name in "abcd")
