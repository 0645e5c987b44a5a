"""Handing runs over to a scheduler: commands, what is not handed over twice, and one line where that cannot be."""

import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.config import ROOT, ConfigError, RuntimeConfig, compose
from harness.experiments.jobs import launchers
from harness.experiments.jobs.launchers import (
    JOB,
    InJob,
    Resources,
    Task,
    hand_over,
    queued,
    read_resources,
    run_command,
    side_by_side,
)
from harness.experiments.runs import hand_over_all
from harness.experiments.status import status_lines
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
    several = RuntimeConfig(machines=2, processes=2)
    with pytest.raises(ConfigError, match="pack: runs on several machines"):
        hand_over([Task(folder, one, several) for folder in folders], resources, print, "2 runs")
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


SHOW = "echo $CUDA_VISIBLE_DEVICES > {}"


@pytest.mark.parametrize(
    ("visible", "expected"), [("GPU-a,1,2,7,8", ["GPU-a,1", "2,7"]), ("", ["0,1", "2,3"]), ("0,1,2", None)]
)
def test_runs_that_share_a_job_share_no_gpu(tmp_path: Path, visible: str, expected: list[str] | None) -> None:
    marks = [tmp_path / name for name in "ab"]
    command = side_by_side([["sh", "-c", SHOW.format(mark)] for mark in marks], 2)
    done = subprocess.run(command, env=os.environ | {"CUDA_VISIBLE_DEVICES": visible}, check=False)
    assert (done.returncode == 0) == (expected is not None)
    assert [mark.read_text().strip() for mark in marks if mark.exists()] == (expected or [])


def test_local_jobs_are_in_the_working_directory_and_share_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launchers, "visible_gpus", lambda: ("0", "2", "3", "4"))
    monkeypatch.setattr(launchers, "WORK", tmp_path)
    resources = Resources(launcher="local", gpus=2)
    commands = [["sh", "-c", SHOW.format(name)] for name in "abc"]
    with pytest.raises(ConfigError, match="gpus: 2 for each of 3 jobs"):
        launchers.local(commands, resources)
    assert [handle.wait() for handle in launchers.local(commands[:2], resources)] == [0, 0]
    assert launchers.local(commands[2:], Resources(launcher="local"))[0].wait() == 0
    assert [(tmp_path / name).read_text().strip() for name in "abc"] == ["0,2", "3,4", ""]


def test_a_submitted_job_is_in_the_folder_it_was_submitted_from_and_two_have_two_ports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, before = pickle.dumps(InJob(2, tmp_path)), signal.getsignal(signal.SIGTERM)
    try:
        for number in ("41234", "41235"):
            here = SimpleNamespace(global_rank=1, hostnames=["one", "two"], job_id="7_1", raw_job_id=number)
            monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(JobEnvironment=lambda here=here: here))
            assert pickle.loads(job)(["sh", "-c", 'echo "$@" >> told', "-"]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    first, second = ((*line.rpartition(" "),) for line in (tmp_path / "told").read_text().splitlines())
    assert first[0] == second[0] == "--machine-rank 1 --main-address one --main-port"
    assert 1024 < int(first[2]) != int(second[2]) < 32768


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
        "job, argv = InJob(1, os.getcwd()), ['sh', '-c', sys.argv[1]]\n"
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


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("", ["runtime.device=cuda"], "gpus: 0 per machine, but .* needs 1 .* ask for 1"),
        ("gpus: 3\npack: 2", ["runtime.processes=2"], "gpus: 3 per machine, but .* needs 2 .* ask for 4"),
        ("gpus: 2\npack: 2", ["runtime.device=cuda"], ""),
        ("gpus: 1", ["runtime.processes=2", "runtime.machines=2"], ""),
        ("gpus: 1", ["runtime.processes=2", "runtime.device=cpu"], ""),
        ("", ["runtime.processes=2"], ""),
    ],
)
def test_a_job_has_a_gpu_for_each_process_or_is_refused(
    tmp_path: Path, text: str, settings: list[str], message: str
) -> None:
    settings = ["rollout.prompts_per_iteration=2", *settings]
    run = prepare_run(compose("miniature-luck", overrides=[*SHORT, *settings]), tmp_path)
    cluster_file = cluster(tmp_path, f"launcher: print\n{text}")
    if not message:
        assert hand_over_all([run], cluster_file, print) == 0
        return
    with pytest.raises(ConfigError, match=message):
        hand_over_all([run], cluster_file, print)
    assert not (run.folder / JOB).exists()


