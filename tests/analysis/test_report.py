"""The report says what the logs say, in one file, the same each time."""

import base64
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from analysis.figures import over_seeds
from analysis.logs import RunLogError
from analysis.report import main, write_report

WriteRun = Callable[..., Path]


def _cells(page: str) -> dict[str, str]:
    """Text of each row of the results table, by its cell's name."""
    body = page.partition("<tbody>")[2].partition("</tbody>")[0]
    rows = [" ".join(re.sub(r"<[^>]+>", " ", row).split()) for row in body.split("</tr>")[:-1]]
    return {row.partition(" 2 ")[0]: row for row in rows}


def test_the_table_has_the_numbers_computed_by_hand(grid: Path, tmp_path: Path) -> None:
    cells = _cells(write_report(grid, tmp_path / "out").read_text())
    assert list(cells) == ["Flow-GRPO", "Flow-GRPO + AdaGRPO"]
    # Base: tests .70 and .74, sd .04 / sqrt(2). AdaGRPO: .80 and .90, sd .1 / sqrt(2). The judge lies .1, .2 below.
    for number in ("0.450 → 0.720 sd 0.028", "0.350 → 0.620 sd 0.028", "0.250 → 0.520 sd 0.028", "0.900 → 0.900"):
        assert number in cells["Flow-GRPO"]
    for number in ("0.450 → 0.850 sd 0.071", "0.250 → 0.650 sd 0.071", "1.50", "260"):
        assert number in cells["Flow-GRPO + AdaGRPO"]


def test_the_tables_have_all_digits_and_the_run_ids(grid: Path, tmp_path: Path) -> None:
    write_report(grid, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "tables" / "summary.csv").set_index("cell")
    ours = table.loc["Flow-GRPO + AdaGRPO"]
    assert ours["training_reward_after"] == pytest.approx(0.85)
    assert ours["training_reward_sd"] == pytest.approx(0.1 / 2**0.5)
    assert ours["ocr-v4/word_accuracy_before"] == pytest.approx(0.25)
    assert (ours["seeds"], ours["compute"], ours["run_ids"]) == (2, 260, "ours-0 ours-1")
    markdown = (tmp_path / "out" / "tables" / "summary.md").read_text()
    assert "| Flow-GRPO | 2 | 0.450 → 0.720 (0.028) |" in markdown


