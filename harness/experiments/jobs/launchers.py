"""Launchers of commands outside this process: on this machine, by Slurm, or printed for another system.

A file in experiments/clusters/ names a launcher and the resources of each job: ``adagrpo grid paper --on slurm``. For
another scheduler write ``launcher: path/to/file.py:run``, a plug-in ``run(argv, resources) -> Handle``.
"""

import ctypes
import getpass
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from harness.config import ConfigError, RuntimeConfig, experiment_path, read_experiment, validated
from harness.config.section import Count, CountOrNone, Section
from harness.experiments.jobs.slots import visible_gpus
from harness.foundation.errors import Preempted
from harness.foundation.files import write_atomically
from harness.foundation.places import WORK, process_environment
from harness.foundation.plugins import find

JOB = "job.json"
"""File in a run's directory that names the job to which it was submitted."""


class Resources(Section):
    """Resources of a job, and its launcher: a file in experiments/clusters/."""

    launcher: str
    """Launcher: local, slurm, print, or path/to/file.py:function."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: Count = 60 * 24
    """Time limit of a job in minutes; the job is then queued again, and continues from its checkpoint."""
    notice: Count = 90
    """Seconds before that limit at which runs are asked to save; more if ``runtime.preemption_seconds`` needs more."""
    gpus: CountOrNone = 0
    """GPUs per machine; in a job without any, ``runtime.device=auto`` is the CPU."""
    cpus: Count = 1
    """CPUs per machine."""
    memory: str | None = Field(None, pattern=r"^\d+[KMGT]?B?$")
    """Main memory per machine, such as 64GB."""
    machines: Count = 1
    array: Count = 256
    """Largest number of jobs of an array that run at the same time."""
    pack: Count = 1
    """Number of runs that share a job, side by side."""
    extra: dict[str, str | int | bool] = Field({})
    """Further options of sbatch, without the dashes."""


@dataclass(frozen=True)
class Handle:
    """A submitted job: its name as given by the launcher, and a function that waits for a local job's exit code."""

    name: str
    wait: Callable[[], int] = lambda: 0


Launcher = Callable[[Sequence[Sequence[str]], Resources], Sequence[Handle]]
"""Function that submits commands, each as a job of its own, and returns a handle for each."""


def read_resources(name: str) -> Resources:
    """Read resources from experiments/clusters/ by name, or from a path. Raises ConfigError or PluginError."""
    path = experiment_path("clusters", name)
    resources = validated(Resources, read_experiment(path), str(path))
    launcher_of(resources)
    return resources


def launcher_of(resources: Resources) -> Launcher:
    """Launcher that the resources name. Raises PluginError if it is not built in and cannot be loaded or called."""
    if resources.launcher in _LAUNCHERS:
        return _LAUNCHERS[resources.launcher]
    plugin = find(resources.launcher)
    if not callable(run := plugin.found):
        plugin.refuse("is no function run(argv, resources)")
    return lambda commands, resources: [run(argv, resources) for argv in commands]


def local(commands: Sequence[Sequence[str]], resources: Resources) -> list[Handle]:
    """Start the commands as processes of this machine, all at once, each on GPUs of its own; they end when this process
    does, in any way.
    """
    each, gpus = resources.gpus, visible_gpus() if resources.gpus else ()
    if len(commands) * each > len(gpus):
        raise ConfigError(
            f"gpus: {each} for each of {len(commands)} jobs at once, but this machine has {len(gpus)}; leave --on out, "
            "and runs take turns"
        )
    started = []
    for index, argv in enumerate(commands):
        own = {"CUDA_VISIBLE_DEVICES": ",".join(gpus[index * each : (index + 1) * each])}
        environment = process_environment() | own
        started.append(subprocess.Popen(argv, env=environment, cwd=WORK, preexec_fn=end_with_parent))
    return [Handle(str(process.pid), process.wait) for process in started]


def end_with_parent() -> None:
    """Have this process receive SIGTERM when its parent ends in any way (Linux only); called between fork and exec."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def printed(commands: Sequence[Sequence[str]], resources: Resources) -> list[Handle]:
    """Print the commands for another system, such as the ``run`` of a SkyPilot task or a Kubernetes job's args."""
    given = resources.model_dump(exclude_defaults=True, exclude={"launcher"})
    print(f"# each needs {json.dumps(given)}; exit code {Preempted.exit_code}: preempted, to be started again")
    for argv in commands:
        print(shlex.join(argv))
    return [Handle(f"line {number}") for number in range(1, len(commands) + 1)]


