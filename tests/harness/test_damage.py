"""Files of a run that lost bytes, or hold others: named with what to do, never a traceback, never other numbers."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.cells.logs import load_logs
from analysis.runs.runlog import read_directory
from analysis.runs.shards import write_shards
from harness import cli
from harness.config import ConfigError
from harness.experiments.jobs.job import reset
from harness.experiments.runs import RunJob, hand_over_all, run_all
from harness.experiments.status import status_lines
from harness.foundation import files, records
from harness.foundation.errors import FileError
from harness.models.pipelines.weights import filling
from harness.runs import checkpoints
from harness.runs.checkpoints import folder_of
from harness.runs.directory import RunDirectory, find_run, prepare_run
from harness.trained.checkpoints import find_run_checkpoint
from harness.training import untrained
from harness.training.session import Session

LOGS = ("metrics.jsonl", "eval.jsonl")
FINAL = "checkpoints/final/pytorch_lora_weights.safetensors"


@pytest.fixture
def run(lora_run: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A finished run that may be damaged."""
    return RunDirectory(Path(shutil.copytree(lora_run.folder, tmp_path / "runs" / "experiment" / "run")))


def resume(run: RunDirectory) -> None:
    """Train a run to its end."""
    Session(run, say=lambda line: None).execute()
    assert run.status()["state"] == "finished"


def cut(path: Path, count: int = 200) -> None:
    """Take bytes from the end."""
    path.write_bytes(path.read_bytes()[:-count])


def lines_of(run: RunDirectory, name: str) -> list[dict[str, Any]]:
    return [line | {"seconds": 0} for line in records.read_lines(run.folder / name)]


@pytest.mark.parametrize("name", [*LOGS, FINAL])
@pytest.mark.parametrize("how", ["cut", "gone", "longer"])
def test_a_finished_run_that_is_not_whole_is_incomplete_and_names_the_file(
    run: RunDirectory, name: str, how: str
) -> None:
    assert run.status()["state"] == read_directory(run.folder).state == "finished"
    path = run.folder / name
    if how == "cut":
        cut(path)
    elif how == "gone":
        path.unlink()
    else:
        files.append(path, "{")
    status = run.status()
    assert status["state"] == "incomplete"
    assert name.split("/")[0] in status["reason"]
    assert str(run.folder) in status["reason"]
    assert any("incomplete" in line and run.run_id in line for line in status_lines(run.folder.parent.parent))
    if name in LOGS and how != "longer":
        log = load_logs(run.folder).summary.iloc[0]
        assert log["state"] == "incomplete"
        assert name in log["reason"]
    with pytest.raises(ConfigError, match=name.split("/")[0]):
        write_shards(run.folder, run.folder.parent / "shards")


def test_an_evaluation_of_the_last_iteration_that_was_lost_is_made_again(run: RunDirectory) -> None:
    before = lines_of(run, "eval.jsonl")
    cut(run.folder / "eval.jsonl")
    resume(run)
    assert lines_of(run, "eval.jsonl") == before


