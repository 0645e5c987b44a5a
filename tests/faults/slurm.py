"""``make test-slurm``: a grid on a single-node Slurm, with a preempted job and a killed node daemon.

Starts munged, slurmctld and slurmd of this machine, in a temporary folder, as root, and ends them. It needs Debian's
slurm-wlm and munge, and submitit (``pip install submitit``, or the extra ``slurm``).
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.config import ROOT
from harness.experiments.jobs.launchers import JOB
from harness.experiments.runs import hand_over_all
from harness.experiments.status import status_lines
from harness.runs.directory import RunDirectory
from tests.faults.victims import KINDS, outcome, prepared

CONF = """ClusterName=dev
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
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
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """Within: a Slurm of one node, whose daemons are ended afterwards."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=socket.gethostname(), folder=folder, cpus=os.cpu_count()), encoding="utf-8")
    os.environ["SLURM_CONF"] = str(conf)
    own_munge = subprocess.run("munge -n | unmunge", shell=True, capture_output=True, check=False).returncode != 0
    if own_munge:
        Path("/run/munge").mkdir(exist_ok=True)
        shutil.chown("/run/munge", "munge")
        subprocess.run(["runuser", "-u", "munge", "--", "munged"], check=True)
        time.sleep(1)
    subprocess.run(["slurmctld"], check=True)
    time.sleep(1)
    subprocess.run(["slurmd"], check=True)
    try:
        until("the node is idle", lambda: "idle" in told("sinfo", "--noheader"), 60)
        yield
    finally:
        told("scancel", "--user", "root")
        for name in ("slurmd", "slurmctld"):
            end(folder / f"{name}.pid", signal.SIGTERM)
        if own_munge:
            end(Path("/run/munge/munged.pid"), signal.SIGTERM)


def told(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def end(pid: Path, number: signal.Signals) -> None:
    if pid.exists():
        os.kill(int(pid.read_text(encoding="utf-8")), number)


def until(what: str, holds: Callable[[], bool], seconds: float) -> None:
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > seconds:
            raise SystemExit(f"after {seconds:g} s not yet: {what}")
        time.sleep(1)
    print(f"{time.monotonic() - began:6.0f} s  {what}", flush=True)


def of(run: RunDirectory, iteration: int, state: str = "running") -> Callable[[], bool]:
    return lambda: run.status()["state"] == state and run.status()["iteration"] >= iteration


def main() -> int:
    """Entry point."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    settings = [*KINDS["plain"], "iterations=40", "runtime.checkpoint_interval=4", "evaluation.interval=20"]
    resources = folder / "one.yaml"
    resources.write_text("launcher: slurm\npartition: main\ntime: 30\ncpus: 1\narray: 2\n", encoding="utf-8")
    whole = prepared(folder / "whole", *settings)
    print("one run without Slurm, to compare with", flush=True)
    subprocess.run([sys.executable, "-m", "harness.cli", "train", "--resume", str(whole.folder)], cwd=ROOT, check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    with cluster(folder / "cluster"):
        runs = [prepared(folder / "grid", *settings, f"seed={seed}") for seed in range(3)]
        assert hand_over_all(runs, str(resources), print) == 0
        assert hand_over_all(runs, str(resources), print) == 0  # hands nothing over twice
        jobs = [json.loads((run.folder / JOB).read_text())["job"] for run in runs]
        print(told("squeue", "--array"))
        until("two runs train", lambda: of(runs[0], 4)() and of(runs[1], 4)(), 300)
        print("\n".join(line for line in status_lines(folder / "grid") if "queue" in line))
        # As when a job of higher priority takes the place: SIGTERM, and into the queue again.
        print(told("scontrol", "requeue", jobs[0]), end="")
        until("the preempted run has saved", of(runs[0], 4, "preempted"), 60)
        reached = runs[0].status()["iteration"]
        print(f"        {runs[0].status()['reason']}")
        until("it trains again from there", of(runs[0], reached + 4), 400)
        end(folder / "cluster/slurmd.pid", signal.SIGKILL)
        steps = told("pgrep", "-x", "slurmstepd").split()
        for process in steps:
            os.kill(int(process), signal.SIGKILL)
        for run in runs:
            for process in told("pgrep", "-f", str(run.folder)).split():
                os.kill(int(process), signal.SIGKILL)
        print(f"node daemon and {len(steps)} steps killed with -9", flush=True)
        time.sleep(5)
        subprocess.run(["slurmd"], check=True)
        until("all runs are finished", lambda: all(run.status()["state"] == "finished" for run in runs), 900)
        print(told("squeue", "--array"))
    same = outcome(whole.folder) == outcome(runs[0].folder)
    print(f"weights and logs of the run that was preempted and killed are those of one without: {same}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