def slurm(commands: Sequence[Sequence[str]], resources: Resources) -> list[Handle]:
    """Submit the commands as one Slurm array through submitit; jobs that are preempted or time out are queued again."""
    if shutil.which("sbatch") is None:
        raise ConfigError("launcher: slurm: there is no sbatch on this machine; submit on a login node of the cluster")
    try:
        import submitit
    except ImportError:
        raise ConfigError("launcher: slurm: needs submitit; install adagrpo[slurm]") from None
    # A run continues in as many jobs as it needs; submitit's default limit is three.
    executor = submitit.SlurmExecutor(folder=WORK / "results" / "slurm" / "%j", max_num_timeout=10**6)
    executor.update_parameters(
        time=resources.time,
        nodes=resources.machines,
        ntasks_per_node=1,
        cpus_per_task=resources.cpus,
        srun_args=[f"--cpus-per-task={resources.cpus}"],  # which srun takes over from sbatch in some versions alone
        array_parallelism=resources.array,
        signal_delay_s=resources.notice,
        job_name="adagrpo",
        setup=[f"export {key}={shlex.quote(value)}" for key, value in _inherited().items()],
        additional_parameters={"requeue": True, "open-mode": "append", **resources.extra},
        **resources.model_dump(include={"partition", "account", "qos"}, exclude_none=True),
        **({"gpus_per_node": resources.gpus} if resources.gpus else {}),
        **({"mem": resources.memory} if resources.memory else {}),
    )
    try:
        jobs = executor.map_array(InJob(resources.machines, WORK), [list(argv) for argv in commands])
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"sbatch refuses: {' '.join(str(error).split())[-300:]}") from None
    return [Handle(job.job_id) for job in jobs]


def _inherited() -> dict[str, str]:
    """Variables that a job's processes need of this environment; none of them is secret."""
    wanted = ("PYTHONPATH", "PYTHONSAFEPATH", "ADAGRPO_CACHE")
    return {key: value for key, value in process_environment().items() if key in wanted}


class InJob:
    """Task of a submitted job: execute one command in a folder; on several machines, with this one's rank added."""

    def __init__(self, machines: int, folder: Path) -> None:
        self.machines, self.folder = machines, folder
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, argv: list[str]) -> int:
        """Execute the command, and queue the job again if it was preempted."""
        import submitit

        environment = submitit.JobEnvironment()
        if self.machines > 1:
            # Jobs whose first machine is the same need ports of their own, below those that systems hand out.
            port = 10_000 + int(environment.raw_job_id) % 20_000
            place = ["--machine-rank", environment.global_rank, "--main-address", environment.hostnames[0]]
            argv = [*argv, *map(str, place), "--main-port", str(port)]
        heard: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
        # The whole job receives SIGUSR2 shortly before its time limit; only ``checkpoint`` is to react to it.
        before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        self._process = subprocess.Popen(argv, cwd=self.folder)
        signal.signal(signal.SIGUSR2, before)
        code = self._process.wait()
        # Slurm itself queues again the jobs that it ends, unless a user has cancelled them.
        if code == Preempted.exit_code and not heard:
            subprocess.run(["scontrol", "requeue", environment.job_id], check=False)
        elif code not in (0, Preempted.exit_code) and not heard:
            raise RuntimeError(f"{shlex.join(argv)} ended with exit code {code}")
        return code

    def checkpoint(self, argv: list[str]) -> Any:
        """Have the command save, and return what submitit submits next when the job's time is over: the same."""
        import submitit

        if self._process is not None:
            self._process.terminate()
            # Called by a signal handler in the middle of another ``wait``, which holds the lock a second would need.
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(InJob(self.machines, self.folder), argv)


_LAUNCHERS: Mapping[str, Launcher] = {"local": local, "slurm": slurm, "print": printed}


# --- what is handed over ----------------------------------------------------------------------------------------------


class Task(NamedTuple):
    """A command to be submitted as a job."""

    folder: Path
    """Folder that receives the job's name."""
    argv: Sequence[str]
    runtime: RuntimeConfig = RuntimeConfig()
    """Settings that say which machines and GPUs the command needs."""
    begin: Callable[[], object] = lambda: None
    """Called once the command has been submitted."""

    def gpus(self, resources: Resources) -> int:
        """GPUs that the command needs per machine: one per process, none on the CPU."""
        device, processes = self.runtime.device, self.runtime.processes // self.runtime.machines
        return 0 if device == "cpu" or (device == "auto" and not resources.gpus) else processes


def run_command(folder: Path, processes: int) -> list[str]:
    """Command that executes a run: ``train``, or ``launch`` for several processes."""
    return [sys.executable, "-m", "harness.cli", "train" if processes == 1 else "launch", "--resume", str(folder)]


