"""What ``adagrpo new`` writes works as it is, and is what the page shows."""

import runpy
from pathlib import Path

import pytest

from harness import cli
from harness.config import ROOT


@pytest.mark.parametrize("name", ["class", "None", "int", "random", "ocr", "torch"])
def test_a_name_that_cannot_work_is_refused_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["new", "selection", name, "--folder", str(tmp_path)])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["selection", "advantage", "reward", "kernel"])
def test_what_is_written_passes_the_test_that_is_written_and_is_what_the_page_shows(kind: str, tmp_path: Path) -> None:
    for code in ("0", "2"):  # the second time it is there already
        with pytest.raises(SystemExit, match=code):
            cli.main(["new", kind, f"MyOwn{kind.title()}", "--folder", str(tmp_path)])
    written = runpy.run_path(str(tmp_path / f"test_my_own_{kind}.py"))
    [test] = [value for name, value in written.items() if name.startswith("test_")]
    test()
    page = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
    example = (ROOT / "harness" / "commands" / "examples" / f"{kind}.py.txt").read_text(encoding="utf-8")
    assert f"```python\n{example}```" in page
