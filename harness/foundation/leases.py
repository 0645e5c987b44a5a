"""Leases: replacement for locks on file systems that have none, such as NFS without locks.

The process that created the file ``.NAME.lease-N`` with the highest N holds the lease: exclusive creation is atomic, on
NFS too. The lease is free again when its holder releases it, when the holder's process is dead or its PID belongs to
another process (checked on the holder's machine), or when another machine has looked at least twice and seen the file
untouched for ``SILENT_SECONDS`` by its own clock. Clocks of different machines are never compared.
"""

import io
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

BEAT_SECONDS, SILENT_SECONDS = 10.0, 90.0
"""Seconds between touches of a held lease, and silence after which it is free: NFS shows touches up to 60 s late."""
LOST = 75
"""Exit code of a process whose lease was taken over while it was stopped: another process does its work now."""
_POLL_SECONDS = 0.2
_FREE = "free"
_seen: dict[Path, tuple[int, float, bool]] = {}
"""Leases held on other machines: last touch (mtime in ns), our monotonic time when that touch was first seen, and
whether a touch was observed."""


class Lease(io.BytesIO):
    """Lease that is held until it is closed or its process ends; used like the stream of a file lock."""

    def __init__(self, path: Path, number: int) -> None:
        self._file, self._path, self._number = _file(path, number), path, number
        self._process, self._ended = os.getpid(), threading.Event()
        self._ended.set()  # until the file is created: after a failure, close() must not release anything
        handle = os.open(self._file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(handle, f"{_machine()} {self._process} {_started(self._process)}\n".encode())
        os.close(handle)
        # The number comes from an earlier listing: others may have created higher ones and removed this one since.
        if max(_numbers(path)) > number:
            self._file.unlink(missing_ok=True)
            raise FileExistsError
        for old in _numbers(path):
            if old < number:
                _file(path, old).unlink(missing_ok=True)
        self._ended.clear()
        self._beats = threading.Thread(target=self._beat, daemon=True)
        self._beats.start()

    def close(self) -> None:
        """Release the lease."""
        if not self.closed and self._process == os.getpid() and not self._ended.is_set():
            self._ended.set()
            # The run's directory may be gone by now; on a full disk, the end of the process releases the lease, too.
            with suppress(OSError), self._file.open("r+b") as stream:
                stream.write(_FREE.encode())
                stream.truncate()
        super().close()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(OSError):
                if max(_numbers(self._path), default=0) > self._number:
                    print(f"{self._path}: this process was silent for too long; another has its work", file=sys.stderr)
                    os._exit(LOST)
                os.utime(self._file)


def lease(path: Path, wait: bool = False, shared: bool = False) -> IO[bytes] | None:
    """Same as ``files.lock``; with ``shared`` nothing is held: it only checks whether another process holds it.

    If the holder is on another machine and may be dead, the lease is watched for a while; ``shared`` takes it for held,
    unless ``watch`` has been called.
    """
    while True:
        number = max(_numbers(path), default=0)
        is_free = not number or _is_free(path, number)
        if is_free:
            if shared:
                return io.BytesIO()
            with suppress(FileExistsError):
                return Lease(path, number + 1)
        elif shared or (is_free is False and not wait):
            return None
        time.sleep(_POLL_SECONDS)


def watch(paths: Iterable[Path], say: Callable[[str], object]) -> None:
    """Watch leases whose holders on other machines may be dead, all at once, until each is known to be held or free."""
    unsure = [path for path in paths if _is_unsure(path)]
    if unsure:
        say(f"{len(unsure)} leases are of other machines, which may be dead: watched for {SILENT_SECONDS:.0f} s")
    while unsure:
        time.sleep(5 * _POLL_SECONDS)
        unsure = [path for path in unsure if _is_unsure(path)]


def _is_unsure(path: Path) -> bool:
    number = max(_numbers(path), default=0)
    return bool(number) and _is_free(path, number) is None


def _file(path: Path, number: int) -> Path:
    return path.with_name(f".{path.name}.lease-{number}")


def _numbers(path: Path) -> list[int]:
    start = f".{path.name}.lease-"
    return [int(name.removeprefix(start)) for name in os.listdir(path.parent) if name.startswith(start)]


def _is_free(path: Path, number: int) -> bool | None:
    """Whether a lease is free; None if still unknown: held elsewhere and not watched for long enough."""
    file = _file(path, number)
    try:
        with file.open("rb") as stream:
            words, touched = stream.read().decode().split(), os.fstat(stream.fileno()).st_mtime_ns
    except FileNotFoundError:  # removed by the process that holds the next number
        return False
    if words == [_FREE]:
        return True
    if len(words) == 3 and words[0] == _machine():
        return _started(int(words[1])) != words[2]
    now = time.monotonic()
    known, since, lives = _seen.setdefault(file, (touched, now, False))
    if known != touched:
        _seen[file] = touched, now, True
    elif now - since > SILENT_SECONDS:
        # Release it for all at their next look: others, such as a worker just started, have not watched as long.
        with suppress(OSError):
            Lease(path, number + 1).close()
        return None
    return False if lives or known != touched else None


@cache
def _machine() -> str:
    """Identifier of the space in which PIDs are unique: host, boot, PID namespace. Without /proc, of this process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{socket.gethostname()}/{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()}/{os.urandom(8).hex()}"


def _started(process: int) -> str:
    """Start time of a process in ticks since boot, which no clock change affects; "gone" if there is none."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return "gone"
    return "gone" if fields[0] == "Z" else fields[19]