def test_without_a_checkpoint_an_incomplete_run_is_refused_and_keeps_what_is_left(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints.forget_after(run.checkpoints, -1)
    session = Session(run, say=lambda line: None)
    for name in (*LOGS, FINAL):
        (run.folder / name).rename(aside := run.folder / "aside")
        before = contents(run)
        told = f"{name} is missing; put the file back, or move {run.folder} away"
        with pytest.raises(ConfigError, match=re.escape(told)):
            session.execute()
        assert contents(run) == before
        if name != FINAL:
            aside.rename(run.folder / name)
    assert told in run_all([run], 1, print).failed[run.run_id]
    for again in (RunJob(run).call, lambda: hand_over_all([run], "print", print)):
        with pytest.raises(ConfigError, match=re.escape(told)):
            again()
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train", "--resume", str(run.folder)])
    assert told in capsys.readouterr().err
    assert contents(run) == before


def contents(run: RunDirectory) -> dict[Path, bytes]:
    """Every file of a run except its locks."""
    files = [path for path in run.folder.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files if path.suffix != ".lock" and path.name != "lock"}


@pytest.mark.parametrize("damage", ["torn middle", "missing", "twice"])
def test_a_resumed_run_refuses_logs_with_holes_and_leaves_them_as_they_are(run: RunDirectory, damage: str) -> None:
    path = run.folder / "eval.jsonl" if damage == "torn middle" else run.folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    changed = {"torn middle": [lines[0][:-30] + "\n", *lines[1:]], "missing": lines[1:], "twice": [*lines, *lines]}
    path.write_text("".join(changed[damage]), encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=path.name):
        run.forget_after(1)
    assert path.read_bytes() == before


MISTYPED = [
    f'{{"state": "finished", {rest}}}'.encode()
    for rest in ('"iteration": "x"', '"files": [1, 2]', '"files": {"a": 3}', '"updated": "2026-01-01T00:00:00"')
]


def test_a_damaged_status_is_named_and_the_run_goes_on(run: RunDirectory) -> None:
    other = RunDirectory(Path(shutil.copytree(run.folder, run.folder.with_name("other"))))
    for content in (b"", b"{", b"[]", b'{"state": 3}', b'{"state": "finished", "check": "x"}', b"\xff", *MISTYPED):
        (run.folder / "status.json").write_bytes(content)
        lines = status_lines(run.folder.parent.parent)
        assert any(run.run_id in line and "status.json" in line and "--resume" in line for line in lines)
        assert any("1 finished" in line for line in lines)
        assert list(load_logs(run.folder.parent, skip_damaged=True).summary["folder"]) == [other.folder]
        reset([RunJob(run), RunJob(other)])
        assert run.status()["state"] == "waiting"
        assert other.status()["state"] == "finished"
    resume(run)


@pytest.mark.parametrize("left", ["checkpoints/final", "logs"])
def test_a_damaged_status_of_a_run_that_has_ended_without_a_checkpoint_changes_nothing(
    run: RunDirectory, left: str, tmp_path: Path
) -> None:
    session = Session(run, say=lambda line: None)
    shutil.rmtree(run.checkpoints if left == "logs" else folder_of(run.checkpoints, run.config.iterations))
    (run.folder / "status.json").write_bytes(b"")
    before = contents(run)
    for again in (session.execute, RunJob(run).call):
        with pytest.raises(ConfigError, match="no checkpoint is left"):
            again()
    reset([RunJob(run)])
    assert "no checkpoint is left" in run_all([run], 1, print).failed[run.run_id]
    assert contents(run) == before
    if left != "logs":
        (run.folder / "status.json").unlink()
        shutil.copytree(run.folder, find_run(run.config, tmp_path / "again").folder)
        assert prepare_run(run.config, tmp_path / "again").loss()


def test_a_damaged_status_of_a_run_that_has_just_begun_is_no_loss(run: RunDirectory) -> None:
    shutil.rmtree(run.checkpoints)
    (run.folder / "metrics.jsonl").unlink()
    (run.folder / "status.json").write_bytes(b"")
    assert run.loss() is None
    resume(run)


def test_a_record_of_another_shape_is_one_line(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    files.append(run.folder / "eval.jsonl", '{"iteration": 9, "split": "validation", "metrics": [1]}\n')
    (run.folder / "status.json").write_text('{"state": "running"}', encoding="utf-8")
    lines = status_lines(run.folder.parent.parent)
    assert any(line.endswith("interrupted run  0/None saved") for line in lines)
    assert any("eval.jsonl: iteration 9" in line for line in lines)
    for content, code in (("[]", 2), ("{", 2), ('{"seed": 3}', 0)):
        (run.folder / "origins.json").write_text(content, encoding="utf-8")
        with pytest.raises(SystemExit, match=str(code)):
            cli.main(["show-config", "--resume", str(run.folder)])
        assert ("origins.json: is damaged" in capsys.readouterr().err) == bool(code)


@pytest.mark.parametrize("name", ["config.yaml", "eval.jsonl", "metrics.jsonl"])
def test_one_damaged_run_hides_no_other(run: RunDirectory, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run.folder, run.folder.with_name("other"))
    content = (run.folder / name).read_bytes()
    (run.folder / name).write_bytes(b"\xff{" + content[2:])
    text = "\n".join(status_lines(run.folder.parent.parent))
    assert f"run/{name}" in text or name == "metrics.jsonl"
    assert "seeds 1" in text or name == "metrics.jsonl"
    logs = load_logs(run.folder.parent, skip_damaged=True)
    assert [path.name for path in logs.summary["folder"]] == ["other"]
    assert f"run/{name}" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=name):
        load_logs(run.folder.parent)
    with pytest.raises(ConfigError, match=name):
        write_shards(run.folder.parent, run.folder.parent.parent / "shards")
    assert len(list((run.folder.parent.parent / "shards").rglob("*.parquet"))) == 1


def test_of_damaged_checkpoints_the_one_before_is_taken_and_the_end_is_the_same(
    lora_run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = lora_run.config.model_copy(update={"iterations": 2})
    config = config.model_copy(update={"runtime": config.runtime.model_copy(update={"checkpoint_interval": 1})})
    whole = prepare_run(config, tmp_path / "whole")
    resume(whole)
    run = RunDirectory(Path(shutil.copytree(whole.folder, tmp_path / "damaged" / "experiment" / "run")))
    first = [folder.name for folder in checkpoints.saved(run.checkpoints)]
    assert first == ["iteration-0000002", "iteration-0000001"]
    cut(folder_of(run.checkpoints, 2) / "state.pt", 1)
    (run.folder / "status.json").unlink()
    files.append(run.folder / "metrics.jsonl", '{"iteration": 3, "torn')
    resume(run)
    said = [line for line in capsys.readouterr().err.splitlines() if "adagrpo" in line]
    assert len(said) == 1
    assert "iteration-0000002/state.pt: is damaged or missing; the one before is taken" in said[0]
    assert torch.equal(first_weight(run), first_weight(whole))
    for name in LOGS:
        assert lines_of(run, name) == lines_of(whole, name)
    for folder in run.checkpoints.glob("iteration-*"):
        (folder / "manifest.json").write_text("{")
    with pytest.raises(ConfigError, match=r"manifest\.json: is damaged or missing; put back a copy, or delete"):
        run.load_checkpoint()


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path: Path) -> None:
    for iteration, value in enumerate((0.1, 0.7, None, 0.7, 0.2, None, 0.3), start=1):
        with checkpoints.completing(folder_of(tmp_path, iteration), value) as folder:
            (folder / "state.pt").write_bytes(b"weights")
        checkpoints.prune(tmp_path, keep=2)
    assert [int(folder.name[-7:]) for folder in checkpoints.saved(tmp_path)] == [7, 6, 4]


def test_final_weights_that_were_changed_are_not_drawn_with(run: RunDirectory) -> None:
    path = run.folder / FINAL
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="pytorch_lora_weights"):
        find_run_checkpoint(run.folder)


