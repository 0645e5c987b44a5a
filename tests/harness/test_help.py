"""What the command says of itself: groups, an example of every command, versions, and answers for programs."""

import json
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from harness import cli
from harness.cli import parse
from harness.commands import COMMANDS
from harness.config import EXPERIMENTS, ROOT, compose, verification


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_the_help_has_every_command_under_a_title_with_an_example_that_is_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = said(capsys, "--help").splitlines()
    assert lines.index("One run") < lines.index("Many runs")
    shown = {}
    for line, example in pairwise(lines):
        if example.strip().startswith("$ adagrpo "):
            arguments = shlex.split(example.partition(" > ")[0])[2:]
            parse(arguments)
            shown[line.split()[0]] = arguments[0]
    assert shown == {name: name for name in COMMANDS}


def test_a_shell_completes_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    script = said(capsys, "completion", "bash")
    assert all(name in script for name in COMMANDS)


def test_every_profile_says_how_far_it_is_verified() -> None:
    for profile in sorted(path.stem for path in (EXPERIMENTS / "profiles").glob("*.yaml")):
        verified = verification(profile)
        assert not verified.startswith("never"), profile
        if verified.startswith("proved"):
            assert any((ROOT / "results" / compose(profile).experiment / "runs").rglob("*.parquet")), profile


def test_status_answers_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "smoke" / "a-run"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("damaged")
    [run] = json.loads(said(capsys, "status", "--runs", str(tmp_path), "--json"))
    assert (run["experiment"], run["run"], run["validation"]) == ("smoke", "a-run", None)
