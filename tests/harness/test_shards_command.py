"""``adagrpo shards`` writes finished runs and says in one line what is wrong."""

from pathlib import Path

import pytest

from harness.cli import main


def test_a_folder_without_runs_gives_no_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["shards", str(tmp_path), "--output", str(tmp_path / "out")])
    assert exit_.value.code == 0
    assert "0 finished runs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder of runs"),
        ([".", "--pictures", "-1"], "--pictures: -1 must be at least 0"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["shards", str(tmp_path / arguments[0]), "--output", str(tmp_path / "out"), *arguments[1:]])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_broken_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.yaml").write_text("seed: [")
    with pytest.raises(SystemExit) as exit_:
        main(["shards", str(tmp_path), "--output", str(tmp_path / "out")])
    assert exit_.value.code == 2
    assert "bad/config.yaml: cannot be read" in capsys.readouterr().err
