"""Peak memory of a process. Imports nothing, since processes are timed that ask for it."""

from pathlib import Path


def peak_mebibytes() -> float:
    """The most memory that this process has held, in MiB.

    Not ``ru_maxrss``, which a child takes over from the process that started it.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
