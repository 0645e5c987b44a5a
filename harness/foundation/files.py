"""Atomic writing of files, reading with one-line errors, and file locks. Nothing heavy is imported."""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, BinaryIO

from harness.foundation.errors import ConfigError, FileError
from harness.foundation.leases import lease

PARTIAL = ".partial"
"""Suffix of a file that is being written; a killed process leaves one behind."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
LACKING = (*_FULL, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of a machine that lacks something, such as disk space; with others the input names a wrong file."""
SPACE_POLL_SECONDS = 10.0
_WITHOUT_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EIO}
"""Error numbers of ``flock`` on network and FUSE file systems that have no locks."""
_LOCAL = {"local_lock=all", "local_lock=flock", "localflock"}
"""Mount options of NFS and Lustre with which ``flock`` succeeds, but other machines do not see the lock."""
_MOUNTS = Path("/proc/self/mounts")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Context in which an error of the system is raised as a FileError with one line: the path, and what to do."""
    try:
        yield
    except FileError:
        raise
    except Exception as error:
        # The OSError may be wrapped in another exception: torch.save reports a full disk as a RuntimeError.
        system = system_error_in(error)
        if system is None:
            raise
        failure = FileError(f"{path}: cannot be written: {reason_of(system)}; {_remedy(system)}")
        failure.exit_code = 1 if system.errno in LACKING else 2
        raise failure from None


def make_folder(folder: Path) -> None:
    """Make a folder, if it is missing, and try to write to it: before the work whose result it is to receive.

    Raises FileError if it cannot be written to.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8) atomically: it appears whole or not at all, whoever else writes it meanwhile.

    An existing file is replaced, and a missing folder created. Raises FileError if the file cannot be written.
    """
    with replacing(path) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a stream whose bytes replace a file atomically when the block ends; on an exception the file is unchanged.

    A missing folder is created. Raises FileError if the file cannot be written; no part of it stays.
    """
    partial = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}{PARTIAL}")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as stream:
                yield stream
            partial.replace(path)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def append(path: Path, text: str) -> None:
    """Append text to a file, created if missing: all of it or nothing. Raises FileError if it cannot be written."""
    with writing(path), path.open("ab", buffering=0) as stream:
        size, content = stream.tell(), text.encode()
        try:
            if stream.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with suppress(OSError):
                stream.truncate(size)
            raise


def read_text(path: Path) -> str:
    """Text of a UTF-8 file. Raises ConfigError if it is missing, cannot be read, or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {reason_of(error)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not text in UTF-8 (byte {error.start}); save it as UTF-8") from None


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(folder: Path) -> None:
    """Flush a folder and all that is in it to the disk."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def reason_of(error: OSError) -> str:
    """Message of the operating system, without the file and the error number."""
    return error.strerror or str(error) or type(error).__name__


def system_error_in(error: BaseException | None) -> OSError | None:
    """First OSError among an exception and the exceptions that led to it; None if there is none."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def is_full(error: BaseException) -> bool:
    """Whether an exception was caused by a full disk or an exhausted quota."""
    system = system_error_in(error)
    # safetensors reports it only in the text of an exception from Rust.
    return f"os error {errno.ENOSPC}" in str(error) if system is None else system.errno in _FULL


def has_space(folder: Path, size: int) -> bool:
    """Whether ``size`` bytes can be written to a folder; tried, since a quota may leave less than the disk has."""
    with writing(folder):
        try:
            with tempfile.TemporaryFile(dir=folder) as trial:
                os.posix_fallocate(trial.fileno(), 0, size)
        except AttributeError:  # macOS has no such call
            return shutil.disk_usage(folder).free > size
        except OSError as error:
            if error.errno not in _FULL:
                raise
            return False
    return True


def wait_for_space(folder: Path, size: int) -> None:
    """Wait until ``size`` bytes can be written to a folder, which is touched meanwhile as a sign of life."""
    while not has_space(folder, size):
        folder.touch()
        time.sleep(SPACE_POLL_SECONDS)


def _remedy(error: OSError) -> str:
    if error.errno in _FULL:
        return "free some space and give the same command again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "make its folder writable or choose another one"
    return "see that its folder is one that can be written to"


# --- locks ------------------------------------------------------------------------------------------------------------


def lock(path: Path, wait: bool = False, shared: bool = False) -> IO[bytes] | None:
    """Take a file's lock, held as long as the returned stream is open; None if another process holds it.

    On a file system without locks a lease is used instead, with one warning, see ``leases``.

    Args:
        path: created if missing, unless the lock is shared.
        wait: wait until the lock is free.
        shared: share the lock with others that hold it as shared.
    """
    flags = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    stream = path.open("rb" if shared else "ab")
    try:
        if is_local := _locks_are_local(path.parent):
            raise OSError(errno.ENOLCK, is_local)
        fcntl.flock(stream, flags)
    except OSError as error:
        if error.errno in _WITHOUT_LOCKS:
            stream.close()
            _say_once(
                f"{path.parent}: its file system has no locks ({reason_of(error)}); leases stand in for them, and to "
                "take over from another machine takes a minute or two"
            )
            return lease(path, wait, shared)
        stream.close()
        if not isinstance(error, BlockingIOError):
            raise
        return None
    return stream


@cache
def _locks_are_local(folder: Path) -> str:
    """Mount option that makes a folder's locks invisible to other machines; empty if there is none."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    mounts = {Path(line.split()[1].replace("\\040", " ")): line.split()[3].split(",") for line in lines}
    real = folder.resolve()
    nearest = next((mounts[above] for above in (real, *real.parents) if above in mounts), [])
    return next(filter(_LOCAL.__contains__, nearest), "")


@cache
def _say_once(line: str) -> None:
    with suppress(OSError):
        print(f"adagrpo: warning: {line}", file=sys.stderr, flush=True)
