"""``adagrpo watch``: a page of runs as they are, for as long as one is at work."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from analysis.cells.chosen import quoted_word
from harness import cli
from harness.config import compose
from harness.experiments import watch as watching
from harness.runs.directory import RunDirectory, prepare_run

REFRESH = '<meta http-equiv="refresh"'


@pytest.fixture
def run(lora_run: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A run with pictures, to be changed at will."""
    copy = RunDirectory(shutil.copytree(lora_run.folder, tmp_path / "grid" / lora_run.run_id))
    images = copy.folder / "images"
    images.mkdir(exist_ok=True)
    (images / "prompts.json").write_text('["one", "two"]')
    for number in range(2):
        Image.new("RGB", (8, 8), (99 * number, 0, 0)).save(images / f"validation-{number:05d}.png")
    return copy


def test_the_page_is_drawn_again_until_nothing_is_at_work(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, said, drawn, held = tmp_path / "page.html", [], [], run.lock()
    run.set_status("running", 0, 1)

    def wait(seconds: float) -> None:
        drawn.append(page.read_text())
        run.set_status("finished", 1, 1)
        held.close()

    monkeypatch.setattr(watching.time, "sleep", wait)
    watching.watch(tmp_path / "grid", page, 7, once=False, say=said.append)
    [first], last = drawn, page.read_text()
    assert f'{REFRESH} content="7">' in first
    assert "grid: 1 run, 1 running" in first
    assert REFRESH not in last
    assert "grid: 1 run, 1 finished" in last
    assert len(said) == 1
    line = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1])
    for shown in (f"{line['grad_norm']:.4f}", f"{line['reward_mean']:.3f}", str(quoted_word(line["prompts"][0]))):
        assert f"<td>{shown}</td>" in last
    assert last.count("data:image/png") == 4  # two prompts, before and after
    assert last.count("<svg") >= 5  # validation, groups, and three of health


def test_signs_of_hacking_stand_on_top(run: RunDirectory, tmp_path: Path) -> None:
    lines = (run.folder / "metrics.jsonl").read_text()
    spread = [
        json.loads(lines) | {"iteration": n, "group": {"pixel_spread": 1.0 if n < 3 else 0.1}} for n in range(1, 5)
    ]
    (run.folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in spread))
    run.set_status("running", 1, 4)
    watching.watch(run.folder, tmp_path / "page.html", 1, once=True, say=print)
    text = (tmp_path / "page.html").read_text()
    assert f"{run.run_id}: pictures of a group differ by 0.1, at first by 1: diversity collapses" in text
    assert "<td>diversity</td>" in text


@pytest.mark.parametrize("alone", [True, False])
def test_a_run_without_a_whole_line_yet_is_in_nobodys_way(run: RunDirectory, tmp_path: Path, alone: bool) -> None:
    resumed = run if alone else RunDirectory(shutil.copytree(run.folder, run.folder.with_name("resumed")))
    for text in ("", '{"iteration": 1, "to'):
        (resumed.folder / "metrics.jsonl").write_text(text)
        resumed.set_status("running", 0, 1)
        watching.watch(run.folder.parent, tmp_path / "page.html", 1, once=True, say=print)
        assert (run.run_id in (tmp_path / "page.html").read_text()) is not alone


def test_runs_that_have_not_begun_are_counted(tmp_path: Path) -> None:
    run = prepare_run(compose("smoke"), tmp_path)
    page = tmp_path / "page.html"
    watching.watch(run.folder.parent, page, 1, once=True, say=print)
    assert "smoke: 1 run, 1 waiting" in page.read_text()
    assert "No run has made an iteration yet." in page.read_text()


def test_a_folder_without_runs_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["watch", str(folder), "--output", str(tmp_path / "new" / "page.html")])
        assert str(folder) in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "new").exists()
