"""Tables hold the numbers computed by hand, with the runs that they come from."""

import json
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from fabricated import WriteRun, study_of

from analysis.cells.labels import ADAGRPO as OURS
from analysis.cells.study import Study
from analysis.formats import Entry, WideTable, entry_text, latex, markdown, write_frame
from analysis.report.tables import (
    COSTS,
    TIMES,
    cell_frame,
    extra_gain_table,
    main_frame,
    main_table,
    paper_table,
)
from analysis.statistics import Interval


@pytest.fixture(scope="module")
def study(same_grid: Path) -> Study:
    return study_of(same_grid)


def test_cells_have_before_after_difference_and_costs(study: Study) -> None:
    table = cell_frame(study).set_index("cell")
    ours = table.loc["Flow-GRPO + AdaGRPO"]
    assert ours["training_reward_before"] == pytest.approx(0.45)
    assert ours["training_reward_after"] == pytest.approx(0.85)
    assert ours["training_reward_sd"] == pytest.approx(0.1 / 2**0.5)
    assert ours["ocr-v4/word_accuracy_after"] == pytest.approx(0.65)
    # Pairs: .80 - .70 and .90 - .74.
    assert (ours["paired_seeds"], ours["difference"]) == (2, pytest.approx(0.13))
    assert ours["difference_sd"] == pytest.approx(0.06 / 2**0.5)
    assert ours["probability_of_improvement"] == 1
    assert ours[["difference_low", "training_reward_low", "paired_correlation"]].isna().all()
    assert (ours["seeds"], ours["compute"], ours["run_ids"]) == (2, 400 + 3 * 20, "ours-0 ours-1")
    assert table.loc["Flow-GRPO"]["paired_seeds"] == 0


