"""The command: bad input is one clear line and exit code 2, and loses nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness import cli
from harness.config import ROOT
from harness.experiments import runs as jobs
from harness.experiments.jobs.runner import Outcome
from harness.runs import directory as runs


def adagrpo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.fixture
def list_with(tmp_path: Path):  # type: ignore[no-untyped-def]
    def write(*prompts: str) -> str:
        path = tmp_path / "prompts.txt"
        path.write_text("\n".join(prompts) + "\n")
        return f"prompts.test={path}"

    return write


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["selection=curiculum"], "the nearest is 'curriculum'"),
        (["model.path=no/such/folder"], "is no pipeline folder"),
        (["prompts.train=missing.txt"], "no such file"),
        (["--resume", "no/such/run"], "no run directory"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], expected: str) -> None:
    result = adagrpo("train", *arguments)
    assert result.returncode == 2
    assert expected in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", "has no word to read"),
        ('the word "harbor" in teal on yellow', "unknown text colour 'teal'"),
    ],
)
def test_prompt_the_miniature_cannot_draw(prompt: str, expected: str, list_with) -> None:  # type: ignore[no-untyped-def]
    result = adagrpo("train", list_with(prompt))
    assert result.returncode == 2
    assert expected in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_characters_unknown_to_the_model_are_named_before_training(list_with) -> None:  # type: ignore[no-untyped-def]
    result = adagrpo("train", list_with('die "katze" in rot'), "evaluation.judges=[ocr]", "experiment=test-cli")
    assert result.returncode == 2
    assert "has characters or words that" in result.stderr


def test_a_grid_with_a_failed_run_names_it_and_has_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "prepare_run", lambda config, rerun_changed: config)
    monkeypatch.setattr(jobs, "run_all", lambda runs, slots, say: Outcome([], {"seed1": "ValueError: broken"}))
    with pytest.raises(SystemExit) as end:
        cli.main(["grid", "smoke", "runtime.device=cpu"])
    assert end.value.code == 1
    assert capsys.readouterr().err == "failed: seed1: ValueError: broken\n"


def test_help_is_quick_since_it_imports_nothing_heavy() -> None:
    script = "import sys, harness.cli as c; c.make_parser(); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = set(result.stdout.split())
    assert "harness.commands.grids" in loaded
    assert not loaded & {"torch", "numpy", "pydantic", "yaml", "pandas", "harness.config"}
    assert adagrpo("--help").returncode == 0


def test_looking_and_launching_need_no_torch() -> None:
    script = "import sys, harness.experiments.runs, harness.experiments.jobs.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_overrides_may_follow_options(tmp_path: Path) -> None:
    result = adagrpo("grid", "smoke", "--seeds", "0", "fusion.wieght=2", "--plan", "seed=3")
    assert (result.returncode, "the nearest is 'fusion.weight'" in result.stderr) == (2, True)
    result = adagrpo("grid", "smoke", "--plan", "--sed", "3")
    assert (result.returncode, "unrecognized arguments: --sed 3" in result.stderr) == (2, True)
    result = adagrpo("status", "--runs", str(tmp_path), "seed=3")
    assert (result.returncode, "unrecognized arguments: seed=3" in result.stderr) == (2, True)