def test_the_page_loads_nothing(grid: Path, tmp_path: Path) -> None:
    page = write_report(grid, tmp_path / "out").read_text()
    targets: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag != "script"
            targets.extend(value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset"))

    Parser().feed(page)
    assert targets
    assert {target.partition(":")[0] for target in targets if not target.startswith("#")} == {"data"}
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_ids_of_the_inline_figures_are_unique(grid: Path, tmp_path: Path) -> None:
    ids = re.findall(r'\bid="([^"]*)"', write_report(grid, tmp_path / "out").read_text())
    assert len(ids) == len(set(ids)) > 0


def test_the_same_logs_give_the_same_bytes(grid: Path, tmp_path: Path) -> None:
    contents = []
    for name in ("first", "second"):
        write_report(grid, tmp_path / name)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        contents.append({path.relative_to(tmp_path / name): path.read_bytes() for path in files})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 1 + 2 + 2 * 3


def test_figures_are_valid_xml_with_a_png_twin(grid: Path, tmp_path: Path) -> None:
    write_report(grid, tmp_path / "out")
    figures = sorted((tmp_path / "out" / "figures").glob("*.svg"))
    assert [path.stem for path in figures] == [
        "reward-by-compute-flow_grpo",
        "reward-by-iteration-flow_grpo",
        "unseen-accuracy-flow_grpo",
    ]
    for path in figures:
        texts = "".join(ElementTree.parse(path).getroot().itertext())
        assert "Flow-GRPO + AdaGRPO (2 seeds)" in texts
        assert "band from lowest to highest seed" in texts
        with Image.open(path.with_suffix(".png")) as twin:
            assert twin.width > 600


def test_the_gallery_slices_the_stacked_pictures(grid: Path, tmp_path: Path) -> None:
    page = write_report(grid, tmp_path / "out").read_text()
    # Two cells, two prompts, before and after; blue above and red below in each stack, blue being the iteration.
    uris = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    pictures = [Image.open(BytesIO(base64.b64decode(uri))) for uri in uris]
    assert [picture.size for picture in pictures] == [(8, 4)] * 8
    assert [picture.getpixel((0, 0)) for picture in pictures[:4]] == [(0, 0, 0), (0, 0, 200), (255, 0, 0), (255, 0, 0)]
    assert "the word &#34;zebra&#34; in blue on yellow" in page


def test_one_seed_has_a_line_without_a_band_and_no_claim(write_run: WriteRun, tmp_path: Path) -> None:
    run = write_run("only")
    page = write_report(run, tmp_path / "out").read_text()
    assert "One seed a line: no spread" in page
    assert "with fewer than 5 seeds no interval can be claimed" in page
    assert "sd 0" not in page
    assert "nan" not in re.sub(r'base64,[^"]*', "", page).lower()


def test_without_a_test_of_the_untrained_model_the_first_validation_stands_in(
    write_run: WriteRun, tmp_path: Path
) -> None:
    run = write_run("no-base-test", base_test=None)
    page = write_report(run, tmp_path / "out").read_text()
    assert "0.500* → <b>0.750</b>" in page
    assert "this is its value on validation prompts" in page


def test_the_untrained_test_of_another_run_of_the_same_model_counts(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("a", base_test=0.4)
    write_run("b", base_test=None, selection="medium")
    write_run("c", base_test=None, selection="hardest", model={"path": "another"})
    table = pd.read_csv(write_report(tmp_path / "runs", tmp_path / "out").parent / "tables" / "summary.csv")
    before = table.set_index("selection")["training_reward_before"]
    assert before.to_dict() == pytest.approx({"random": 0.4, "medium": 0.4, "hardest": 0.5})


def test_unfinished_runs_are_named_and_left_out_of_the_table(grid: Path, write_run: WriteRun, tmp_path: Path) -> None:
    failed = write_run(
        "base-2", seed=2, rewards=(0.5, 0.1), test=None, state="failed", reason="OutOfMemoryError: <3 GB>"
    )
    started = write_run("base-3", seed=3)
    for name in ("status.json", "metrics.jsonl", "eval.jsonl", "images/prompts.json"):
        (started / name).unlink()
    page = write_report(grid, tmp_path / "out").read_text()
    assert f"grid/{failed.name}</code> failed at iteration 1 of 2: OutOfMemoryError: &lt;3 GB&gt;" in page
    assert f"grid/{started.name}</code> running at iteration 0 of 2" in page
    assert "0.450 → 0.720 sd 0.028" in _cells(page)["Flow-GRPO"]
    assert "4 of 6" in page


def test_a_run_without_any_evaluation_makes_a_page(write_run: WriteRun, tmp_path: Path) -> None:
    run = write_run("bare", state="running")
    for path in [run / "eval.jsonl", run / "metrics.jsonl", run / "status.json", *(run / "images").iterdir()]:
        path.unlink()
    page = write_report(run, tmp_path / "out").read_text()
    assert "0 of 1" in page
    assert "<figure>" not in page


def test_a_mean_over_seeds_ends_where_the_first_run_ends() -> None:
    rows = pd.DataFrame({"run_id": list("aaabb"), "iteration": [0, 1, 2, 0, 1], "value": [0.0, 1.0, 5.0, 2.0, 4.0]})
    table = over_seeds(rows, "iteration")
    assert table.index.tolist() == [0, 1]
    assert table[["mean", "min", "max"]].to_numpy().tolist() == [[1.0, 0.0, 2.0], [2.5, 1.0, 4.0]]


def test_a_stack_of_the_wrong_height_is_named(write_run: WriteRun, tmp_path: Path) -> None:
    run = write_run("odd")
    Image.new("RGB", (8, 7)).save(run / "images" / "validation-00002.png")
    with pytest.raises(RunLogError, match=r"odd/images/validation-00002\.png: height 7 does not divide into 2"):
        write_report(run, tmp_path / "out")


def test_the_command_writes_the_page_or_says_what_is_wrong(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(grid), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "report.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as exit_:
        main([str(tmp_path / "empty"), str(tmp_path / "out")])
    assert exit_.value.code == 2
    assert "holds no run" in capsys.readouterr().err