def test_equal_weights_are_equal_files_and_a_damaged_cache_is_made_again(run: RunDirectory, tmp_path: Path) -> None:
    session = Session(run, say=lambda line: None)
    written = set()
    for number in range(6):
        session.trainer.policy.save(tmp_path / str(number))
        written.add((tmp_path / str(number) / Path(FINAL).name).read_bytes())
    assert len(written) == 1
    prompts = session.prompts["validation"][:1]
    first = session._remembered("validation", prompts)
    digest = untrained.digest(session.config, session.judges, "validation", 1, 1)
    path = run.folder.parent / "untrained" / f"validation-{digest}.json"
    content = path.read_bytes()
    for damaged in (b"", b"[]", b"{}", content[:-9], content.replace(b"0.", b"1.", 1), b"\xff"):
        path.write_bytes(damaged)
        assert session._remembered("validation", prompts) == first
        assert path.read_bytes() == content


def test_a_full_disk_is_one_line_and_the_run_can_be_resumed_past_what_a_kill_left(
    lora_run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare_run(lora_run.config, tmp_path)
    save, append = RunDirectory.save_checkpoint, RunDirectory.append
    for where in ("metrics.jsonl", "checkpoints"):

        def full(name: str, where: str = where) -> None:
            if where == name:
                raise FileError(f"{name}: cannot be written: No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(RunDirectory, "save_checkpoint", lambda self, *of: (full("checkpoints"), save(self, *of)))
            patch.setattr(RunDirectory, "append", lambda self, name, record: (full(name), append(self, name, record)))
            with pytest.raises(FileError, match=where), run.failure_noted():
                Session(run, say=lambda line: None).execute()
        status = run.status()
        assert status["state"] == "failed"
        assert "No space left" in status["reason"]
        assert not list(run.folder.rglob("*partial*"))
    (run.folder / "checkpoints" / f".final{files.PARTIAL}").mkdir(parents=True)
    (run.folder / f".metrics.jsonl{files.PARTIAL}").touch()
    resume(run)
    assert not list(run.folder.rglob("*partial*"))
    assert torch.equal(*(first_weight(one) for one in (run, lora_run)))


def test_a_folder_takes_the_place_of_another_one_and_of_what_a_kill_left(tmp_path: Path) -> None:
    for name in ("final", f".final.old{files.PARTIAL}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").touch()
    with filling(tmp_path / "final") as folder:
        (folder / "new").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["final", "final/new"]


def first_weight(run: RunDirectory) -> torch.Tensor:
    """The first weight in a run's checkpoint."""
    state = run.load_checkpoint()
    assert state is not None
    return next(iter(state["parameters"].values()))


def test_a_finished_run_is_not_written_to(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}

    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--resume", str(run.folder)])
    assert ended.value.code == 0
    assert "finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before


def test_the_rule_of_what_is_finished() -> None:
    config = {"iterations": 5, "evaluation": {"interval": 2, "test": True, "base_test": True}}
    due = [(0, "test"), (0, "validation"), (2, "validation"), (4, "validation"), (5, "test"), (5, "validation")]
    assert records.due_evaluations(config) == due
    assert not records.gaps(config, [1, 2, 3, 4, 5], due, 5)
    missing: Callable[[Any], str] = lambda left: records.gaps(config, [1, 2, 3, 4, 5], left, 5)[0]  # noqa: E731
    for evaluation in due:
        assert str(evaluation[0]) in missing([one for one in due if one != evaluation])
    assert "3" in records.gaps(config, [1, 2, 4, 5], due, 5)[0]
    assert "twice" in records.gaps(config, [1, 2, 2, 3, 4, 5], due, 5)[0]
    assert not records.gaps(config, [1, 2], due[:3], 3 - 1)
