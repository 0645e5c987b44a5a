"""Errors that are reported in one line. Nothing heavy is imported: the command line needs this module first."""

from collections.abc import Mapping


class HarnessError(Exception):
    """Base class: one line that says what is wrong, where, and what to do, and the command's exit code."""

    exit_code = 1


class ConfigError(HarnessError, ValueError):
    """Invalid input, or a configuration that cannot run."""

    exit_code = 2


class CollectiveError(HarnessError, RuntimeError):
    """A collective operation that another process of the run did not reach: a consequence of that process's failure."""


class TrainingError(HarnessError, RuntimeError):
    """Training cannot go on. The message says why and at which iteration; ``tensors`` has the evidence, by name."""

    def __init__(self, message: str, tensors: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.tensors = tensors or {}


class SignError(TrainingError):
    """A sign named in ``stop.on`` has ended the run. Nothing failed: there is nothing to look at or to make again."""


class FileError(HarnessError):
    """A file of the project that cannot be written, or whose content is not what was written."""

    size = 0
    """Bytes of a checkpoint that had been written when it failed; 0 for other files."""


class StopRun(Exception):
    """Raised by a session's ``on_validation`` to end the run early: it saves its checkpoint and can be resumed."""


class Preempted(HarnessError, StopRun):
    """A run that was asked to end by a signal: it has saved its checkpoint, and the same command resumes it."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again
