"""The response surface finds what was planted, says how sure it is, and is silent where it cannot know."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from analysis.sweep.surface import surface_frames, surface_sentences, surface_tables
from analysis.sweep.tables import DEFINITION, SweepStudy

SPACE: dict[str, Any] = {
    "capability.decay": FloatDistribution(0.5, 0.9),
    "fusion.weight": FloatDistribution(0.01, 10, log=True),
    "selection": CategoricalDistribution(["medium", "hardest"]),
}
OTHERS = ", other settings as they came"
Reward = Callable[[float, float], float]


def sweep_of(reward: Reward, num_trials: int, noise: float = 0.0, objectives: int = 1) -> SweepStudy:
    """Trials with a reward of decay and the weight's decimal exponent, the reference first. At iteration 20 it is half
    as high, and every third trial was pruned there."""
    study, rng = optuna.create_study(directions=["maximize"] * objectives), np.random.default_rng(0)
    named = {"training_reward": "maximize", "compute": "maximize"}
    sought = dict(list(named.items())[:objectives])
    space = {path: {"column": path.split(".")[-1]} for path in SPACE}
    study.set_user_attr(DEFINITION, {"space": space, "objectives": sought, "seeds": [7, 8]})
    lowest_and_highest = SPACE["capability.decay"].low, SPACE["capability.decay"].high
    for number in range(num_trials):
        decay, exponent = (0.8, 0.0) if number == 0 else (rng.uniform(*lowest_and_highest), rng.uniform(-2, 1))
        final = reward(decay, exponent) + noise * rng.normal()
        is_pruned = number % 3 == 2
        curve = [(0, 0.3), (20, final / 2), *([] if is_pruned else [(40, final)])]
        seeds = [{"seed": seed, "run_id": "r", "curve": curve} for seed in ([7] if is_pruned else [7, 8])]
        study.add_trial(
            create_trial(
                state=TrialState.PRUNED if is_pruned else TrialState.COMPLETE,
                params={"capability.decay": decay, "fusion.weight": 10**exponent, "selection": "medium"},
                distributions=SPACE,
                values=[final] * objectives,
                user_attrs={"seeds": seeds} | ({"origin": "reference"} if number == 0 else {}),
            )
        )
    return SweepStudy(study)


def test_a_planted_surface_is_found_exactly_at_both_times() -> None:
    def reward(decay: float, exponent: float) -> float:
        return 0.5 + decay**2 - 0.3 * decay * exponent + 0.1 * exponent

    points, effects = surface_frames(sweep_of(reward, 30))
    assert dict(points.groupby("when")["trials"].first()) == {
        f"seed 7 at iteration 20{OTHERS}": 30,
        f"at the end of training{OTHERS}": 20,
    }
    assert len(points) == 2 * 9
    for row in points.to_dict("records"):
        share = 1 if row["when"].startswith("at the end") else 0.5
        planted = share * (reward(row["decay"], math.log10(row["weight"])) - reward(0.8, 0.0))
        assert [row["difference"], row["low"], row["high"]] == pytest.approx([planted] * 3, abs=1e-6)
    # From the middle of the lowest to that of the highest third of [.5, .9], with the reference's weight.
    of_decay = effects[(effects["parameter"] == "decay") & (effects["trials"] == 20)]
    low, high = 0.7 - 0.2 * 2 / 3, 0.7 + 0.2 * 2 / 3
    assert of_decay["difference"].item() == pytest.approx(high**2 - low**2)
    assert [table.head for table in surface_tables(points)] == [
        ["", "weight 0.0316", "weight 0.316", "weight 3.16"]
    ] * 2


def test_noise_gives_intervals_that_contain_the_truth_and_what_does_not_matter_is_not_claimed() -> None:
    points, effects = surface_frames(sweep_of(lambda decay, exponent: 0.5 + 0.05 * exponent, 60, noise=0.02))
    p = effects.set_index(["trials", "parameter"])["p"]
    assert p[40, "weight"] < 0.001
    assert p[40, "decay"] > 0.05
    of_weight = effects[(effects["parameter"] == "weight") & (effects["trials"] == 40)].iloc[0]
    assert of_weight["low"] < 0.05 * 2 < of_weight["high"]
    assert 0.01 < of_weight["high"] - of_weight["low"] < 0.06
    at_end = points[points["trials"] == 40]
    truth = 0.05 * np.log10(at_end["weight"])
    assert ((at_end["low"] < truth) & (truth < at_end["high"])).sum() >= 8
    assert any(
        "weight changes the reward" in sentence and "p < 0.001" in sentence for sentence in surface_sentences(effects)
    )


def test_rewards_that_never_differ_and_a_range_of_one_value_have_no_surface(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [len(frame) for frame in surface_frames(sweep_of(lambda decay, exponent: 0.0, 30))] == [0, 0]
    monkeypatch.setitem(SPACE, "capability.decay", FloatDistribution(0.8, 0.8))
    points, effects = surface_frames(sweep_of(lambda decay, exponent: 0.1 * exponent, 30))
    assert set(effects["parameter"]) == {"weight"}
    assert all(when.endswith(OTHERS) for when in points["when"])


def test_without_pruning_there_is_one_surface() -> None:
    sweep = sweep_of(lambda decay, exponent: decay, 30)
    kept = [trial for trial in sweep.study.trials if trial.state == TrialState.COMPLETE]
    study = optuna.create_study(direction="maximize")
    study.set_user_attr(DEFINITION, sweep.study.user_attrs[DEFINITION])
    study.add_trials(kept)
    points, _ = surface_frames(SweepStudy(study))
    assert set(points["when"]) == {f"at the end of training{OTHERS}"}


@pytest.mark.parametrize(("num_trials", "objectives"), [(10, 1), (30, 2)])
def test_few_trials_and_several_objectives_have_no_surface(num_trials: int, objectives: int) -> None:
    frames = surface_frames(sweep_of(lambda decay, exponent: 0.5 + decay, num_trials, objectives=objectives))
    assert [len(frame) for frame in frames] == [0, 0]
