"""``adagrpo report`` says in one line what is wrong, before it reads any run."""

from pathlib import Path

import pytest

from harness.cli import main


@pytest.mark.parametrize(
    ("runs", "readme", "message"),
    [
        ("nowhere", "README.md", "nowhere: no such folder"),
        ("empty", "README.md", "empty: holds no run"),
        ("runs", "README.md", "README.md: needs the line '<!-- claims: written by adagrpo report -->'"),
        ("runs", "missing.md", "missing.md: cannot be read"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, runs: str, readme: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "runs" / "run").mkdir(parents=True)
    (tmp_path / "runs" / "run" / "config.yaml").write_text("seed: 1")
    (tmp_path / "README.md").write_text("no markers")
    arguments = ["--runs", str(tmp_path / runs), "--output", str(tmp_path / "out"), "--readme", str(tmp_path / readme)]
    with pytest.raises(SystemExit) as exit_:
        main(["report", *arguments])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
