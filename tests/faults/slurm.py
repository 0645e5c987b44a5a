"""``make test-slurm``: a grid and a sweep on a Slurm of this machine, with preempted jobs and a killed node daemon.

Starts munged, slurmctld and two slurmd, as nodes of both names that this machine has, in a temporary folder, as root,
and ends them. It needs Debian's slurm-wlm and munge, and submitit (``pip install submitit``, or the extra ``slurm``).
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import optuna
import psutil

from harness.config import ROOT
from harness.experiments.jobs.launchers import JOB, end_with_parent
from harness.experiments.runs import hand_over_all
from harness.experiments.status import status_lines
from harness.runs.directory import RUNS, RunDirectory
from tests.faults.victims import KINDS, SHORT, outcome, prepared

CONF = """ClusterName=dev
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=30
SlurmdTimeout=15
MinJobAge=3600
SchedulerParameters=batch_sched_delay=0,sched_interval=5,requeue_delay=5
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 Port=6818 CPUs=5 RealMemory=8000 State=UNKNOWN
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 Port=6819 CPUs=1 Weight=9 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes={host},localhost Default=YES MaxTime=INFINITE State=UP
"""
HOST = socket.gethostname()
NODE = ("slurmd", "-D", "-N", HOST)
DAEMONS: dict[str, subprocess.Popen[bytes]] = {}
"""Those that this process has started, and ends."""


def start(*command: str, user: str | None = None) -> None:
    output = subprocess.DEVNULL
    # However this process ends, they end with it.
    DAEMONS[" ".join(command)] = subprocess.Popen(
        command, user=user, stdout=output, stderr=output, preexec_fn=end_with_parent
    )
    time.sleep(1)


@contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """Within: a Slurm of two nodes, whose daemons are ended afterwards."""
    for name in ("state", f"spool-{HOST}", "spool-localhost"):
        (folder / name).mkdir(parents=True)
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=HOST, folder=folder), encoding="utf-8")
    os.environ["SLURM_CONF"] = str(conf)
    if subprocess.run("munge -n | unmunge", shell=True, capture_output=True, check=False).returncode != 0:
        Path("/run/munge").mkdir(exist_ok=True)
        shutil.chown("/run/munge", "munge")
        start("munged", "--foreground", user="munge")
    try:
        start("slurmctld", "-D")
        start(*NODE)
        start("slurmd", "-D", "-N", "localhost")
        until("the nodes are idle", lambda: "2   idle" in told("sinfo", "--noheader"), 60)
        yield
    finally:
        try:
            told("scancel", "--user", "root")
            until("no job is left", lambda: not told("squeue", "--noheader"), 60)
        finally:
            for daemon in reversed(DAEMONS.values()):
                daemon.terminate()
            print(f"ended: {', '.join(f'{name} {daemon.wait(60)}' for name, daemon in DAEMONS.items())}", flush=True)


def told(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def until(what: str, holds: Callable[[], bool], seconds: float) -> None:
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > seconds:
            raise SystemExit(f"after {seconds:g} s not yet: {what}")
        time.sleep(1)
    print(f"{time.monotonic() - began:6.0f} s  {what}", flush=True)


def of(run: RunDirectory, iteration: int, state: str = "running") -> Callable[[], bool]:
    return lambda: run.status()["state"] == state and run.status()["iteration"] >= iteration


def jobs_of(folders: Iterable[Path]) -> list[str]:
    return [json.loads((folder / JOB).read_text(encoding="utf-8"))["job"] for folder in folders]


def adagrpo(*words: str, shown: bool = True) -> None:
    subprocess.run([sys.executable, "-m", "harness.cli", *words], cwd=ROOT, check=True,
                   **({} if shown else {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}))  # fmt: skip


def kill_node() -> None:
    """Kill the node's daemon, and all steps with what they have started."""
    daemon = DAEMONS[" ".join(NODE)]
    daemon.kill()
    daemon.wait()
    steps = [process for process in psutil.process_iter() if process.name().startswith("slurmstepd")]
    below = [process for step in steps for process in step.children(recursive=True)]
    for process in [*steps, *below]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    print(f"node daemon, {len(steps)} steps and {len(below)} processes below killed with -9", flush=True)
    time.sleep(5)