def test_only_finished_runs_cost_and_only_seeds_with_a_value_count(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("base-0")
    write_run("base-1", seed=1, test=None)
    write_run("ours-0", selection="curriculum", fusion=True, state="running", test=None)
    table = cell_frame(study_of(tmp_path / "runs")).set_index("cell")
    assert table["seeds"].tolist() == [1, 0]
    assert table["num_finished"].tolist() == [2, 0]
    assert table.loc["Flow-GRPO + AdaGRPO", [*COSTS, *TIMES]].isna().all()


def test_the_main_table_reads_base_adagrpo_difference_and_the_extra_gain_is_relative_to_the_bases(
    study: Study,
) -> None:
    rows = {label: [entry_text(entry) for entry in entries] for label, entries in main_table(study).rows}
    assert {label: texts[0] for label, texts in rows.items()} == {
        "Untrained": "0.450",
        "Flow-GRPO": "0.720 ± 0.028",
        "Flow-GRPO + AdaGRPO": "0.850 ± 0.071",
        "difference": "+0.130 ± 0.042",
    }
    [(label, entries)] = extra_gain_table(study).rows
    # .13 beyond a base that gained .72 - .45; the paper, HPS-v3: (15.0982 - 14.7143) / (14.7143 - 13.2803).
    assert label == "Flow-GRPO + AdaGRPO"
    assert [entry_text(entry) for entry in entries] == ["+48 %", "+24 %", "+27 %", "+38 %"]


def test_a_difference_uses_only_seeds_that_both_have(grid: Path, write_run: WriteRun) -> None:
    write_run("ours-7", seed=7, selection="curriculum", fusion=True, test=0.1)
    write_run("base-8", seed=8, state="running", test=None)
    comparison = study_of(grid).compare(OURS, "training_reward")
    assert comparison.seeds == [0, 1]
    assert comparison.difference == pytest.approx(0.13)


def test_without_a_base_there_is_no_difference(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("ours-0", selection="curriculum", fusion=True)
    study = study_of(tmp_path / "runs")
    assert study.compare(OURS, "training_reward") is None
    assert main_table(study) is None
    assert main_frame(study).empty
    assert extra_gain_table(study) is None


def test_the_untrained_test_of_another_run_of_the_same_model_counts(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("a", base_test=0.4)
    write_run("b", base_test=None, selection="medium")
    write_run("c", base_test=None, selection="hardest", model={"path": "another"})
    table = cell_frame(study_of(tmp_path / "runs")).set_index("selection")
    assert table["training_reward_before"].to_dict() == pytest.approx({"random": 0.4, "medium": 0.4, "hardest": 0.5})
    assert table["before_split"].to_dict() == {"random": "test", "medium": "test", "hardest": "validation"}


def test_the_untrained_test_with_other_steps_does_not_count(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("a", base_test=0.4, evaluation={"judges": ["ocr", "ocr-v4", "colour"], "num_steps": 12})
    write_run("b", base_test=None, selection="medium")
    table = cell_frame(study_of(tmp_path / "runs")).set_index("selection")
    assert table["before_split"].to_dict() == {"random": "test", "medium": "validation"}


def test_models_of_one_name_are_told_apart_by_their_content(write_run: WriteRun, tmp_path: Path) -> None:
    for name, method, base_test in (("a", "flow_grpo", 0.4), ("b", "dance_grpo", None)):
        run = write_run(name, base_test=base_test, method={"kernel": method}, model={"path": f"/{name}/transformer"})
        (run / "identity.json").write_text(json.dumps({"fingerprints": {"model": name}}))
    table = cell_frame(study_of(tmp_path / "runs")).set_index("method")
    assert table["training_reward_before"].to_dict() == pytest.approx({"flow_grpo": 0.4, "dance_grpo": 0.5})
    for method, kind in product(("flow_grpo", "dance_grpo"), ("base", "ours")):
        settings = {"selection": "curriculum", "fusion": True} if kind == "ours" else {}
        name = {"flow_grpo": "a", "dance_grpo": "b"}[method]
        run = write_run(f"{method}-{kind}", seed=1, method={"kernel": method}, model={"path": "m"}, **settings)
        (run / "identity.json").write_text(json.dumps({"fingerprints": {"model": name}}))
    rows = [label for label, _ in main_table(study_of(tmp_path / "runs")).rows]
    assert rows[:3] == ["Untrained, Flow-GRPO", "Untrained, DanceGRPO", "Flow-GRPO"]


def test_the_papers_table_has_its_numbers_and_differences() -> None:
    rows = paper_table().rows
    assert len(rows) == 1 + 3 * 3 * 3
    assert [entry_text(entry) for entry in rows[0][1][:2]] == ["0.3065", "13.2803"]
    at = [label for label, _ in rows].index("Flow-GRPO + AdaGRPO on HPS-v3")
    assert entry_text(rows[at][1][1]) == "15.0982"
    assert entry_text(rows[at + 1][1][1]) == "+0.3839"


def test_numbers_are_written_for_people() -> None:
    nan = float("nan")
    assert entry_text(Entry(nan)) == "–"
    assert entry_text(Entry(-0.0312, 0.02, signed=True)) == "−0.031 ± 0.020"
    assert entry_text(Entry(0.5, 0.2, Interval(0.5, -0.1, 1.1), signed=True)) == "+0.500 [−0.100, +1.100]"
    assert entry_text(Entry(28400, digits=0)) == "28,400"


def test_tables_are_valid_markdown_and_latex() -> None:
    table = WideTable("A & B_c", ["", "50 %"], [("Untrained", [Entry(0.5)]), ("x", [Entry(-1.0, 0.25)])])
    assert markdown(table).splitlines() == [
        "**A & B_c**",
        "",
        "|  | 50 % |",
        "|---|---|",
        "| Untrained | 0.500 |",
        "| x | −1.000 ± 0.250 |",
    ]
    assert latex(table).splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{A \& B\_c}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r" & 50 \% \\",
        r"\midrule",
        r"Untrained & 0.500 \\",
        r"\midrule",
        r"x & $-$1.000 $\pm$ 0.250 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def test_csv_files_hold_the_digits_that_mean_something(tmp_path: Path) -> None:
    # Joined with an empty table, a column is one of objects.
    mixed = pd.Series([0.18708314036483166, None], dtype=object)
    frame = pd.DataFrame({"share": mixed, "zero": [-1e-17, 2.0], "forwards": [12345678, 1], "name": ["a", "b"]})
    write_frame(frame, tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text() == "share,zero,forwards,name\n0.187083,0,12345678,a\n,2,1,b\n"
