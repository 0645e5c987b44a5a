"""Progress of jobs while they are executed."""

import time
from collections.abc import Sequence

from harness.experiments.jobs.job import Job


class Progress:
    """Progress of a launch; as a string, one line."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.unsettled = list(jobs)
        """Jobs that have neither finished nor failed."""
        self.running = 0
        self.share = 0.0
        """Fraction of the work that is settled or done, in [0, 1]."""
        self._count = len(jobs)
        self._settled_work = 0.0
        self.settled_before = self.refresh()
        """Jobs that had finished or failed already."""
        self._began, self._worked_at_start = time.monotonic(), self._worked

    def refresh(self) -> list[Job]:
        """Read the states again. Returns the jobs that were settled since the last call."""
        states = {job: job.state() for job in self.unsettled}
        settled = [job for job, state in states.items() if state.name != "waiting"]
        self.unsettled = [job for job in self.unsettled if job not in settled]
        self._settled_work += sum(states[job].share for job in settled)
        self._left = sum(1 - states[job].share for job in self.unsettled)
        self._worked = self._settled_work + len(self.unsettled) - self._left
        self.share = 1 - self._left / self._count
        self.running = sum(job.is_locked() for job in self.unsettled)
        return settled

    @property
    def waiting(self) -> int:
        """Number of unsettled jobs that no process is working on."""
        return len(self.unsettled) - self.running

    def __str__(self) -> str:
        counts = f"{self.share:.0%} done, {self.running} running, {self.waiting} waiting"
        # The work that a failed job leaves undone says nothing about the pace.
        gained = self._worked - self._worked_at_start
        if gained <= 0:
            seconds = time.monotonic() - self._began
            return f"{counts}, {seconds:.0f} s so far"
        minutes = (time.monotonic() - self._began) * self._left / gained / 60
        return f"{counts}, about {f'{minutes / 60:.1f} hours' if minutes >= 90 else f'{minutes:.1f} min'} left"
