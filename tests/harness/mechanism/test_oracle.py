"""``adagrpo oracle``: what its table says where the answer is known, and a measurement from end to end."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from harness.cli import main
from harness.config import ROOT, compose
from harness.experiments.gradients import oracle
from harness.experiments.gradients.oracle import KINDS, every_advantage
from harness.experiments.upper_bound import upper_bound


def fabricated(progress: np.ndarray) -> dict[str, Any]:
    """A table of updates whose progress ``[P, N]`` or ``[P, N, 2]`` is known; B 4, 5 steps; rewards are noise."""
    halves = np.broadcast_to(progress if progress.ndim == 3 else progress[:, :, None], (*progress.shape[:2], 2))
    squares = np.ones(halves.shape[:2])
    return {
        "candidates": 4,
        "num_steps": 5,
        "rewards": np.random.default_rng(5).random(squares.shape),
        "projections": {"local": halves},
        "squares": {"local": squares},
    }


def by_name(table: dict[str, Any], rounds: int = 4000) -> pd.DataFrame:
    frame = upper_bound(table, rounds)
    return frame[frame["what"] == "rule"].set_index("name")


def test_a_prompt_that_is_best_by_construction_is_found_and_rules_find_what_rewards_tell() -> None:
    progress = np.ones((12, 4))
    progress[3] = 10.0
    table = fabricated(progress)
    table["rewards"] = np.repeat(np.linspace(1, 0, 12), 4).reshape(12, 4)  # prompt 0 is the easiest
    found = by_name(table)
    # It is among 4 of 12 in a third of the rounds; the base is (11 + 10) / 12.
    wanted = (1 / 3 * 10 + 2 / 3) / (21 / 12)
    for name in ("oracle", "oracle, same reference"):
        assert found.loc[name, "progress"] == pytest.approx(wanted, rel=0.03)
    # The easiest of four is prompt 3 if that is drawn and 0, 1 and 2 are not: 1/3 of 8/11 7/10 6/9.
    share = 1 / 3 * (8 * 7 * 6) / (11 * 10 * 9)
    assert found.loc["easiest", "progress"] == pytest.approx((1 + 9 * share) / (21 / 12), rel=0.03)
    assert found.loc["hardest", "progress"] == pytest.approx(1 / (21 / 12), rel=0.03)
    assert found["forwards"].fillna(-1).to_dict() == {"random": 0} | (
        {name: -1 if name.startswith("oracle") else 15 for name in found.index.drop("random")}
    )


def test_equal_prompts_give_one() -> None:
    noisy = 1 + 0.5 * np.random.default_rng(1).normal(size=(40, 8, 1))
    found = by_name(fabricated(noisy)).drop("oracle, all known")  # which is never below
    assert (found[["progress", "quality"]] - 1).abs().max().max() < 0.1
    assert (found["progress_low"] <= 1).all()
    assert (found["progress_high"] >= 1).all()


def test_the_noise_of_updates_and_of_the_reference_is_no_gain() -> None:
    random = np.random.default_rng(2)
    # What a half of the reference gets wrong favours a prompt in all of its noises.
    wrong = 2 * random.normal(size=(60, 1, 2))
    found = by_name(fabricated(1 + random.normal(size=(60, 6, 1)) + wrong - wrong.mean(axis=0)))
    honest, flattered = found["progress"]["oracle"], found["progress"]["oracle, same reference"]
    assert found["progress_low"]["oracle"] < 1 < found["progress_high"]["oracle"]
    assert honest < 1.4 < flattered
    assert found["progress_low"]["oracle, all known"] == pytest.approx(1)


def test_what_is_known_of_prompts_does_not_bound_the_oracle_that_knows_all() -> None:
    random = np.random.default_rng(4)
    of_prompts, of_noises, of_reference = (random.normal(size=size) for size in ((600, 1, 1), (600, 4, 1), (600, 4, 2)))
    known = by_name(fabricated(1 + 0.5 * of_prompts + of_noises + 0.5 * of_reference))["progress"]
    # The mean of the best of four standard normals is 1.029.
    assert known["oracle, all known"] == pytest.approx(1 + 0.5 * 1.029, abs=0.1)
    assert known["oracle"] < known["oracle, all known"] - 0.1


def test_quality_is_unmoved_by_scale_and_advantages_pay_for_the_capability() -> None:
    rates = {"unbiased": np.full((6, 2), 2.0), "fused": np.full((6, 2), 3.0)}
    table = fabricated(np.random.default_rng(3).random((6, 2, 1)) + 1)
    table["projections"] |= {kind: table["projections"]["local"] * rate[:, :, None] for kind, rate in rates.items()}
    table["squares"] |= {kind: rate**2 for kind, rate in rates.items()}
    frame = upper_bound(table, 100)
    kinds = frame[frame["what"] == "advantage"].set_index("name")
    assert kinds["progress"].to_dict() == pytest.approx({"local": 1, "unbiased": 2, "fused": 3})
    assert kinds["quality"].tolist() == pytest.approx([1, 1, 1])
    assert kinds["forwards"].to_dict() == {"local": 0, "unbiased": 0, "fused": 15}


def test_every_fusion_is_among_the_advantages() -> None:
    config = compose("smoke", overrides=["fusion.weight=1"])
    made = every_advantage(torch.tensor([[1.0, 2.0, 6.0]]), 4.0, 2.0, config)
    assert tuple(made) == KINDS
    assert made["unbiased"][0].tolist() == pytest.approx([-3, -1.5, 4.5])
    assert made["uncentred"][0].tolist() == pytest.approx([-1.5, -1, 1])
    torch.testing.assert_close(made["fused"][0], made["local"][0] + torch.tensor([-3 / 5, -2 / 5, 1.0]).double())


def test_the_committed_table_has_the_committed_numbers() -> None:
    folder = ROOT / "results" / "oracle"
    again = upper_bound(json.loads((folder / "oracle.json").read_text(encoding="utf-8")), 50)
    committed = pd.read_csv(folder / "oracle.csv")
    exact = (committed["what"] == "advantage") | (committed["name"] == "oracle, all known")  # of no draws of candidates
    pd.testing.assert_frame_equal(again[exact], committed[exact], check_exact=False, rtol=1e-4)
    assert again["name"].tolist() == committed["name"].tolist()


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["oracle", "--profile", "smoke", *arguments])
    return int(ended.value.code or 0)


def test_a_measurement_is_continued_and_analysed_again_without_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(oracle, "RUNS", tmp_path / "runs")
    small = ["rollout={candidates: 2, group_size: 2, branch_indices: [0, 1]}", "--references", "4"]
    small += ["--prompts", "3", "--noises", "2", "--output", str(tmp_path / "out")]
    assert run(*small) == 0
    table = tmp_path / "out" / "oracle.json"
    before = table.read_text()
    content = json.loads(before)
    assert np.shape(content["groups"]) == (3, 2, 2, 2)
    assert {kind: np.shape(of) for kind, of in content["projections"].items()} == dict.fromkeys(KINDS, (3, 2, 2))
    assert "10 of 10 updates, 0 minutes left" in capsys.readouterr().out
    page, figure = (tmp_path / "out" / name for name in ("oracle.md", "quality.svg"))
    assert "oracle, same reference" in page.read_text()
    figure.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(oracle, "make_sampler", None)
        assert run(*small) == 0
    assert figure.exists()
    # Of what is kept only what is missing is computed again, to the same numbers.
    next((tmp_path / "runs").rglob("pool-*")).unlink()
    table.unlink()
    assert run(*small) == 0
    assert table.read_text() == before
    told = capsys.readouterr().out
    assert told.count("minutes left") == 1
    assert run(*small, "seed=4") == 2
    assert "is of another measurement" in capsys.readouterr().err
