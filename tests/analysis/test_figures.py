"""Figures show what they should, in words that can be searched, and always alike."""

import json
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated import WriteRun, study_of
from matplotlib.figure import Figure

from analysis.cells.chosen import CHOSEN_METRICS
from analysis.cells.labels import ADAGRPO, BASE, SELECTIONS
from analysis.cells.spending import SPENDING_METRICS
from analysis.figures import selection
from analysis.figures.cells import cell_panels, variant_panels
from analysis.figures.chosen import chosen_panels
from analysis.figures.curves import cost_quantities, pair_panels, quantities
from analysis.figures.drawing import draw_panel


def texts(svg: str) -> list[str]:
    return [text.strip() for text in ElementTree.fromstring(svg).itertext() if text.strip()]


@pytest.fixture(scope="module")
def figures(report: Path) -> dict[str, str]:
    """Text of every SVG of a report on two cells, by name."""
    return {path.stem: path.read_text(encoding="utf-8") for path in (report / "figures").glob("*.svg")}


def test_the_main_picture_sets_base_against_adagrpo_beside_the_paper(figures: dict[str, str]) -> None:
    words = texts(figures["main"])
    for word in (
        "Flow-GRPO",
        "The paper: FLUX.1-dev, HPS-v3",
        "base, random prompts (2 seeds)",
        "+ AdaGRPO (2 seeds)",
        "Validation reward (ocr)",
        "Flow-GRPO + AdaGRPO",
    ):
        assert word in words
    assert "no interval below 5 seeds" in " ".join(words)
    # Two cells are no more than the pair, and one strategy without fusion is no comparison of strategies.
    assert set(figures) == {
        "curves-reward-flow_grpo-adagrpo",
        "curves-paper-hpsv3",
        "main",
        "all-cells-flow_grpo",
        "all-cells",
        "curves-reward-by-forwards-flow_grpo-adagrpo",
        "curves-reward-by-reward-calls-flow_grpo-adagrpo",
        "curves-reward-by-seconds-flow_grpo-adagrpo",
        "curves-unseen-accuracy-flow_grpo-adagrpo",
        "curves-paper-hpsv2",
        "curves-paper-hpsv3-clip",
        "claims-1",
    }
    # A cell has one colour everywhere.
    for name in ("main", "all-cells", "curves-unseen-accuracy-flow_grpo-adagrpo"):
        assert BASE.colour.lower() in figures[name]
        assert ADAGRPO.colour.lower() in figures[name]


def test_costs_are_the_axes_of_their_curves(figures: dict[str, str]) -> None:
    by_forwards, by_calls, by_seconds = (
        set(texts(figures[f"curves-reward-by-{cost}-flow_grpo-adagrpo"]))
        for cost in ("forwards", "reward-calls", "seconds")
    )
    # 400 sampled and 20 trained forwards, the latter counting 3, end at 460.
    assert {"400", "(a trained sample counts 3)"} <= by_forwards
    assert {"40", "Reward calls spent on training"} <= by_calls
    assert {"3", "Seconds of training, as recorded"} <= by_seconds


def test_selections_are_drawn_from_the_untrained_model_up(write_run: WriteRun, tmp_path: Path) -> None:
    for selection_name, reward in zip(SELECTIONS, (0.6, 0.5, 0.7, 0.8, 0.9), strict=True):
        for seed in (0, 1):
            write_run(f"{selection_name}-{seed}", selection=selection_name, seed=seed, test=reward + 0.02 * seed)
    [panel] = selection.selection_panels(study_of(tmp_path / "runs", SPENDING_METRICS))
    axes = Figure().subplots()
    panel.draw(axes)
    assert [bar.get_y() for bar in axes.patches] == pytest.approx([0.45] * 5)
    assert [bar.get_y() + bar.get_height() for bar in axes.patches] == pytest.approx([0.61, 0.51, 0.71, 0.81, 0.91])
    assert [len(dots.get_offsets()) for dots in axes.collections] == [2] * 5
    assert [label.get_text() for label in axes.get_xticklabels()] == list(SELECTIONS)
    assert [text.get_text() for text in axes.texts] == ["0.610", "0.510", "0.710", "0.810", "0.910"]


def test_all_cells_show_every_seed_with_fusion_next_to_without(write_run: WriteRun, tmp_path: Path) -> None:
    for fusion in (True, False):
        for selection_name in ("medium", "random"):
            for seed in range(5):
                test = 0.5 + 0.01 * seed + 0.1 * fusion
                write_run(
                    f"{selection_name}-{fusion}-{seed}", seed=seed, selection=selection_name, fusion=fusion, test=test
                )
    [panel] = cell_panels(study_of(tmp_path / "runs", SPENDING_METRICS))
    axes = Figure().subplots()
    panel.draw(axes)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["random", "random + fusion", "medium", "medium + fusion"]
    dots = [c.get_offsets() for c in axes.collections if len(c.get_offsets()) == 5]
    assert [sorted(set(np.asarray(d)[:, 1])) for d in dots] == [[0], [1], [2], [3]]
    assert np.asarray(dots[1])[:, 0] == pytest.approx([0.6, 0.61, 0.62, 0.63, 0.64])
    assert "line: 95 % interval" in panel.note


