"""Files are whole or not there, text is UTF-8, and locks are kept where a file system has none."""

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.foundation import files
from harness.foundation.errors import ConfigError, FileError
from harness.foundation.files import lock, read_text, replacing, write_atomically


@pytest.mark.parametrize("content", ["Zürich\n", b"\x00\xff"])
def test_what_is_written_is_there_and_nothing_else(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "new" / "file"
    write_atomically(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(path.parent.iterdir()) == [path]


class FullDisk:
    """Stands in for a stream on a disk that has no space left."""

    def write(self, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


FAILING = {"write": lambda: FullDisk().write(b""), "torch.save": lambda: torch.save({"a": torch.zeros(9)}, FullDisk())}


@pytest.mark.parametrize("how", FAILING)
def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path: Path, how: str) -> None:
    path = tmp_path / "state"
    path.write_text("old", encoding="utf-8")
    said = r"state: cannot be written: No space left on device; free"
    with pytest.raises(FileError, match=said) as raised, replacing(path):
        FAILING[how]()
    assert raised.value.__suppress_context__
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["missing", "folder", "latin"])
def test_text_that_cannot_be_read_is_one_line_that_names_the_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "notes.txt"
    if kind == "folder":
        path.mkdir()
    if kind == "latin":
        path.write_bytes("Zürich".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"notes\.txt: [^\n]*$"):
        read_text(path)


def is_free(path: Path) -> bool:
    """Whether another process can hold the lock."""
    code = (
        "import fcntl, sys, errno; from pathlib import Path; from harness.foundation import files; real = fcntl.flock\n"
        "def flock(stream, flags):\n"
        "    if stream.name == sys.argv[1] and len(sys.argv) > 2: raise OSError(errno.ENOLCK, 'No locks available')\n"
        "    return real(stream, flags)\n"
        "fcntl.flock = flock\n"
        "sys.exit(files.lock(Path(sys.argv[1])) is None)"
    )
    without = ["without"] if getattr(fcntl.flock, "is_missing", False) else []
    return subprocess.run([sys.executable, "-c", code, str(path), *without], check=False).returncode == 0


def without_locks(monkeypatch: pytest.MonkeyPatch, number: int, folder: str = "") -> None:
    """Make ``flock`` fail for files in a folder as on a file system without locks."""
    real = fcntl.flock

    def flock(stream: object, flags: int) -> None:
        if str(getattr(stream, "name", "")).startswith(folder):
            raise OSError(number, "No locks available")
        real(stream, flags)  # type: ignore[arg-type]

    flock.is_missing = True  # type: ignore[attr-defined]
    monkeypatch.setattr(fcntl, "flock", flock)
    files._say_once.cache_clear()


def test_a_lock_belongs_to_one_process_until_it_is_closed(tmp_path: Path) -> None:
    held = lock(tmp_path / "lock")
    assert held is not None
    assert lock(tmp_path / "lock") is None
    assert not is_free(tmp_path / "lock")
    held.close()
    assert is_free(tmp_path / "lock")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_there_are_no_locks_processes_of_one_machine_are_still_kept_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    without_locks(monkeypatch, number, str(tmp_path))
    held = lock(tmp_path / "lock")
    assert held is not None
    assert lock(tmp_path / "lock") is None
    assert not is_free(tmp_path / "lock")
    held.close()
    assert is_free(tmp_path / "lock")
    [line] = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "lock") in line
