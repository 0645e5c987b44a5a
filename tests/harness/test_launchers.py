"""Handing runs over to a scheduler: commands, what is not handed over twice, and one line where that cannot be."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from harness.config import ROOT, ConfigError, compose
from harness.experiments.jobs import launchers
from harness.experiments.jobs.launchers import (
    JOB,
    Resources,
    Task,
    hand_over,
    queued,
    read_resources,
    run_command,
    side_by_side,
)
from harness.experiments.runs import hand_over_all
from harness.foundation.errors import Preempted
from harness.runs.directory import RunDirectory, prepare_run
from tests.harness.conftest import SHORT


@pytest.fixture
def runs(tmp_path: Path) -> list[RunDirectory]:
    config = [*SHORT, "evaluation.test=false", "evaluation.base_test=false"]
    return [prepare_run(compose("miniature-luck", overrides=[*config, f"seed={seed}"]), tmp_path) for seed in range(3)]


def cluster(folder: Path, text: str) -> str:
    path = folder / "cluster.yaml"
    path.write_text(text)
    return str(path)


def test_each_run_is_a_command_and_finished_or_working_ones_are_none(
    runs: list[RunDirectory], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    runs[0].set_status("finished", 1, 1)
    held = runs[1].lock()
    assert hand_over_all(runs, "print", print) == 0
    held.close()
    said = capfd.readouterr().out.splitlines()
    assert f"harness.cli train --resume {runs[2].folder}" in said[1]
    assert said[-1].startswith("1 of 3 runs handed over (print), 1 jobs")
    assert json.loads((runs[2].folder / JOB).read_text()) == {"launcher": "print", "job": "line 1"}


def test_runs_are_packed_and_the_jobs_code_is_that_of_a_run_that_did_not_finish(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    one, two = (run_command(folder, 1) for folder in folders)
    assert side_by_side([one]) == [sys.executable, "-m", "harness.cli", "train", "--resume", str(folders[0])]
    assert run_command(folders[0], 4)[3] == "launch"
    resources = Resources(launcher="print", pack=2)
    with pytest.raises(ConfigError, match="pack: runs on several machines"):
        hand_over([Task(folder, one, 2) for folder in folders], resources, print, "2 runs")
    script = side_by_side([one, two])[2]
    for codes, expected in (((0, 0), 0), ((75, 0), 75), ((0, 75), 75)):
        own = script
        for folder, code in zip(folders, codes, strict=True):
            own = own.replace(f"{sys.executable} -m harness.cli train --resume {folder}", f"sh -c 'exit {code}'")
        assert subprocess.run(["bash", "-c", own], check=False).returncode == expected


def test_runs_that_share_a_job_hear_its_end_and_it_waits_until_they_have_saved(tmp_path: Path) -> None:
    saving = "trap 'sleep 0.4; touch {}; exit 75' TERM; touch {}.begun; while :; do sleep 0.05; done"
    marks = [tmp_path / name for name in "ab"]
    with subprocess.Popen(side_by_side([["sh", "-c", saving.format(mark, mark)] for mark in marks])) as process:
        while not all(mark.with_suffix(".begun").exists() for mark in marks):
            time.sleep(0.02)
        process.terminate()
    assert process.returncode == Preempted.exit_code
    assert all(mark.exists() for mark in marks)


def test_local_jobs_end_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    pid = os.fork()
    if pid == 0:
        launchers.local([["sh", "-c", f"echo $$ > {begun}; exec sleep 600"]], Resources(launcher="local"))
        time.sleep(600)
    while not begun.exists() or not begun.read_text():
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for _ in range(100):
        if not Path(f"/proc/{begun.read_text().strip()}").exists():
            return
        time.sleep(0.05)
    pytest.fail("an orphan is left")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR2, 0), (signal.SIGTERM, 1)])
def test_a_job_whose_time_is_over_has_its_run_save_and_one_that_is_cancelled_ends(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    (tmp_path / "submitit.py").write_text(
        "class JobEnvironment:\n    global_rank, hostnames, job_id = 0, ['here'], '1'\n"
        "class helpers:\n    def DelayedSubmission(self, argv): return self, argv\n"
    )
    saving = (
        f"trap 'sleep 0.3; touch {tmp_path}/saved; exit 75' TERM; touch {tmp_path}/begun; while :; do sleep 0.05; done"
    )
    script = (
        "import os, signal, sys; from harness.experiments.jobs.launchers import InJob\n"
        "job, argv = InJob(1), ['sh', '-c', sys.argv[1]]\n"
        # As submitit does.
        "signal.signal(signal.SIGUSR2, lambda number, frame: sys.exit(job.checkpoint(argv)[1] != argv))\n"
        "sys.exit(job(argv) == 75)"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    process = subprocess.Popen([sys.executable, "-c", script, saving], env=environment, start_new_session=True)
    while not (tmp_path / "begun").exists():
        time.sleep(0.02)
    os.killpg(process.pid, number)
    try:
        assert process.wait(20) == code
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert (tmp_path / "saved").exists()


def test_a_launcher_of_ones_own(runs: list[RunDirectory], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from harness.experiments.jobs.launchers import Handle\n"
        "def run(argv, resources):\n    return Handle(f'{argv[-1]} with {resources.gpus}')\n"
    )
    resources = read_resources(cluster(tmp_path, f"launcher: {tmp_path}/mine.py:run\ngpus: 2\npack: 1\n"))
    folder = runs[0].folder
    assert hand_over([Task(folder, run_command(folder, 1))], resources, print, "1 runs") == 0
    assert json.loads((folder / JOB).read_text())["job"] == f"{folder} with 2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("launcher: slurm\ngpu: 1\n", "unknown key 'gpu'; the nearest is 'gpus'"),
        ("gpus: 1\n", "launcher"),
        ("launcher: pbs\n", "plug-in 'pbs': write path/to/file.py:Object"),
        ("launcher: local\nmemory: much\n", "memory"),
        ("launcher: json:codecs\n", "is no function"),
    ],
)
def test_what_no_launcher_can_use_is_one_line_and_makes_no_run(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(Exception, match=message) as error:
        hand_over_all((prepare_run(compose("smoke"), tmp_path / "runs") for _ in "a"), cluster(tmp_path, text), print)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_more_machines_than_a_run_uses_are_refused_before_it_is_reset(runs: list[RunDirectory], tmp_path: Path) -> None:
    runs[0].set_status("failed", 0, 1, "kept")
    with pytest.raises(ConfigError, match=r"machines: 2 .* runtime\.machines=1"):
        hand_over_all(runs, cluster(tmp_path, "launcher: print\nmachines: 2"), print)
    assert runs[0].status()["reason"] == "kept"


def test_without_slurm_one_line(runs: list[RunDirectory], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="there is no sbatch on this machine"):
        hand_over_all(runs, "slurm", print)
    assert not (runs[0].folder / JOB).exists()


def test_what_is_in_the_queue_is_told_and_not_handed_over_again(
    runs: list[RunDirectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text("#!/bin/sh\necho '7_0|PENDING|Resources'\necho '7_2|RUNNING|None'\n")
    squeue.chmod(squeue.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
    for number, run in enumerate(runs):
        (run.folder / JOB).write_text(json.dumps({"launcher": "slurm", "job": f"7_{number}"}))
    (runs[1].folder / JOB).write_text('{"launcher"')  # damaged
    assert queued(run.folder for run in runs) == {
        runs[0].folder: "7_0 PENDING, Resources",
        runs[2].folder: "7_2 RUNNING, None",
    }
    said: list[str] = []
    hand_over_all(runs, "print", said.append)
    assert f"{runs[0].run_id}: in the queue as 7_0 PENDING, Resources" in said
    assert said[-1].startswith("1 of 3 runs handed over")
