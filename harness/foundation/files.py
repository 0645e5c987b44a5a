"""Reading and writing files so that they are whole or not there, and locks. Imports nothing heavy."""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, BinaryIO

from harness.foundation.errors import ConfigError, FileError
from harness.foundation.leases import lease

PARTIAL = ".partial"
"""How the name ends of a file that is being written; a killed process leaves one."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
SPACE_POLL_SECONDS = 10.0
_WITHOUT_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EIO}
"""What ``flock`` answers on network and FUSE file systems that have no locks."""
_LOCAL = {"local_lock=all", "local_lock=flock", "localflock"}
"""How NFS and Lustre are mounted if they answer as if they had some, which other machines do not see."""
_MOUNTS = Path("/proc/self/mounts")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8) that appears whole or not at all, whoever else writes it at the same moment.

    Args:
        path: replaced if it exists; its folder is made if missing.
        content: all of it.

    Raises:
        FileError: it cannot be written; nothing of it stays.
    """
    with replacing(path) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream whose bytes replace a file in one step when the block ends; an exception leaves the file as it was.

    Args:
        path: the file; its folder is made if missing.

    Raises:
        FileError: it cannot be written; nothing of it stays.
    """
    partial = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            yield stream
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        # Such an error may wear another one's clothes: torch.save reports a full disk as a RuntimeError.
        system = system_error_in(error)
        if system is None or isinstance(error, FileError):
            raise
        raise FileError(f"{path}: cannot be written: {reason_of(system)}; {_remedy(system)}") from None


def append(path: Path, text: str) -> None:
    """Add text to the end of a file, made if missing: all of it or nothing. Raises FileError if that cannot be."""
    size = None
    try:
        with path.open("ab", buffering=0) as stream:
            size = stream.tell()
            content = text.encode()
            if stream.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        if size is not None:
            with suppress(OSError):
                os.truncate(path, size)
        raise FileError(f"{path}: cannot be written: {reason_of(error)}; {_remedy(error)}") from None


def read_text(path: Path) -> str:
    """The text of a file in UTF-8. Raises ConfigError if there is none that can be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {reason_of(error)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not text in UTF-8 (byte {error.start}); save it as UTF-8") from None


def require_whole_zip(path: Path) -> None:
    """Raise ConfigError unless all that is in a zip archive, such as torch.save writes, has its CRC-32."""
    try:
        with zipfile.ZipFile(path) as archive:
            is_whole = archive.testzip() is None
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError, RuntimeError):
        is_whole = False
    if not is_whole:
        raise ConfigError(f"{path}: is damaged or was cut off; put back a copy, or delete it to begin again without it")


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Be sure that a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def reason_of(error: OSError) -> str:
    """What the operating system says, without the file and the number."""
    return error.strerror or str(error) or type(error).__name__


def system_error_in(error: BaseException | None) -> OSError | None:
    """The OSError that an exception is, or that it was raised from or in the handling of; None if there is none."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def is_full(error: BaseException) -> bool:
    """Whether an exception comes from a disk, or a quota, that has no space left."""
    system = system_error_in(error)
    # safetensors says it in Rust's words.
    return f"os error {errno.ENOSPC}" in str(error) if system is None else system.errno in _FULL


def has_space(folder: Path, size: int) -> bool:
    """Whether so many bytes can be written there; it is tried, since a quota may leave less than the disk has."""
    try:
        with tempfile.TemporaryFile(dir=folder) as trial:
            os.posix_fallocate(trial.fileno(), 0, size)
    except AttributeError:  # macOS has no such call
        return shutil.disk_usage(folder).free > size
    except OSError as error:
        if error.errno in _FULL:
            return False
        raise FileError(f"{folder}: cannot be written: {reason_of(error)}; {_remedy(error)}") from None
    return True


def wait_for_space(folder: Path, size: int) -> None:
    """Wait until so many bytes can be written there; the folder is touched meanwhile, as a sign of life."""
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
    """Hold a file's lock as long as the returned stream is open; None if another process holds it.

    Where the file system has no locks a lease is held instead, which is said once, see ``leases``.

    Args:
        path: made if missing, unless the lock is a shared one.
        wait: until the lock is free.
        shared: with others that hold it so.
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
    """Option of a folder's mount that keeps locks from other machines; empty if there is none."""
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
