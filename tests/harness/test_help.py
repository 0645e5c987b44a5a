"""What the command says of itself: groups, an example of every command, versions, and answers for programs."""

import json
import shlex
from pathlib import Path

import pytest

from harness import cli
from harness.cli import parse
from harness.commands import COMMANDS, _texts
from harness.config import EXPERIMENTS, compose, verification


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code in (0, 2)
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_is_a_command_line(name: str) -> None:
    _, example = _texts(COMMANDS[name])
    program, *arguments = shlex.split(example.partition(" > ")[0])
    assert (program, arguments[0]) == ("adagrpo", name)
    parse(arguments)


def test_the_help_names_every_command_under_a_title(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "--help").splitlines()
    assert {line.split()[0] for line in lines if line.startswith("  ")} >= set(COMMANDS)
    assert lines.index("One run") < lines.index("Many runs")


def test_a_shell_completes_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    script = said(capsys, "completion", "bash")
    assert all(name in script for name in COMMANDS)


@pytest.mark.parametrize("profile", sorted(path.stem for path in (EXPERIMENTS / "profiles").glob("*.yaml")))
def test_every_profile_says_how_far_it_is_verified(profile: str) -> None:
    verified = verification(profile)
    assert not verified.startswith("never")
    if verified.startswith("proved"):
        assert any((EXPERIMENTS.parent / "results" / compose(profile).experiment / "runs").rglob("*.parquet"))


def test_doctor_answers_programs(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(said(capsys, "doctor", "--profile", "paper-dry", "--json"))
    assert found["profile"] == "paper-dry"
    assert {finding["area"] for finding in found["findings"]} >= {"GPUs", "weights", "rewards"}


def test_status_answers_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "smoke" / "a-run"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("damaged")
    [run] = json.loads(said(capsys, "status", "--runs", str(tmp_path), "--json"))
    assert (run["experiment"], run["run"], run["validation"]) == ("smoke", "a-run", None)
