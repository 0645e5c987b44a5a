"""What ``adagrpo new`` writes works as it is, and is what the page shows."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness import cli
from harness.config import ROOT

EXAMPLES = ROOT / "harness" / "commands" / "examples"
KINDS = ("selection", "advantage", "reward", "kernel")


def test_what_is_written_passes_the_test_that_is_written(tmp_path: Path) -> None:
    for kind in KINDS:
        with pytest.raises(SystemExit, match="0"):
            cli.main(["new", kind, f"MyOwn{kind}", "--folder", str(tmp_path)])
        with pytest.raises(SystemExit, match="2"):
            cli.main(["new", kind, f"MyOwn{kind}", "--folder", str(tmp_path)])
    assert (tmp_path / "my_ownkernel.py").is_file()
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert "4 passed" in ran.stdout, ran.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_shows_the_example(kind: str) -> None:
    page = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
    text = (EXAMPLES / f"{kind}.py.txt").read_text(encoding="utf-8")
    assert f"```python\n{text}```" in page
