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
from harness.experiments import upper_bound as bound
from harness.experiments.choices import Compared
from harness.experiments.corrections import correction_frame, kinds_of, merits
from harness.experiments.gradients import oracle
from harness.experiments.gradients.oracle import CONTROLLED, KINDS, SAME_LENGTH, every_advantage
from harness.experiments.upper_bound import upper_bound


def fabricated(progress: np.ndarray) -> dict[str, Any]:
    """A table of updates whose progress ``[P, N]`` or ``[P, N, 2]`` is known; B 4, 5 steps; rewards are noise."""
    halves = np.broadcast_to(progress if progress.ndim == 3 else progress[:, :, None], (*progress.shape[:2], 2))
    squares = np.ones(halves.shape[:2])
    return {
        "candidates": 4,
        "num_steps": 5,
        "rewards": np.random.default_rng(5).random(squares.shape),
        "updates": {"local": {"projections": halves, "squares": squares}},
    }


def by_name(table: dict[str, Any], *rules: str, rounds: int = 4000) -> pd.DataFrame:
    """Bounds by name, with some rules alone, since each takes as long as all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bound, "TOLD", tuple(map(Compared, rules)))
        return upper_bound(table, rounds).set_index("rule")


def test_a_prompt_that_is_best_by_construction_is_found_and_rules_find_what_they_are_told() -> None:
    progress = np.ones((12, 4))
    progress[3] = 10.0
    table = fabricated(progress)
    table["rewards"] = np.repeat(np.linspace(1, 0, 12), 4).reshape(12, 4)  # prompt 0 is the easiest
    foretelling = {"predicted_hardest", "preview"}
    assert not foretelling & {*by_name(table, *foretelling, rounds=10).index}
    level = np.linspace(0.5, 1, 12)
    level[3] = 0.0  # the hardest by prediction, however its samples came out
    spread = {"mean": [0.2] * 12, "std": [0.1] * 12}
    table["foretold"] = {"m": spread | {"mean": level}, "s": spread, "outcomes": [[0.5, 0.2]] * 12}
    table["previews"] = table["rewards"]
    found = by_name(table, "easiest", "hardest", *foretelling)
    # It is among 4 of 12 in a third of the rounds; the base is (11 + 10) / 12.
    wanted = (1 / 3 * 10 + 2 / 3) / (21 / 12)
    for name in ("oracle", "oracle, same reference", "predicted_hardest"):
        assert found.loc[name, "progress"] == pytest.approx(wanted, rel=0.03)
    # The easiest of four is prompt 3 if that is drawn and 0, 1 and 2 are not: 1/3 of 8/11 7/10 6/9.
    share = 1 / 3 * (8 * 7 * 6) / (11 * 10 * 9)
    assert found.loc["easiest", "progress"] == pytest.approx((1 + 9 * share) / (21 / 12), rel=0.03)
    assert found.loc["hardest", "progress"] == pytest.approx(1 / (21 / 12), rel=0.03)
    costs = {"random": 0, "easiest": 15, "hardest": 15, "predicted_hardest": 0, "preview": 4}
    assert found["forwards"].dropna().to_dict() == costs


def test_equal_prompts_give_one() -> None:
    noisy = 1 + 0.5 * np.random.default_rng(1).normal(size=(40, 8, 1))
    found = upper_bound(fabricated(noisy), 1000).set_index("rule").drop("oracle, all known")  # which is never below
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


def test_a_larger_group_pays_for_its_siblings_and_gains_by_less_noise() -> None:
    table = fabricated(np.random.default_rng(3).random((6, 2, 1)) + 1)
    local = table["updates"]["local"]
    table["updates"]["larger"] = {"projections": local["projections"], "squares": local["squares"] / 4}
    table |= {"group_size": 4, "larger_group": 6, "config": {"rollout": {"branch_indices": [0, 2]}}}
    found = by_name(table, rounds=100).loc["random, larger group"]
    assert found["forwards"] == 2 * (4 + 2)
    assert (found["progress"], found["quality"]) == (1, pytest.approx(2))


def products(gradients: dict[str, np.ndarray], reference: np.ndarray) -> dict[str, Any]:
    """A table of gradients ``[blocks, n, D]`` of each kind, and of reference prompts."""
    sums = {kind: of.sum(axis=1) for kind, of in gradients.items()}
    of_reference, (count, each) = reference.sum(axis=1), next(iter(gradients.values())).shape[:2]
    return {
        "experiment": "known",
        "iteration": 0,
        "blocks": {
            "counts": [each] * count,
            "reference": {
                "counts": [reference.shape[1]] * len(reference),
                "products": np.triu(of_reference @ of_reference.T, 1),
                "length": np.linalg.norm(reference.mean(axis=(0, 1))),
            },
            "kinds": {
                kind: {
                    "products": np.triu(of @ of.T, 1),
                    "with_reference": of @ of_reference.T,
                    "squares": (gradients[kind] ** 2).sum(axis=(1, 2)),
                }
                for kind, of in sums.items()
            },
        },
    }


def test_bias_and_variance_of_known_gradients() -> None:
    random, east = np.random.default_rng(0), np.array([1.0, 0, 0, 0])
    noise = random.normal(size=(16, 40, 4))
    noise -= noise.mean(axis=(0, 1))
    reference = east + 0.1 * random.normal(size=(16, 10, 4))
    gradients = dict.fromkeys(KINDS, east + noise)
    gradients["uncentred"] = 3 * (east + noise)  # a scale changes nothing
    gradients["shrinkage"] = east + 0.5 * noise  # less noise
    gradients["gated"] = np.array([1.0, 1, 0, 0]) + noise  # a bias of 45 degrees
    table = products(gradients, reference)
    kinds = kinds_of(table)
    assert {name: kinds[name].alignment.values[0] for name in ("local", "uncentred", "gated")} == pytest.approx(
        {"local": 1, "uncentred": 1, "gated": np.sqrt(0.5)}, abs=0.03
    )
    noises = {name: kinds[name].noise.values[0] for name in ("local", "uncentred", "shrinkage", "gated")}
    assert noises == pytest.approx({"local": 4, "uncentred": 4, "shrinkage": 1, "gated": 2}, rel=0.15)
    assert kinds["local"].cosine.values[0] == pytest.approx(1 / np.sqrt(5), rel=0.05)
    found = {one.kind: one for one in merits([table, table])}
    assert [kind for kind, one in found.items() if one.named] == ["shrinkage", "uncentred"]
    assert found["shrinkage"].merit.estimate == pytest.approx(np.sqrt(5 / 2), rel=0.05)
    assert found["ema_std"].to_control is None
    frame = correction_frame([table])
    assert set(frame.loc[frame["metric"] == "to_control", "kind"]) == set(CONTROLLED)


def test_a_correction_that_is_worse_for_sure_is_not_named_and_a_tie_goes_to_the_less_biased() -> None:
    random, east = np.random.default_rng(1), np.array([1.0, 0, 0])
    noise = random.normal(size=(16, 40, 3))
    noise -= noise.mean(axis=(0, 1))
    gradients = dict.fromkeys(KINDS, east + noise)
    gradients |= dict.fromkeys(("uncentred", "gated", "ema_std"), east + 3 * noise)
    gradients["shrinkage"] = east + 0.99 * noise

    def named() -> set[str]:
        return {one.kind for one in merits([products(gradients, np.broadcast_to(east, (16, 4, 3)))]) if one.named}

    assert named() == {"shrinkage"}
    gradients["gated"] = east + 0.985 * noise
    gradients["uncentred"] = np.array([1.0, 0.1, 0]) + 0.98 * noise
    assert named() == {"shrinkage", "gated"}


def test_every_fusion_is_among_the_advantages() -> None:
    config = compose("smoke", overrides=["fusion.weight=1"])
    made = every_advantage(torch.tensor([[1.0, 2.0, 6.0]]), 4.0, 2.0, 2.0, config)
    assert tuple(made) == KINDS
    assert made["unbiased"][0].tolist() == pytest.approx([-3, -1.5, 4.5])
    assert made["uncentred"][0].tolist() == pytest.approx([-1.5, -1, 1])
    assert made["prompt_mean"][0].tolist() == pytest.approx([-1 / 7**0.5, 0, 4 / 7**0.5], abs=1e-6)
    for kind in CONTROLLED:
        same = made[kind + SAME_LENGTH][0]
        assert same.norm() == pytest.approx(float(made[kind].norm()))
        torch.testing.assert_close(same / same.norm(), made["local"][0] / made["local"].norm())
    torch.testing.assert_close(made["fused"][0], made["local"][0] + torch.tensor([-3 / 5, -2 / 5, 1.0]).double())


def test_the_committed_tables_have_the_committed_numbers() -> None:
    folder = ROOT / "results" / "oracle"
    committed = pd.read_csv(folder / "rules.csv").set_index(["experiment", "iteration", "rule"])
    tables = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    tables.sort(key=lambda one: (one["experiment"], one["iteration"]))
    for table in tables:
        of_table = committed.loc[(table["experiment"], table["iteration"])]
        again = upper_bound(table, 50).set_index("rule")
        assert again["forwards"].fillna(-1).to_dict() == of_table["forwards"].fillna(-1).to_dict()
        exact = ["random", "random, larger group", "oracle, all known"]  # of no draws of candidates
        pd.testing.assert_frame_equal(again.loc[exact], of_table.loc[exact], check_exact=False, rtol=1e-4)
    pd.testing.assert_frame_equal(
        correction_frame(tables), pd.read_csv(folder / "corrections.csv"), check_exact=False, rtol=1e-4
    )


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["oracle", "--profile", "smoke", *arguments])
    return int(ended.value.code or 0)


def test_a_measurement_is_continued_and_analysed_again_without_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(oracle, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(bound, "ROUNDS", 100)
    small = [
        "rollout={candidates: 2, group_size: 2, branch_indices: [1, 2]}",
        "model.num_steps=4",
        "reward={colour: 1}",
    ]
    small += ["--references", "2", "--prompts", "3", "--noises", "2", "--output", str(tmp_path / "out")]
    assert run(*small) == 0
    table = tmp_path / "out" / "smoke-0.json"
    before = table.read_text()
    content = json.loads(before)
    assert np.shape(content["groups"]) == (3, 2, 2, 2)
    assert np.shape(content["updates"]["larger"]["projections"]) == (3, 2, 2)
    assert content["larger_group"] == 2 + 4 // 3
    assert tuple(content["blocks"]["kinds"]) == KINDS
    assert "8 of 8 updates, 0 seconds left" in capsys.readouterr().out
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
    assert told.count("updates, ") == 1
    assert run(*small, "seed=4") == 2
    assert "is of another measurement" in capsys.readouterr().err
