"""Leases: what stands in for a lock on a file system that has none, such as NFS without locks.

Whoever made the file ``.NAME.lease-N`` with the highest N has the lease: to make a file that must not be there yet is
one step, on NFS too. It is free again when its holder says so, when that process is dead or its number is another's by
now (as seen on the holder's machine), or when the file has not been touched for ``SILENT_SECONDS``. Those are seconds
of whoever looks, twice at least; no machine's clock is compared with another's.
"""

import io
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

BEAT_SECONDS, SILENT_SECONDS = 10.0, 90.0
"""How often a holder touches its lease, and how long it may seem silent: NFS tells of changes up to a minute late."""
LOST = 75
"""Exit code of a process whose lease was taken over while it was stopped: the other one is at its work now."""
_POLL_SECONDS = 0.2
_FREE = "free"
_seen: dict[Path, tuple[int, float, bool]] = {}
"""Of leases held elsewhere: when each was touched, by the file's clock, since when that is known, by our own, and
whether it was seen to be touched."""


class Lease(io.BytesIO):
    """A lease that is held until it is closed, or its process ends; used as the stream of a lock is."""

    def __init__(self, path: Path, number: int) -> None:
        self._file, self._path, self._number = _file(path, number), path, number
        self._process, self._ended = os.getpid(), threading.Event()
        self._ended.set()  # until it is ours: what cannot be made gives nothing back
        handle = os.open(self._file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(handle, f"{_machine()} {self._process} {_started(self._process)}\n".encode())
        os.close(handle)
        # Those who looked before us saw older files, of which another may have made and removed some since.
        if max(_numbers(path)) > number:
            self._file.unlink(missing_ok=True)
            raise FileExistsError
        for old in _numbers(path):
            if old < number:
                _file(path, old).unlink(missing_ok=True)
        self._ended.clear()
        threading.Thread(target=self._beat, daemon=True).start()

    def close(self) -> None:
        """Give it back."""
        if not self.closed and self._process == os.getpid() and not self._ended.is_set():
            self._ended.set()
            # A run's directory may be gone by now, and on a full disk the process's end says the same.
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
    """As ``files.lock``; with ``shared`` nothing is held, only looked whether another holds it.

    Who wants to hold what another machine may have lost watches it for a while. Who only looks takes it for held.
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


def _file(path: Path, number: int) -> Path:
    return path.with_name(f".{path.name}.lease-{number}")


def _numbers(path: Path) -> list[int]:
    start = f".{path.name}.lease-"
    return [int(name.removeprefix(start)) for name in os.listdir(path.parent) if name.startswith(start)]


def _is_free(path: Path, number: int) -> bool | None:
    """None if that is not known yet, since it is held elsewhere and has not been watched for long enough."""
    file = _file(path, number)
    try:
        with file.open("rb") as stream:
            words, touched = stream.read().decode().split(), os.fstat(stream.fileno()).st_mtime_ns
    except FileNotFoundError:  # whoever has removed it has the next one
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
        # Made free for all, at the next look: others, such as a worker that has just begun, have not watched as long.
        with suppress(OSError):
            Lease(path, number + 1).close()
        return None
    return False if lives or known != touched else None


@cache
def _machine() -> str:
    """Names where processes' numbers mean the same: host, its boot, container. Without /proc, a process alone."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{socket.gethostname()}/{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()}/{os.urandom(8).hex()}"


def _started(process: int) -> str:
    """When a process was started, in ticks since the boot, which no clock changes; gone if there is none."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return "gone"
    return "gone" if fields[0] == "Z" else fields[19]
