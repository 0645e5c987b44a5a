"""The report says what the logs say, in one file, the same each time."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from fabricated import NO_FIGURES, WriteRun, study_of

from analysis.cells.logs import find_runs, load_logs
from analysis.cells.study import split_studies
from analysis.figures.cells import cell_panels
from analysis.figures.selection import selection_panels
from analysis.formats import entry_text
from analysis.report.head import head_table
from analysis.report.page import render_page
from analysis.report.report import part_of, write_report
from analysis.report.tables import cell_frame, cells_table
from analysis.runs import sources
from analysis.runs.shards import write_shards
from analysis.verdicts.conclusions import conclude


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def page_of(folder: Path) -> str:
    """The page without its figures, which take seconds to draw."""
    logs = load_logs(folder, ())
    return render_page(logs, [part_of(study, conclude(study), NO_FIGURES) for study in split_studies(logs)])


def text_of(page: str) -> str:
    """What a reader sees, in one line."""
    body = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def test_the_page_has_the_numbers_computed_by_hand(report: Path, same_grid: Path) -> None:
    text = text_of((report / "report.html").read_text())
    # Base: tests .70 and .74, sd .04 / sqrt(2). AdaGRPO: .80 and .90, sd .1 / sqrt(2). The judge lies .1, .2 below.
    base = "Flow-GRPO 2 0.450 → 0.720 sd 0.028 0.350 → 0.620 sd 0.028 0.250 → 0.520 sd 0.028 0.900 → 0.900 sd 0.000 –"
    assert base in text
    assert "Flow-GRPO + AdaGRPO 2 0.450 → 0.850 sd 0.071" in text
    assert "+0.130 sd 0.042, 2 pairs" in text
    # Costs: 400 + 3 x 20 forwards against 200 + 3 x 20.
    assert "Flow-GRPO + AdaGRPO 2 400 20 460 (× 1.77) 40 1.50 3 s 8 s" in text
    assert "4 of 4 runs finished" in text
    assert "All 4 runs are finished." in text
    assert "Cells of the paper's grid" not in text.replace("&#39;", "'")  # two cells are no part of a grid
    assert "evaluation.judges ocr, ocr-v4, colour" in text
    for run in find_runs(same_grid):
        assert run.name in text
    assert "ours-1 Flow-GRPO + AdaGRPO grid 1 finished 2 of 2 0.900 1.50 460 40" in text


def test_the_page_loads_nothing(report: Path) -> None:
    page = (report / "report.html").read_text()
    targets: list[str] = []
    ids: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            targets.extend(value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset"))
            ids.extend(value or "" for name, value in attrs if name == "id")

    Parser().feed(page)
    assert {target.partition(":")[0] for target in targets if not target.startswith("#")} == {"data"}
    assert {target[1:] for target in targets if target.startswith("#")} <= set(ids)
    assert len(ids) == len(set(ids)) > 0
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_the_same_logs_give_the_same_bytes_as_directories_and_as_shards(
    report: Path, same_grid: Path, tmp_path: Path
) -> None:
    write_shards(same_grid, tmp_path / "shards")
    write_report(tmp_path / "shards", tmp_path / "from-shards")
    first = files_of(report)
    assert first == files_of(tmp_path / "from-shards")
    assert set(first) >= {"report.html", "figures/main.png", "figures/main.svg"}
    tables = ("main.csv", "main.md", "main.tex", "cells.csv", "cells.md", "runs.csv")
    assert {f"tables/{name}" for name in tables} <= set(first)


def test_prompts_are_drawn_from_the_hardest_for_the_untrained_model_to_the_easiest(report: Path) -> None:
    table = (report / "report.html").read_text().partition('<table class="drawn">')[2].partition("</table>")[0]
    rewards = [float(text) for text in re.findall(r'<span class="sd">([\d.]+)</span>', table)]
    assert rewards == sorted(rewards)
    assert len(rewards) == 2
    labels = re.findall(r"<tr><th>(.*?)</th>", table.partition("<tbody>")[2])
    assert labels == ["before training", "Flow-GRPO", "Flow-GRPO + AdaGRPO"]
    assert table.count("<img") == len(rewards) * len(labels)


def test_one_seed_makes_no_claim(write_run: WriteRun) -> None:
    run = write_run("only", base_test=None)
    page = page_of(run)
    assert "with fewer than 5 seeds no interval can be claimed" in text_of(page)
    # The first validation stands in for the untrained model.
    assert "0.500* → 0.750" in text_of(page)
    assert "sd 0" not in page
    assert "nan" not in re.sub(r'base64,[^"]*', "", page).lower()


def test_unfinished_runs_are_named_and_left_out_of_the_tables(grid: Path, write_run: WriteRun) -> None:
    write_run("base-2", seed=2, rewards=(0.5, 0.1), test=None, state="failed", reason="OutOfMemoryError: <3 GB>")
    started = write_run("base-3", seed=3)
    for name in ("status.json", "environment.json", "metrics.jsonl", "eval.jsonl", "images/prompts.json"):
        (started / name).unlink()
    page = page_of(grid)
    assert "grid/base-2</code> failed at iteration 1 of 2: OutOfMemoryError: &lt;3 GB&gt;" in page
    assert "grid/base-3</code> running at iteration 0 of 2" in page
    assert "Flow-GRPO 2 (+2 unfinished) 0.450 → 0.720 sd 0.028" in text_of(page)


def test_each_experiment_and_reward_has_a_section_of_its_own(grid: Path, write_run: WriteRun) -> None:
    both = {"ocr": 1.0, "colour": 0.5}
    write_run("other-base", reward=both)
    write_run("other-ours", reward=both, selection="curriculum", fusion=True)
    page = page_of(grid)
    assert re.findall(r"<h3>Experiment (.*?)</h3>", page) == [
        "“grid”, trained on the reward ocr",
        "“grid”, trained on the reward ocr+0.5*colour",
    ]
    main = page.partition('<section id="main">')[2].partition("</section>")[0]
    assert re.findall(r"<h3>(.*?)</h3>", main) == ["Trained on ocr", "Trained on ocr+0.5*colour"]
    studies = split_studies(load_logs(grid, ()))
    assert [study.prefix for study in studies] == ["grid-ocr-", "grid-ocr-plus-0.5xcolour-"]
    assert [len(cell_frame(study)) for study in studies] == [2, 2]
    # A component of the trained sum is not unseen.
    assert [study.summary["unseen_judges"].iloc[0] for study in studies] == [["ocr-v4", "colour"], ["ocr-v4"]]


def test_the_page_says_how_runs_were_made_and_what_they_warned_of(
    write_run: WriteRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "numbers_sha256", lambda: "present")
    cut = "prompts.train: clip reads 77 tokens of a prompt: 12 of 200 are cut off"
    for number, day in enumerate((None, "2026-03-04", "2026-03-02")):
        run = write_run(f"run-{number}", seed=number, prompts={"allow_overlap": number == 0})
        made_by = {"code_sha256": "present", "packages": sources.package_versions()}
        if day is not None:
            made_by |= {"code_sha256": "other", "packages": {"torch": "1.0"}, "warnings": [cut]}
            (run / "identity.json").write_text(json.dumps({"command": f"adagrpo train seed={number}"}))
            status = json.loads((run / "status.json").read_text())
            (run / "status.json").write_text(json.dumps(status | {"updated": f"{day}T23:59:59+00:00"}))
        (run / "environment.json").write_text(json.dumps(made_by))
    text = text_of(page_of(run.parent))
    assert f"{cut} (2 of 3 runs)" in text
    assert re.search(r"prompts\.allow_overlap is set[^(]*\(1 of 3 runs\)", text)
    (made,) = re.findall(r"2 runs were begun or finished by other code[^.]*: ([^;]*?)\. Code", text)
    assert "other code (2)" in made
    assert "torch 1.0 where" in made
    assert "Finished: 2026-03-02 to 2026-03-04. " in text
    assert "Command: adagrpo train seed=1, adagrpo train seed=2, not recorded, see docs/results.md." in text


def test_costs_are_beside_those_of_the_plain_base(write_run: WriteRun, tmp_path: Path) -> None:
    for seed in range(2):
        write_run(f"base-{seed}", seed=seed)
    write_run("long", rewards=(0.5, 0.6, 0.7, 0.7, 0.7))
    assert re.findall(r"× [\d.]+", text_of(page_of(tmp_path / "runs"))) == ["× 1.00", "× 2.00"]


def test_costs_of_a_cell_without_a_finished_run_are_dashes(grid: Path, write_run: WriteRun) -> None:
    write_run("medium", selection="medium", state="running", test=None)
    assert "Flow-GRPO medium – – – – – – – –" in text_of(page_of(grid))


@pytest.mark.parametrize(("seeds", "shown"), [(2, "± their sd"), (5, "95 % intervals")])
def test_the_head_says_which_spread_it_shows_and_tells_weights_apart(
    write_run: WriteRun, tmp_path: Path, seeds: int, shown: str
) -> None:
    for seed in range(seeds):
        write_run(f"base-{seed}", seed=seed)
        for weight in (0.5, 2.0):
            fusion = {"enabled": True, "weight": weight}
            write_run(f"{weight}-{seed}", seed=seed, selection="curriculum", fusion=fusion, test=0.8 + 0.01 * seed)
    table = head_table(study_of(tmp_path / "runs"), None)
    assert [label for label, _ in table.rows] == [f"Flow-GRPO + AdaGRPO, weight {weight}" for weight in ("0.5", "2")]
    assert table.title.endswith(shown) or f"{shown} from 5 pairs on" in table.title
    assert ("±" in entry_text(table.rows[0][1][0])) == (seeds == 2)


def test_a_link_of_each_cell_leads_to_its_runs(write_run: WriteRun, tmp_path: Path) -> None:
    for seed, level in enumerate((0.0, 0.0, -1.0, 1.0)):
        write_run(f"run-{seed}", seed=seed, selection="level", choice={"level": level})
    page = page_of(tmp_path / "runs")
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    links = dict(re.findall(r'<a href="#([^"]*)">(Flow-GRPO[^<]*)</a>', page))
    runs = dict(re.findall(r'<tr id="([^"]*)">.*?<td class="text">(.*?)</td>', page))
    assert links == runs
    assert len(links) == 3


def test_cells_of_two_numbers_and_durations_are_sorted_by_what_they_mean(grid: Path) -> None:
    page = page_of(grid)
    assert 'data-sort="0.720000">0.450 → <b>0.720</b>' in page
    assert '<td data-sort="3.000">3 s</td>' in page


def test_validation_values_are_called_so_and_are_those_of_the_cells(write_run: WriteRun, tmp_path: Path) -> None:
    for selection, fusion in (("random", False), ("curriculum", False), ("curriculum", True)):
        for seed in range(2):
            settings = {"seed": seed, "selection": selection, "fusion": fusion}
            write_run(f"{selection}-{fusion}-{seed}", test=None, base_test=None, **settings)
    study = study_of(tmp_path / "runs")
    assert set(conclude(study).words.values()) == {"validation"}
    for panel in (*selection_panels(study), *cell_panels(study)):
        _, axes = plt.subplots()
        panel.draw(axes)
        assert any(label.startswith("Validation reward") for label in (axes.get_xlabel(), axes.get_ylabel()))
        plt.close()
    # The mean of both validations after training began, .6 and .7.
    table = cells_table(study, cell_frame(study))
    assert "validation prompts" in table.title
    assert [entries[1].value for _, entries in table.rows] == pytest.approx([0.65] * 3)
    text = text_of(page_of(tmp_path / "runs"))
    assert "2 of 2 0.650" in text
    assert "paper's grid without" in text.replace("&#39;", "'")
