"""Text between two comments is replaced, and nothing else of the file."""

from pathlib import Path

import pytest

from analysis.report.insertion import END, START, insert
from harness.foundation.errors import ConfigError

AROUND = "# Title\r\n\n{}\nafter, without an end of line"


def test_only_what_is_between_the_markers_changes_and_twice_is_as_once(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_bytes(AROUND.format(f"{START}\nold\n{END}").encode())
    for _ in range(2):
        insert(path, "| a |\n")
        assert path.read_bytes().decode() == AROUND.format(f"{START}\n\n| a |\n\n{END}")


@pytest.mark.parametrize("markers", ["", START, f"{END}\n{START}", f"{START}\n{START}\n{END}"])
def test_a_file_without_its_markers_is_named_and_left_alone(tmp_path: Path, markers: str) -> None:
    path = tmp_path / "README.md"
    path.write_text(markers)
    with pytest.raises(ConfigError, match=r"README\.md: needs the line"):
        insert(path, "text")
    assert path.read_text() == markers
