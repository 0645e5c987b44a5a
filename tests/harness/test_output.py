"""What is printed is a side channel, and what the machine refuses is one line, whatever the command."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import cli
from harness.commands import COMMANDS
from harness.foundation.errors import CollectiveError, ConfigError, FileError

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


def deep() -> None:
    """Exceeds the depth of calls."""
    deep()


REFUSALS = {
    "a full disk": (lambda: _raise(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))), 1),
    "a file that is not there": (lambda: Path("/nowhere/at all").read_bytes(), 2),
    "a name that is too long": (lambda: Path("x" * 5000).read_bytes(), 2),
    "no permission": (lambda: _raise(PermissionError(errno.EACCES, "Permission denied", "/a/file")), 2),
    "a read-only disk": (lambda: _raise(OSError(errno.EROFS, "Read-only file system", "/a/file")), 2),
    "no text": (lambda: b"\xff".decode(), 2),
    "deep nesting": (deep, 2),
    "no memory": (lambda: _raise(MemoryError()), 1),
    "bad input": (lambda: _raise(ConfigError("key: two\nlines")), 2),
    "a file of ours": (lambda: _raise(FileError("cannot be written")), 1),
    "an echo": (lambda: _raise(CollectiveError("echo")), 1),
    "an interruption": (lambda: _raise(KeyboardInterrupt()), 130),
}


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("command", COMMANDS)
def test_what_the_machine_refuses_is_one_line_in_every_command(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for what, (refuse, code) in REFUSALS.items():
        monkeypatch.setitem(COMMANDS, command, refuse)
        with pytest.raises(SystemExit) as ended:
            cli.main([command])
        said = capsys.readouterr().err
        assert (ended.value.code, said.count("\n")) == (code, 1), what
        assert said.startswith("adagrpo: error: "), what


def test_a_fault_of_the_program_shows_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "parse", lambda arguments: lambda: {}["key"])
    with pytest.raises(KeyError):
        cli.main(["status"])