def main() -> int:
    """Entry point."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    settings = [*KINDS["plain"], "iterations=40", "runtime.checkpoint_interval=4", "evaluation.interval=20"]
    resources = folder / "one.yaml"
    resources.write_text("launcher: slurm\npartition: main\ntime: 30\ncpus: 1\narray: 2\n", encoding="utf-8")
    whole, both = prepared(folder / "whole", *settings), prepared(folder / "both", *KINDS["two processes"])
    print("runs without Slurm, to compare with", flush=True)
    adagrpo("train", "--resume", str(whole.folder), shown=False)
    adagrpo("launch", "--resume", str(both.folder), shown=False)
    name, storage = folder.name, f"sqlite:///{folder}/study.db"
    sweep = ["sweep", "experiments/sweeps/smoke.yaml", "--name", name, "--storage", storage, "--slots", "2"]
    sweep += ["--trials", "6", "--output", str(folder / "report"), "--on", str(resources), *SHORT]
    workers = [RUNS / f"sweep-{name}" / f"worker-{number}" for number in range(2)]
    try:
        with cluster(folder / "cluster"):
            runs = [prepared(folder / "grid", *settings, f"seed={seed}") for seed in range(3)]
            runs += [prepared(folder / "grid", *KINDS["two processes"], "runtime.machines=2")]
            for _ in range(2):  # the second time nothing is handed over
                assert hand_over_all(runs, str(resources), print) == 0
                adagrpo(*sweep)
            jobs, searching = jobs_of(run.folder for run in runs), jobs_of(workers)
            print(told("squeue", "--array"))
            until("two runs train", lambda: of(runs[0], 4)() and of(runs[1], 4)(), 900)
            until("two trials run", lambda: states(storage).count("RUNNING") == 2, 900)
            print("\n".join(line for line in status_lines(folder / "grid") if "queue" in line))
            # As when jobs of higher priority take the place: SIGTERM, and into the queue again.
            print(told("scontrol", "requeue", jobs[0]) + told("scontrol", "requeue", searching[0]), end="")
            until("the preempted run has saved", of(runs[0], 4, "preempted"), 60)
            reached = runs[0].status()["iteration"]
            print(f"        {runs[0].status()['reason']}")
            # As when a job's time is nearly over.
            told("scancel", "--signal", "USR2", jobs[1])
            until("the run whose time is over has saved", of(runs[1], 4, "preempted"), 60)
            until("the first trains again from there", of(runs[0], reached + 4), 900)
            kill_node()
            start(*NODE)
            until("all runs are finished", lambda: all(run.status()["state"] == "finished" for run in runs), 1800)
            until("the sweep has its trials", lambda: settled(storage) == 6, 1800)
            until("no job is left", lambda: not told("squeue", "--noheader"), 300)
    finally:
        shutil.rmtree(RUNS / f"sweep-{name}", ignore_errors=True)
    same = [outcome(whole.folder) == outcome(runs[0].folder), outcome(both.folder) == outcome(runs[3].folder)]
    print(f"weights and logs of the run that was preempted and killed are those of one without: {same[0]}")
    print(f"of the run on two nodes, too: {same[1]}")
    print(f"trials: {', '.join(sorted(states(storage)))}")
    return 0 if all(same) and states(storage).count("RUNNING") == 0 else 1


def states(storage: str) -> list[str]:
    """Of a sweep's trials; none before it is begun."""
    studies = optuna.get_all_study_names(storage)
    return [t.state.name for name in studies for t in optuna.load_study(study_name=name, storage=storage).get_trials()]


def settled(storage: str) -> int:
    return sum(state in ("COMPLETE", "PRUNED") for state in states(storage))


if __name__ == "__main__":
    sys.exit(main())