def test_a_variant_of_many_settings_leaves_room_for_its_axes(write_run: WriteRun, tmp_path: Path) -> None:
    for seed in range(3):
        write_run(f"usual-{seed}", seed=seed)
    optimizer = {"max_grad_norm": 0.01, "weight_ema": 0.995, "tuning": "full", "learning_rate": 1e-5}
    write_run("recipe", optimizer=optimizer, objective={"clip_range": 1e-4, "old_log_prob": "rollout"})
    [panel] = variant_panels(study_of(tmp_path / "runs", SPENDING_METRICS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's, that there is no room
        drawing = draw_panel(panel)
    # In the SVG each line of a label is a text of its own: the cell, and two of settings.
    lines = texts(drawing.svg)
    [cut] = [i for i, line in enumerate(lines) if line.endswith("…")]
    assert lines[cut - 2] == "random"
    assert lines[cut - 1] == "objective.clip_range 0.0001,"
    assert len(lines[cut]) <= 28


def test_bands_are_intervals_from_five_seeds_on(write_run: WriteRun, tmp_path: Path) -> None:
    for seed in range(5):
        write_run(f"base-{seed}", seed=seed, rewards=(0.5, 0.6 + 0.01 * seed, 0.7))
        write_run(f"ours-{seed}", seed=seed, rewards=(0.5, 0.7 + 0.01 * seed, 0.8), selection="curriculum", fusion=True)
    study = study_of(tmp_path / "runs", SPENDING_METRICS)
    [panel] = pair_panels(study, quantities(study)[0])
    assert "band: 95 % interval of the mean" in panel.note
    axes = Figure().subplots()
    panel.draw(axes)
    # A band of each cell, and no line of a single seed.
    assert (len(axes.collections), len(axes.lines)) == (2, 2)
    upper = axes.collections[1].get_datalim(axes.transData)
    assert 0.72 < upper.y1 <= 0.8 + 1e-9


def test_a_curve_of_runs_that_are_not_finished_says_so(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("base")
    write_run("base-1", seed=1, state="failed", test=None)
    for seed in range(2):
        write_run(f"ours-{seed}", seed=seed, selection="curriculum", fusion=True, state="running", test=None)
    study = study_of(tmp_path / "runs", SPENDING_METRICS)
    axes = Figure().subplots()
    pair_panels(study, quantities(study)[0])[0].draw(axes)
    assert axes.get_legend_handles_labels()[1] == ["base, random prompts (1 seed)", "+ AdaGRPO (2 seeds, unfinished)"]


def test_difficulty_is_drawn_of_finished_runs_beside_the_candidates_of_the_cells_drawn(
    write_run: WriteRun, tmp_path: Path
) -> None:
    def write(name: str, reward: float, **settings: Any) -> None:
        step = {"chosen_reward_mean": reward, "candidate_reward_mean": reward + 0.1, "prompts": ["a"], "ranks": [0]}
        lines = "".join(json.dumps({"iteration": i, **step}) + "\n" for i in (1, 2))
        (write_run(name, **settings) / "metrics.jsonl").write_text(lines)

    for seed in range(2):
        write(f"hardest-{seed}", 0.1, selection="hardest", seed=seed)
    write("medium", 0.3, selection="medium")
    write("running", 0.9, selection="medium", seed=1, state="running", test=None)
    write("variant", 0.9, selection="hardest", rollout={"group_size": 15})
    [panel] = chosen_panels(study_of(tmp_path / "runs", CHOSEN_METRICS))
    axes = Figure().subplots()
    panel.draw(axes)
    heights = {str(line.get_label()): line.get_ydata()[0] for line in axes.lines}
    assert heights == pytest.approx({"all candidates": 0.8 / 3, "hardest": 0.1, "medium": 0.3})


def test_bases_that_cost_as_much_are_drawn_beside_adagrpo(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("base")
    write_run("base-1", seed=1)
    write_run("ours", selection="curriculum", fusion=True)
    costs = {"total_sample_forwards": 200, "total_train_forwards": 10, "total_reward_calls": 20}
    for name, group, factor in (("larger", 15, 1.02), ("largest", 20, 1.1)):
        run = write_run(name, rollout={"group_size": group})
        lines = [{"iteration": i, **{key: factor * i * cost for key, cost in costs.items()}} for i in (1, 2)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    study = study_of(tmp_path / "runs", SPENDING_METRICS)
    [panel] = pair_panels(study, cost_quantities(study)[0])
    axes = Figure().subplots()
    panel.draw(axes)
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ["base, random prompts (2 seeds)", "+ AdaGRPO (1 seed)", "base, G 15 (1 seed)"]
