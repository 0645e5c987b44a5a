"""The runner of all experiments: every job once, whatever happens to the processes at work."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness.config import ROOT, compose
from harness.experiments.jobs import process, progress, runner
from harness.experiments.jobs.interruption import interruption_heard, sigterm_interrupts
from harness.experiments.jobs.job import Job, claim_next, give_up, reset
from harness.experiments.jobs.progress import Progress
from harness.experiments.jobs.runner import Outcome, launches_at_work, run_jobs

MakeJobs = Callable[..., list[Job]]


@pytest.fixture
def make(tmp_path: Path) -> MakeJobs:
    """Jobs a, b and c in tmp_path/jobs: each notes its process and threads in a file, and does what is said of it."""
    config = compose("smoke", overrides=["runtime.device=cpu"])

    def made(**codes: str) -> list[Job]:
        jobs = []
        for name in "abc":
            done = tmp_path / "jobs" / name
            note = f"open({f'{done}.begun'!r}, 'a').write(f'{{os.getpid()}} {{os.environ[\"OMP_NUM_THREADS\"]}}\\n')"
            code = f"import os, signal, time; {note}\n{codes.get(name, '')}\nopen({str(done)!r}, 'w')"
            log = tmp_path / "jobs" / "log.txt"
            jobs.append(Job(id=name, call=partial(exec, code, {}), done=done, log=log, config=config))
        return jobs

    return made


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Runs jobs; what is said is in ``said``."""
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(runner, "_REST_SECONDS", 0.05)
    return lambda jobs, slots=1, say=lambda line: None, **options: run_jobs(jobs, slots, tmp_path, say, **options)


