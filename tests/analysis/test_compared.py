"""Cells that somebody names are judged as a grid's are, with differences computed by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
from fabricated import study_of, write_run

from analysis.cells.labels import Cell
from analysis.cells.logs import Logs, load_logs
from analysis.cells.spending import SPENDING_METRICS
from analysis.cells.study import Study, split_studies
from analysis.formats import entry_text
from analysis.report.head import cautions, head_table
from analysis.report.report import REPORT_METRICS, write_pages, write_report
from analysis.runs.shards import write_shards
from analysis.verdicts.compared import AT_END, DEFINITION, EQUAL_COMPUTE, compare
from harness.experiments.compare import judged
from harness.foundation.errors import ConfigError
from harness.runs.directory import RunDirectory

BASE, MINE = Cell("flow_grpo", "random", False, 0.0), Cell("flow_grpo", "SecondHardest", False, 0.0)
OTHER = Cell("flow_grpo", "medium", False, 0.0)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    folder = tmp_path_factory.mktemp("compared")
    for seed in range(4):
        jitter = 0.001 * seed
        write_run(folder / f"random-{seed}", seed=seed, rewards=(0.5, 0.6, 0.7), test=0.75 + jitter)
        mine = (0.5, 0.65, 0.8 + jitter)
        write_run(folder / f"mine-{seed}", seed=seed, selection="SecondHardest", rewards=mine, test=0.85)
        write_run(folder / f"other-{seed}", seed=seed, selection="medium", rewards=(0.5, 0.6, 0.7 + jitter), test=0.75)
    for seed in range(4, 9):  # runs that have just begun do not make a cell the cheaper one
        begun = {"selection": "SecondHardest", "state": "running", "test": None}
        write_run(folder / f"mine-{seed}", seed=seed, rewards=(0.5,), **begun)
    return load_logs(folder, (*SPENDING_METRICS, *REPORT_METRICS))


@pytest.fixture(scope="module")
def study(logs: Logs) -> Study:
    [study] = split_studies(logs)
    return study


def test_a_planted_difference_is_found_at_equal_iterations_and_its_loss_at_equal_compute(study: Study) -> None:
    families = compare(study, BASE, [MINE], 4).families
    [final], [spent] = families[AT_END], families[EQUAL_COMPUTE]
    assert final.claim.statement == "Flow-GRPO SecondHardest beats Flow-GRPO"
    assert (final.verdict, spent.verdict) == ("supported", "opposite")
    assert list(final.strata[0]) == pytest.approx([0.1, 0.099, 0.098, 0.097])
    assert final.gain == pytest.approx(0.7515 - 0.45)
    # 230 forwards an iteration beside 130: at 260 its second iteration is done to 30 / 230.
    assert list(spent.strata[0]) == pytest.approx([0.65 + (0.15 + 0.001 * i) * 30 / 230 - 0.7 for i in range(4)])
    assert spent.gain == pytest.approx(0.2)
    assert final.power > 0.99
    assert final.pairs_needed == 2
    assert not cautions([final])
    [turned] = compare(study, MINE, [BASE], 4).families[EQUAL_COMPUTE]
    assert list(turned.strata[0]) == pytest.approx(list(-spent.strata[0]))


def test_what_cells_of_two_methods_differ_in_is_said(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / f"flow-{seed}", seed=seed, rollout={"group_size": 8, "prompts_per_iteration": 2})
        larger = {"group_size": 24, "prompts_per_iteration": 4}
        dance = {"method": {"kernel": "dance_grpo"}, "rollout": larger, "iterations": 90}
        write_run(tmp_path / f"dance-{seed}", seed=seed, **dance)
    opening = compare(study_of(tmp_path, SPENDING_METRICS), BASE, [BASE._replace(method="dance_grpo")], 2).opening
    assert opening.endswith("DanceGRPO has G 24 instead of 8, P 4 instead of 2, iterations 90 instead of 2.")


def test_two_claims_share_the_level_and_missing_pairs_decide_nothing(study: Study) -> None:
    family = compare(study, BASE, [MINE, OTHER], 4).main
    assert [one.family for one in family] == [2, 2]
    assert [one.verdict for one in family] == ["supported", "equivalent"]
    short = compare(study, BASE, [MINE], 5).main
    assert [(one.verdict, one.pairs) for one in short] == [("undecided", 4)]


def test_the_page_opens_with_the_verdict_the_difference_with_bounds_and_both_curves(
    logs: Logs, study: Study, tmp_path: Path
) -> None:
    page = write_pages(logs, {study: compare(study, BASE, [MINE], 4)}, tmp_path).read_text()
    top = page[page.index("<h1>") : page.index("<nav>")]
    assert "Supported here: Flow-GRPO SecondHardest beats Flow-GRPO (+0.098 [" in top
    assert top.index("At the end of training</th><td>+0.0985 [+0.0970, +0.1000]</td><td>supported") < top.index("<svg")
    assert all(f"{cell.label} (4 seeds)" in top for cell in (BASE, MINE))


def test_a_comparison_s_page_is_drawn_again_from_its_shards(tmp_path: Path) -> None:
    runs: list[list[RunDirectory]] = []
    for selection in ("medium", "random", "hardest"):
        folders = [tmp_path / "grid" / f"{selection}-{seed}" for seed in range(2)]
        runs.append([RunDirectory(write_run(one, seed=i, selection=selection)) for i, one in enumerate(folders)])
    output, again = tmp_path / "out", tmp_path / "again"
    write_shards(tmp_path / "grid", output / "runs")
    judged(runs, output)
    write_report(output / "runs", again)
    for name in ("report.html", "tables/conclusions.csv", "figures/claims-1.svg"):
        assert (output / name).read_bytes() == (again / name).read_bytes()
    assert "Flow-GRPO hardest beats Flow-GRPO medium" in (again / "tables" / "conclusions.md").read_text()
    # Runs of the same cells that were not compared do not count.
    late = [write_run(tmp_path / "late" / f"{one}-9", seed=9, selection=one, test=0.2) for one in ("medium", "hardest")]
    for folder in late:
        write_shards(folder, output / "runs")
    write_report(output / "runs", again)
    assert (again / "tables" / "conclusions.csv").read_bytes() == (output / "tables" / "conclusions.csv").read_bytes()
    # An experiment beside it is judged as any other.
    write_shards(write_run(tmp_path / "other", experiment="other"), output / "runs")
    write_report(output / "runs", again)
    assert "Flow-GRPO hardest beats Flow-GRPO medium" in (again / "tables" / "conclusions.md").read_text()
    (output / "runs" / DEFINITION).write_text("{1: 2")
    with pytest.raises(ConfigError, match=DEFINITION):
        write_report(output / "runs", again)


def test_a_difference_that_may_be_too_small_to_matter_is_said_to_be_of_little_power(tmp_path: Path) -> None:
    for seed, more in enumerate((0.01, 0.05, 0.02, 0.06)):
        write_run(tmp_path / f"random-{seed}", seed=seed, test=0.75)
        write_run(tmp_path / f"mine-{seed}", seed=seed, selection="SecondHardest", test=0.75 + more)
    [found] = compare(study_of(tmp_path, SPENDING_METRICS), BASE, [MINE], 4).main
    assert (found.verdict, found.power < 0.8) == ("supported", True)
    [said] = cautions([found])
    assert f"power {found.power:.2f}" in said
    assert f"{found.pairs_needed} pairs would tell" in said
    sure = [replace(found, planned=400), replace(found, planned=400, question=found.question._replace(margin=0.09))]
    [unclear, small] = cautions(sure)
    assert "may still be below" in unclear
    assert "is below" in small
    assert not any("power" in one for one in (unclear, small))


def test_a_report_of_cells_without_adagrpo_opens_with_what_each_has_reached(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / f"random-{seed}", seed=seed, test=0.75)
        write_run(tmp_path / f"mine-{seed}", seed=seed, selection="SecondHardest", test=0.8)
    table = head_table(study_of(tmp_path), None)
    assert table is not None
    assert [label for label, _ in table.rows] == [BASE.label, MINE.label]
    assert [entry_text(entry) for entry in table.rows[1][1]] == ["+0.050 ± 0.000", "0.800 ± 0.000", "0.450", "2"]
