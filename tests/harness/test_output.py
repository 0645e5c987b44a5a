"""What is printed is a side channel, and what the machine refuses is one line, whatever the command."""

import errno
import os
import subprocess
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from harness import cli
from harness.commands import COMMANDS
from harness.foundation.errors import CollectiveError, ConfigError, FileError
from harness.foundation.output import never_failing

PRINTS = """
import sys
from harness.foundation.output import never_failing
with never_failing():
    for number in range(100_000):
        print(number, flush=number % 100 == 0)
    print("warned", file=sys.stderr)
    open(sys.argv[1], "w").write("done")
"""


@pytest.mark.parametrize("how", ["| head -1", ">&-", "2>&1 >&- | head -0", "> /dev/full", "2> /dev/full > /dev/full"])
def test_output_that_nobody_takes_ends_no_work(tmp_path: Path, how: str) -> None:
    done = tmp_path / "done"
    line = f"{sys.executable} -c '{PRINTS}' {done} {how}; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (result.returncode, done.read_text(encoding="utf-8")) == (0, "done")
    assert "Error" not in result.stderr


def test_a_character_that_stdout_cannot_encode_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = TextIOWrapper(BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    with never_failing():
        print("ü.txt")
        print("the rest")
    assert stream.buffer.getvalue() == b"\\xfc.txt\nthe rest\n"


REFUSALS = [
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1),
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/file"), 1),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "/a/file"), 2),
    (OSError(errno.EROFS, "Read-only file system", "/a/file"), 2),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 2),
    (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"), 2),
    (RecursionError(), 2),
    (MemoryError(), 1),
    (ConfigError("key: two\nlines"), 2),
    (FileError("cannot be written"), 1),
    (CollectiveError("echo"), 1),
    (KeyboardInterrupt(), 130),
]


def fail(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Call a command that raises."""

    def status() -> int:
        raise error

    monkeypatch.setitem(COMMANDS, "status", status)
    cli.main(["status"])


@pytest.mark.parametrize(("error", "code"), REFUSALS, ids=repr)
def test_what_the_machine_refuses_is_one_line(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        fail(monkeypatch, error)
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (code, 1)
    assert said.startswith("adagrpo: error: ")
    assert str(getattr(error, "filename", None) or "") in said


def test_a_fault_of_the_program_shows_where(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError):
        fail(monkeypatch, KeyError("key"))