def begun(job: Job) -> list[list[str]]:
    """Process and threads of each time that a job was begun."""
    path = Path(f"{job.done}.begun")
    return [line.split() for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def test_a_reset_and_giving_up_leave_jobs_at_work_alone(make: MakeJobs) -> None:
    jobs = make()
    claim = claim_next(jobs[:1])
    assert claim is not None
    give_up(jobs, "no worker could start")
    assert [job.state().name for job in jobs] == ["waiting", "failed", "failed"]
    reset(jobs)
    assert [job.state().name for job in jobs] == ["waiting"] * 3


def test_what_is_finished_is_skipped_and_what_fails_is_named_and_stops_nothing(
    make: MakeJobs, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    jobs, said, seen = make(b="raise ZeroDivisionError('a mean of\\nnothing')"), list[str](), list[str]()
    jobs[0].done.parent.mkdir()
    jobs[0].done.touch()
    jobs[2].fail("of an earlier launch")
    outcome = run(jobs, 1, said.append, on_finished=lambda job: seen.append(job.id), standings=lambda: ["best: a"])
    assert [job.id for job in outcome.finished] == ["a", "c"]
    assert (outcome.failed, seen) == ({"b": "ZeroDivisionError: a mean of nothing"}, ["a", "c"])
    [second], [third] = begun(jobs[1]), begun(jobs[2])
    assert second == third  # one process did both
    assert second[1] == "1"
    assert said[0] == "1 of 3 are finished already"
    assert f"FAILED b: ZeroDivisionError: a mean of nothing (log: {jobs[1].log})" in said
    assert said[-1] == "best: a"
    assert "Traceback" in jobs[1].log.read_text()
    assert [len(begun(job)) for job in jobs] == [0, 1, 1]
    assert not list(tmp_path.glob(".workers*"))


def test_launches_that_compete_do_every_job_once(make: MakeJobs, run: Callable[..., Outcome]) -> None:
    jobs = make(a="time.sleep(0.3)", b="time.sleep(0.3)", c="time.sleep(0.3)")
    pids = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            os._exit(len(run(jobs, 2).finished))
        pids.append(pid)
    outcomes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert outcomes == [3, 3]
    assert [len(begun(job)) for job in jobs] == [1, 1, 1]


def test_a_job_whose_worker_is_killed_is_done_again_by_a_new_one(
    make: MakeJobs, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    mark = str(tmp_path / "killed")
    kill = f"if not os.path.exists({mark!r}): open({mark!r}, 'w'); os.kill(os.getpid(), 9)"
    jobs, said = make(b=kill), list[str]()
    assert len(run(jobs, 1, said.append).finished) == 3
    assert [len(begun(job)) for job in jobs] == [1, 2, 1]
    assert any(line.startswith("the worker at b died: SIGKILL") for line in said)
    assert len(list(tmp_path.glob(".workers*/worker-0.log"))) == 1  # kept, for whoever asks why it died
    run(jobs)
    assert not list(tmp_path.glob(".workers*"))


@pytest.mark.parametrize(
    ("code", "cause"),
    [("os.kill(os.getpid(), 9)", "killed for want of memory (take fewer --slots)"), ("", "no reason given")],
)
def test_a_job_that_ends_every_worker_or_is_never_done_fails_after_longer_and_longer_rests_and_loses_no_other(
    make: MakeJobs, run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, cause: str
) -> None:
    counts, times = tmp_path / "vmstat", tmp_path / "times"
    counts.write_text("nr_free_pages 1\noom_kill 7\n")
    monkeypatch.setattr(process, "_KERNEL_COUNTS", counts)
    monkeypatch.setattr(runner, "_REST_SECONDS", 0.3)
    note = f"open({str(times)!r}, 'a').write(f'{{time.time()}}\\n'); open({str(counts)!r}, 'a').write('oom_kill 1\\n')"
    jobs = make(a=f"{note}; {code}")
    jobs[0].call = partial(exec, jobs[0].call.args[0].rpartition("\n")[0], {})  # type: ignore[attr-defined]
    outcome = run(jobs)
    assert outcome.failed["a"].startswith(f"its worker died in each of 3 attempts: {cause} (log: ")
    assert {job.id for job in outcome.finished} == {"b", "c"}
    assert [len(begun(job)) for job in jobs] == [3, 1, 1]
    first, second, third = map(float, times.read_text().split())
    assert (second - first > 0.3, third - second > 0.6) == (True, True)


def test_workers_that_cannot_start_end_the_launch_with_their_reason(
    make: MakeJobs, run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [sys.executable, "-c", "raise ImportError('no module named flux')"]
    monkeypatch.setattr(process, "command", lambda placement, arguments: broken)
    outcome = run(make(), 2)
    assert set(outcome.failed) == {"a", "b", "c"}
    assert outcome.failed["a"].startswith("no worker could start: ImportError: no module named flux (log: ")


def test_a_job_that_writes_nothing_is_killed_and_tried_again(
    make: MakeJobs, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    mark, said = str(tmp_path / "hangs"), list[str]()
    [job] = make(a=f"if not os.path.exists({mark!r}): open({mark!r}, 'w'); time.sleep(600)")[:1]
    runtime = job.config.runtime.model_copy(update={"silent_seconds": 2.0})
    job.config = job.config.model_copy(update={"runtime": runtime})
    assert run([job], 1, said.append).failed == {}
    assert len(begun(job)) == 2
    assert any(line.startswith("the worker at a died: nothing written for runtime.silent_seconds=2") for line in said)


def test_on_a_full_disk_no_worker_is_started_until_there_is_space(
    make: MakeJobs, run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, said = [False, False, True], list[str]()
    monkeypatch.setattr(runner, "has_space", lambda folder, size: answers.pop(0) if len(answers) > 1 else True)
    assert len(run(make(), 1, said.append).finished) == 3
    assert any(line.endswith("the disk is full; no worker is started until there is space") for line in said)


# --- interruptions


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Tests that were started in the background inherit an interrupt that is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_an_interrupted_launch_ends_its_workers_and_is_continued_by_the_same_call(
    make: MakeJobs, run: Callable[..., Outcome], tmp_path: Path, number: str
) -> None:
    jobs, said = make(b=f"os.kill(os.getppid(), signal.{number}); signal.pause()"), list[str]()
    with pytest.raises(KeyboardInterrupt):
        run(jobs, 1, said.append)
    assert said[-1] == "interrupted: the same command continues where it stopped"
    assert [job.state().name for job in jobs] == ["finished", "waiting", "waiting"]
    assert not jobs[1].is_locked()
    assert not list(tmp_path.glob(".workers*"))
    assert len(run(make()).finished) == 3
    assert [len(begun(job)) for job in jobs] == [1, 2, 1]


def test_workers_end_with_a_launch_that_is_killed_and_the_next_one_removes_its_folder(
    make: MakeJobs, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    jobs = make(a="signal.pause()")
    pid = os.fork()
    if pid == 0:
        run(jobs)
        os._exit(0)
    at_work = "0% done, 1 running, 2 waiting, "
    wait_until(lambda: [line[: len(at_work)] for _, line in launches_at_work(tmp_path.parent)] == [at_work])
    assert [folder for folder, _ in launches_at_work(tmp_path.parent)] == [tmp_path]
    with pytest.MonkeyPatch.context() as patch:  # a launch that ends while it is looked at
        patch.setattr(runner, "lock", lambda path, shared: path.with_name("gone").open("rb"))
        assert not list(launches_at_work(tmp_path.parent))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    wait_until(lambda: not jobs[0].is_locked())
    assert not list(launches_at_work(tmp_path))
    assert len(list(tmp_path.glob(".workers*"))) == 1
    assert len(run(make()).finished) == 3
    assert not list(tmp_path.glob(".workers*"))


def test_a_worker_that_does_not_hear_that_its_launch_was_killed_is_ended_by_force(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time; from harness.experiments.jobs import worker; worker.PATIENCE_SECONDS = 0.3\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); worker.end_with_input(); print('deaf', flush=True)\n"
        "time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == b"deaf\n"
    process.communicate()  # as when the other end dies
    assert process.returncode == -signal.SIGKILL


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


# --- what is seen of it


def test_progress_counts_work_and_estimates_from_the_pace_since_its_start(
    make: MakeJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, clock = make(), [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    jobs[0].done.parent.mkdir()
    jobs[0].done.touch()
    shown: Any = Progress(jobs)
    assert str(shown) == "33% done, 0 running, 2 waiting, 0 s so far"
    clock[0] += 120
    jobs[2].done.touch()
    with jobs[1].try_lock() or pytest.fail("not free"):
        assert shown.refresh() == [jobs[2]]
    assert str(shown) == "67% done, 1 running, 0 waiting, about 2.0 min left"
    clock[0] += 5_880
    assert str(shown).endswith("about 1.7 hours left")


def test_a_log_holds_all_that_is_printed_meanwhile_by_children_too(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from harness.experiments.jobs.worker import output_to\n"
        "print('before')\n"
        "for name in 'ab':\n"
        "    with output_to(Path(sys.argv[1]) / name):\n"
        "        print(name); print(f'error {name}', file=sys.stderr); os.system(f'echo child {name}')\n"
        "print('after'); sys.exit('torch' in sys.modules)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert (result.stdout, result.stderr) == ("before\nafter\n", "")
    for name in "ab":
        assert sorted((tmp_path / name).read_text().splitlines()) == [name, f"child {name}", f"error {name}"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interruption_that_falls_into_a_destructor_comes_again() -> None:
    class Swallows:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    def work() -> None:
        Swallows()
        time.sleep(60)
        raise AssertionError("the interruption is lost")

    with sigterm_interrupts():
        with pytest.raises(KeyboardInterrupt):
            work()
        interruption_heard()
        assert signal.alarm(0) == 0  # it does not come again
