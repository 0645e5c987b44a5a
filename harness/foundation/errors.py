"""Errors that one line explains. This module imports nothing heavy: the command line needs it before all else."""

from collections.abc import Mapping


class HarnessError(Exception):
    """What was wrong, where, and what to do, in one line; the command prints it and exits with ``exit_code``."""

    exit_code = 1


class ConfigError(HarnessError, ValueError):
    """Input or a configuration that cannot run."""

    exit_code = 2


class CollectiveError(HarnessError, RuntimeError):
    """Another process of the run did not come to where all meet: the echo of what happened to it."""


class TrainingError(HarnessError, RuntimeError):
    """Training cannot go on: what happened, at which iteration, and the tensors that show it, by name."""

    def __init__(self, message: str, tensors: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.tensors = tensors or {}


class FileError(HarnessError):
    """A file of the project's own that cannot be written, or is not what was written."""


class StopRun(Exception):
    """Raised by a session's ``on_validation``: the run saves its checkpoint, ends unfinished, and can be resumed."""


class Preempted(HarnessError, StopRun):
    """A signal asked a run to end: it has saved its checkpoint, and the same command continues it."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again
