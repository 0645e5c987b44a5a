"""Signs of hacking and collapse, and what strategies trained on, as computed by hand from fabricated logs."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from fabricated import WriteRun, study_of

from analysis.cells.chosen import CHOSEN_METRICS, chosen_frame, chosen_table
from analysis.cells.logs import load_logs
from analysis.cells.study import split_studies
from analysis.figures.curves import signs
from analysis.verdicts.stability import stability_frame, stability_table


def add_metrics(run: Path, split: str, iteration: int, per_prompt: dict[str, list[float]]) -> None:
    """Replace metrics of one evaluation."""
    lines = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    for line in lines:
        if (line["split"], line["iteration"]) == (split, iteration):
            line["per_prompt"] |= per_prompt
            line["metrics"] |= {name: sum(values) / len(values) for name, values in per_prompt.items()}
    (run / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def record_steps(run: Path, steps: list[dict[str, Any]]) -> None:
    lines = [{"iteration": i, **step} for i, step in enumerate(steps, start=1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_cell_s_signs_are_those_of_its_test_prompts(write_run: WriteRun, tmp_path: Path) -> None:
    for seed, texture in ((0, 0.02), (1, 0.04)):
        run = write_run(f"base-{seed}", seed=seed, rewards=(0.5, 0.6, 0.75, 0.8), test=0.7 + 0.1 * seed)
        add_metrics(run, "test", 0, {"pictures/texture": [0.01, 0.01]})
        add_metrics(run, "test", 3, {"pictures/texture": [texture, texture]})
    run = write_run("ours-0", selection="curriculum", rewards=(0.5, 0.6, 0.75, 0.8))
    add_metrics(run, "test", 3, {"ocr": [0.9, 0.3], "ocr-v4": [0.5, 0.4]})
    write_run("unfinished", selection="medium", state="running", test=None)
    study = study_of(tmp_path / "runs", ())
    frame = stability_frame(study).set_index("cell")
    assert frame.index.tolist() == ["Untrained", "Flow-GRPO", "Flow-GRPO + curriculum"]
    base = frame.loc["Flow-GRPO"]
    assert base["seeds"] == 2
    assert base["pictures/texture_mean"] == pytest.approx(0.03)
    assert base["pictures/texture_sd"] == pytest.approx(0.02 / math.sqrt(2))
    assert base["seed_sd_mean"] == pytest.approx(0.1 / math.sqrt(2))
    # One deviation, (.6 + .8) / 2 - .75, of both seeds.
    assert base["roughness_mean"] == pytest.approx(math.sqrt(2 / 3) * 0.05)
    assert base["judges_gap_mean"] == pytest.approx(0.1)
    ours = frame.loc["Flow-GRPO + curriculum"]
    assert ours["judges_gap_mean"] == pytest.approx(0.6 - 0.45)
    # |.9 - .5| and |.3 - .4|.
    assert ours["judges_disagreement_mean"] == pytest.approx(0.25)
    assert math.isnan(ours["pictures/texture_mean"])
    untrained = frame.loc["Untrained"]
    assert untrained["pictures/texture_mean"] == pytest.approx(0.01)
    assert untrained["judges_gap_mean"] == pytest.approx(0.1)
    assert math.isnan(untrained["roughness_mean"])


def test_the_table_shows_what_was_logged(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("base")
    study = study_of(tmp_path / "runs", ())
    table = stability_table(study, stability_frame(study))
    assert table.head == ["Cell", "Seeds", "Trained less unseen reader", "Readers' disagreement a word"]
    assert [label for label, _ in table.rows] == ["Untrained", "Flow-GRPO"]
    assert signs(study) == []
    write_run("other", state="running", experiment="other", test=None)
    tables = [stability_table(of, stability_frame(of)) for of in split_studies(load_logs(tmp_path / "runs", ()))]
    assert [of is None for of in tables] == [False, True]


def test_chosen_prompts_are_described_by_rank_reward_and_word(write_run: WriteRun, tmp_path: Path) -> None:
    run = write_run("hardest", selection="hardest", rollout={"candidates": 5})
    prompts = ['the word "ab" in red on white', 'the word "abcdef" in red on white']
    steps = [{"chosen_reward_mean": 0.1, "reward_mean": 0.2, "within_group_std": 0.3, "candidate_reward_mean": 0.5}] * 2
    record_steps(
        run,
        [
            step | {"prompts": [prompt], "ranks": [i]}
            for i, (step, prompt) in enumerate(zip(steps, prompts, strict=True))
        ],
    )
    running = write_run("running", selection="hardest", rollout={"candidates": 5}, state="running", seed=1)
    record_steps(running, [{"prompts": prompts[:1], "ranks": [4], "chosen_reward_mean": 0.9}])
    random = write_run("random", rollout={"candidates": 5})
    record_steps(random, [{"prompts": prompts[:1], "ranks": None}, {"prompts": prompts[:1], "ranks": None}])
    study = study_of(tmp_path / "runs", CHOSEN_METRICS)
    frame = chosen_frame(study).set_index("cell")
    hardest = frame.loc["Flow-GRPO hardest"]
    # Ranks 0 and 1 of 5 candidates; the run that is not finished does not count.
    assert hardest["rank"] == pytest.approx(0.125)
    assert hardest[["letters", "distinct", "chosen_reward_mean"]].tolist() == pytest.approx([4, 1, 0.1])
    base = frame.loc["Flow-GRPO"]
    assert base["distinct"] == 0.5
    assert math.isnan(base["rank"])
    table = chosen_table(study, chosen_frame(study))
    assert table.head[:3] == ["Cell", "Runs", "Rank among candidates"]
    assert len(table.rows) == 2