def test_jobs_are_told_early_enough_to_save_and_if_sbatch_refuses_a_failed_run_keeps_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*SHORT, "runtime.preemption_seconds=600"]
    run = prepare_run(compose("miniature-luck", overrides=settings), tmp_path)
    run.set_status("failed", 0, 1, "kept")
    given: dict[str, Any] = {}

    class Executor:
        def __init__(self, **options: object) -> None: ...

        def update_parameters(self, **parameters: object) -> None:
            given.update(parameters)

        def map_array(self, job: InJob, commands: list[list[str]]) -> list[SimpleNamespace]:
            if refusal:
                raise RuntimeError(refusal)
            assert run.status()["reason"] == "kept"
            return [SimpleNamespace(job_id="5_0") for _ in commands]

    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(SlurmExecutor=Executor))
    monkeypatch.setattr(launchers.shutil, "which", lambda name: name if name == "sbatch" else None)
    refusal = "invalid partition"
    with pytest.raises(ConfigError, match="invalid partition"):
        hand_over_all([run], "slurm", print)
    assert (run.status()["state"], run.status()["reason"]) == ("failed", "kept")
    refusal = ""
    assert hand_over_all([run], "slurm", print) == 0
    assert (run.status()["state"], run.status()["reason"]) == ("waiting", None)
    assert given["signal_delay_s"] > 600


def test_a_job_that_has_ended_before_all_are_submitted_keeps_its_state(
    runs: list[RunDirectory], tmp_path: Path
) -> None:
    (tmp_path / "quick.py").write_text(
        "from pathlib import Path\nfrom harness.experiments.jobs.launchers import Handle\n"
        "from harness.runs.directory import RunDirectory\n"
        "def run(argv, resources):\n"
        "    RunDirectory(Path(argv[-1])).set_status('failed', 0, 1, 'at once')\n    return Handle('1')\n"
    )
    runs[0].set_status("failed", 0, 1, "before")
    hand_over_all(runs[:1], cluster(tmp_path, f"launcher: {tmp_path}/quick.py:run"), print)
    assert runs[0].status()["reason"] == "at once"


def answer_squeue(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a squeue first on PATH that executes a shell script."""
    squeue = folder / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text(f"#!/bin/sh\n{script}\n")
    squeue.chmod(squeue.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")


def test_if_the_queue_cannot_be_read_nothing_is_handed_over_and_status_says_so(
    runs: list[RunDirectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_squeue("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", tmp_path, monkeypatch)
    (runs[0].folder / JOB).write_text(json.dumps({"launcher": "slurm", "job": "7_0"}))
    with pytest.raises(ConfigError, match="Unable to contact slurm controller"):
        hand_over_all(runs, "print", print)
    assert not (runs[1].folder / JOB).exists()
    lines = status_lines(tmp_path)
    assert any("Unable to contact" in line for line in lines)
    assert any("3 waiting" in line for line in lines)


def test_without_slurm_one_line(runs: list[RunDirectory], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="there is no sbatch on this machine"):
        hand_over_all(runs, "slurm", print)
    assert not (runs[0].folder / JOB).exists()


def test_what_is_in_the_queue_is_told_and_not_handed_over_again(
    runs: list[RunDirectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_squeue("echo '7_0|PENDING|Resources'\necho '7_2|RUNNING|None'", tmp_path, monkeypatch)
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