def side_by_side(commands: Sequence[Sequence[str]], gpus: int = 0) -> Sequence[str]:
    """One shell command that executes several side by side, forwards SIGTERM and waits for them to save; its exit code
    is that of the last one that failed or was preempted. Each sees ``gpus`` of the job's GPUs; with 0, all of them.
    """
    if len(commands) == 1:
        return commands[0]
    together, count = "", gpus * len(commands)
    if gpus:
        given = f"${{CUDA_VISIBLE_DEVICES:-{','.join(map(str, range(count)))}}}"
        lacks = f"is missing: CUDA_VISIBLE_DEVICES has fewer than {count} GPUs"
        together = f'IFS=, read -ra gpus <<< "{given}"; : "${{gpus[{count - 1}]:?{lacks}}}"; '
    for index, argv in enumerate(commands):
        own = f'CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${{gpus[*]:{index * gpus}:{gpus}}}") ' * bool(gpus)
        together += f"{own}{shlex.join(argv)} & jobs+=($!); "
    # A signal ends ``wait`` early, so it is repeated.
    wait = "wait $job; own=$?; if [ $heard ] && [ $own = 143 ]; then heard=; wait $job; own=$?; fi"
    script = (
        f"jobs=(); code=0; heard=; trap 'heard=1; kill \"${{jobs[@]}}\"' TERM; {together}"
        f'for job in "${{jobs[@]}}"; do {wait}; [ $own = 0 ] || code=$own; done; exit $code'
    )
    return ["bash", "-c", script]


def hand_over(tasks: Sequence[Task], resources: Resources, say: Callable[[str], object], of: str) -> int:
    """Submit the tasks that are not queued yet. Returns the exit code: 1 if a local job failed, else 0.

    Args:
        tasks: tasks that are not done yet.
        resources: resources of each job.
        say: called with each line of output.
        of: total amount, such as "3 runs".

    Raises:
        ConfigError: a job would get more machines than its command uses, or fewer GPUs, several machines would share a
            job, the queue cannot be read, or the launcher refuses.
    """
    waiting = queued(task.folder for task in tasks)
    for folder, job in waiting.items():
        say(f"{folder.name}: in the queue as {job}")
    left = [task for task in tasks if task.folder not in waiting]
    for task in left:
        if task.runtime.machines < resources.machines:
            raise ConfigError(
                f"machines: {resources.machines} for each job, but {task.folder.name} has "
                f"runtime.machines={task.runtime.machines}; leave machines out, since each run's own number is asked "
                "for"
            )
        if resources.pack > 1 and task.runtime.machines > 1:
            raise ConfigError("pack: runs on several machines do not share a job; set it to 1")
        if (needed := (each := task.gpus(resources)) * resources.pack) > resources.gpus:
            raise ConfigError(
                f"gpus: {resources.gpus} per machine, but {task.folder.name} needs {each} there, one per process, and "
                f"runs that share a job (pack: {resources.pack}) share none; ask for {needed}"
            )
    handles: list[Handle] = []
    for machines in dict.fromkeys(task.runtime.machines for task in left):
        same = [task for task in left if task.runtime.machines == machines]
        # Half a minute for what comes after a run has saved: its launcher's end, and the job's new submission.
        notice = max(resources.notice, *(ceil(task.runtime.preemption_seconds) + 30 for task in same))
        handles += _as_jobs(same, resources.model_copy(update={"machines": machines, "notice": notice}))
    say(f"{len(left)} of {of} handed over ({resources.launcher}), {len(handles)} jobs; see  adagrpo status")
    codes = [handle.wait() for handle in handles]
    return 1 if any(codes) else 0


def _as_jobs(tasks: Sequence[Task], resources: Resources) -> Sequence[Handle]:
    packs = [tasks[start : start + resources.pack] for start in range(0, len(tasks), resources.pack)]
    each = resources.gpus // resources.pack
    handles = launcher_of(resources)([side_by_side([task.argv for task in pack], each) for pack in packs], resources)
    for pack, handle in zip(packs, handles, strict=True):
        for task in pack:
            note = {"launcher": resources.launcher, "job": handle.name}
            write_atomically(task.folder / JOB, json.dumps(note) + "\n")
            task.begin()  # only now: if the launcher refuses, a failed run keeps its reason
    return handles


def queued(folders: Iterable[Path]) -> dict[Path, str]:
    """Slurm job and state of each run that squeue still lists, by folder; needs no accounting database.

    Raises ConfigError if squeue fails.
    """
    jobs = {}
    for folder in folders:
        try:
            note = json.loads((folder / JOB).read_bytes())
            if note["launcher"] == "slurm":
                jobs[folder] = str(note["job"])
        except (OSError, ValueError, LookupError, TypeError):
            continue
    if not jobs or shutil.which("squeue") is None:
        return {}
    command = ["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format", "%i|%T|%r"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        reason = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ConfigError(f"squeue fails, so what is in the queue is not known: {reason}; try again when it answers")
    states = {line.partition("|")[0]: line.partition("|")[2] for line in answer.stdout.splitlines()}
    return {folder: f"{job} {states[job].replace('|', ', ')}" for folder, job in jobs.items() if job in states}
