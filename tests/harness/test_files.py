"""Files are whole or not there, text is UTF-8, and locks are kept, in one way or another."""

import errno
from pathlib import Path

import pytest
import torch

from harness.foundation.errors import ConfigError, FileError
from harness.foundation.files import lock, make_folder, read_text, replacing, write_atomically


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
    assert raised.value.exit_code == 1
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_the_place_of_a_folder_is_bad_input(tmp_path: Path) -> None:
    make_folder(tmp_path / "new" / "folder")
    assert not list((tmp_path / "new" / "folder").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="file: cannot be written") as raised:
        make_folder(tmp_path / "file")
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("kind", ["missing", "folder", "latin"])
def test_text_that_cannot_be_read_is_one_line_that_names_the_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "notes.txt"
    if kind == "folder":
        path.mkdir()
    if kind == "latin":
        path.write_bytes("Zürich".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"notes\.txt: [^\n]*$"):
        read_text(path)


def test_a_lock_belongs_to_one_holder_until_it_is_closed(tmp_path: Path) -> None:
    held = lock(tmp_path / "lock")
    assert held is not None
    assert lock(tmp_path / "lock") is None
    held.close()
    assert lock(tmp_path / "lock") is not None
