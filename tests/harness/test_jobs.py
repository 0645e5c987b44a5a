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


# --- one job


def test_jobs_are_claimed_in_order_and_by_one_process_at_a_time(make: MakeJobs) -> None:
    jobs = make()
    claims: list[Any] = [claim_next(jobs) for _ in range(4)]
    assert [claim and claim[0].id for claim in claims] == ["a", "b", "c", None]
    assert all(job.is_locked() for job in jobs)
    claims[0][1].close()  # as the operating system does for a dead process
    again: Any = claim_next(jobs)
    assert again[0].id == "a"


def test_what_is_settled_or_not_ready_is_not_claimed(make: MakeJobs, tmp_path: Path) -> None:
    finished, failed, other = make()
    finished.done.parent.mkdir()
    finished.done.touch()
    failed.fail("ValueError: broken")
    waiting = Job(id="d", call=print, done=tmp_path / "d", log=other.log, config=other.config, needs=[other.done])
    assert [job.state().name for job in (finished, failed, other)] == ["finished", "failed", "waiting"]
    assert failed.state().reason == "ValueError: broken"
    assert claim_next([finished, failed, waiting]) is None
    other.done.touch()
    assert claim_next([finished, failed, waiting]) is not None


def test_a_reset_and_giving_up_leave_jobs_at_work_alone(make: MakeJobs) -> None:
    jobs = make()
    claim = claim_next(jobs[:1])
    assert claim is not None
    give_up(jobs, "no worker could start")
    assert [job.state().name for job in jobs] == ["waiting", "failed", "failed"]
    reset(jobs)
    assert [job.state().name for job in jobs] == ["waiting"] * 3


# --- a launch


def test_what_is_finished_is_skipped_and_all_else_is_done_once_by_workers_that_last(
    make: MakeJobs, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    jobs, said, seen = make(), list[str](), list[str]()
    jobs[1].done.parent.mkdir()
    jobs[1].done.touch()
    outcome = run(jobs, 1, said.append, on_finished=lambda job: seen.append(job.id), standings=lambda: ["best: a"])
    assert [job.id for job in outcome.finished] == ["b", "a", "c"]
    assert (outcome.failed, seen) == ({}, ["a", "c"])
    [first], [last] = begun(jobs[0]), begun(jobs[2])
    assert first == last  # one process did both
    assert first[1] == "1"
    assert begun(jobs[1]) == []
    assert said[0] == "1 of 3 are finished already"
    assert said[-1] == "best: a"
    assert not list(tmp_path.glob(".workers*"))


def test_launches_that_compete_do_every_job_once(make: MakeJobs, tmp_path: Path) -> None:
    jobs = make(a="time.sleep(0.3)", b="time.sleep(0.3)", c="time.sleep(0.3)")
    pids = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            outcome = run_jobs(jobs, 2, tmp_path, lambda line: None)
            os._exit(len(outcome.finished))
        pids.append(pid)
    outcomes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert outcomes == [3, 3]
    assert [len(begun(job)) for job in jobs] == [1, 1, 1]


def test_a_job_waits_for_what_it_needs(make: MakeJobs, run: Callable[..., Outcome]) -> None:
    first, second, third = make(b="time.sleep(0.5)")
    first.needs = [second.done]
    assert len(run([first, second, third], 2).finished) == 3
    assert Path(f"{first.done}.begun").stat().st_mtime >= second.done.stat().st_mtime


def test_a_failed_job_is_named_and_stops_nothing(make: MakeJobs, run: Callable[..., Outcome]) -> None:
    jobs, said = make(b="raise ZeroDivisionError('a mean of\\nnothing')"), list[str]()
    jobs[0].done.parent.mkdir()
    jobs[0].fail("of an earlier launch")
    outcome = run(jobs, 1, said.append)
    assert outcome.failed == {"b": "ZeroDivisionError: a mean of nothing"}
    assert [job.id for job in outcome.finished] == ["a", "c"]
    assert f"FAILED b: ZeroDivisionError: a mean of nothing (log: {jobs[1].log})" in said
    assert "Traceback" in jobs[1].log.read_text()


def test_jobs_that_are_of_no_use_without_a_failed_one_are_not_begun(
    make: MakeJobs, run: Callable[..., Outcome]
) -> None:
    jobs = make(a="raise ValueError('broken')", b="time.sleep(600)")
    outcome = run(jobs, 1, stop_at_failure=True)
    assert list(outcome.failed) == ["a"]
    assert begun(jobs[2]) == []


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


@pytest.mark.parametrize(("code", "cause"), [("os.kill(os.getpid(), 9)", "SIGKILL"), ("", "no reason given")])
def test_a_job_that_kills_every_worker_or_never_says_that_it_is_done_fails_and_loses_no_other(
    make: MakeJobs, run: Callable[..., Outcome], code: str, cause: str
) -> None:
    jobs = make(a=code)
    if not code:
        jobs[0].call = partial(exec, jobs[0].call.args[0].rpartition("\n")[0], {})  # type: ignore[attr-defined]
    outcome = run(jobs, 2)
    assert outcome.failed["a"].startswith(f"its worker died in each of 3 attempts: {cause} (log: ")
    assert {job.id for job in outcome.finished} == {"b", "c"}
    # A worker that has just done another job may claim it once more before the runner sees the third death.
    assert [len(begun(job)) for job in jobs] in ([3, 1, 1], [4, 1, 1])


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


def test_a_slot_rests_longer_after_each_death_and_want_of_memory_is_told(
    make: MakeJobs, run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counts, times = tmp_path / "vmstat", tmp_path / "times"
    counts.write_text("nr_free_pages 1\noom_kill 7\n")
    monkeypatch.setattr(process, "_KERNEL_COUNTS", counts)
    monkeypatch.setattr(runner, "_REST_SECONDS", 0.5)
    note = f"open({str(times)!r}, 'a').write(f'{{time.time()}}\\n'); open({str(counts)!r}, 'a').write('oom_kill 1\\n')"
    outcome = run(make(a=f"{note}; os.kill(os.getpid(), 9)")[:1])
    cause = "killed for want of memory (take fewer --slots)"
    assert outcome.failed["a"].startswith(f"its worker died in each of 3 attempts: {cause} (log: ")
    first, second, third = map(float, times.read_text().split())
    assert (second - first > 0.5, third - second > 1.0) == (True, True)


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
        run_jobs(jobs, 1, tmp_path, lambda line: None)
        os._exit(0)
    wait_until(lambda: bool(begun(jobs[0])))
    [(folder, shown)] = launches_at_work(tmp_path.parent)
    assert folder == tmp_path
    assert str(shown).startswith("0% done, 1 running, 2 waiting, ")
    with pytest.MonkeyPatch.context() as patch:  # what somebody else has put there is not executed
        patch.setattr(runner.os, "getuid", lambda: os.geteuid() + 1)
        assert not list(launches_at_work(tmp_path.parent))
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
    jobs[2:] = [Job(**{**vars(jobs[2]), "size": 2.0})]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    jobs[0].done.parent.mkdir()
    jobs[0].done.touch()
    shown: Any = Progress(jobs)
    assert str(shown) == "25% done, 0 running, 2 waiting, 0 s so far"
    clock[0] += 120
    jobs[2].done.touch()
    with jobs[1].try_lock() or pytest.fail("not free"):
        assert shown.refresh() == [jobs[2]]
    assert str(shown) == "75% done, 1 running, 0 waiting, about 1.0 min left"
    clock[0] += 11_880
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
        time.sleep(1.5)  # heard
