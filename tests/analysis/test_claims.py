"""The protocol's rules, on values whose verdict can be told by hand."""

import numpy as np
import pytest

from analysis.claims import (
    PILOT_SEEDS,
    Pair,
    choose_setting,
    judge,
    judge_alone,
    judge_consistency,
    judge_family,
    settle,
    validation_mean,
)
from analysis.statistics import Interval, paired_interval


def pair(*differences: float) -> Pair:
    """Seeds whose treatment is so much above a control that rises from seed to seed."""
    control = 0.5 + 0.01 * np.arange(len(differences))
    return Pair(control + np.array(differences), control)


CLEAR = pair(0.10, 0.12, 0.09, 0.11, 0.10, 0.12)
NOTHING = pair(0.1, -0.1, 0.08, -0.09, 0.05, -0.04)
TINY = pair(0.004, -0.003, 0.002, -0.002, 0.001, -0.002)


@pytest.mark.parametrize(
    ("low", "high", "margin", "verdict"),
    [
        (0.001, 0.3, 0.02, "supported"),
        (0.001, 0.015, 0.02, "supported"),
        (-0.3, -0.001, 0.02, "not supported"),
        (-0.019, 0.019, 0.02, "not supported"),
        (-0.021, 0.019, 0.02, "inconclusive"),
        (-0.019, 0.021, 0.02, "inconclusive"),
        (0.0, 0.1, 0.02, "inconclusive"),
        (-0.001, 0.001, None, "inconclusive"),
    ],
)
def test_the_verdict_is_read_off_the_interval(low: float, high: float, margin: float | None, verdict: str) -> None:
    assert judge(Interval((low + high) / 2, low, high), margin) == verdict


def test_each_rejection_leaves_fewer_claims_to_adjust_for_and_the_first_failure_ends_it() -> None:
    judged = judge_family([NOTHING, CLEAR, None, TINY])
    assert [one.verdict for one in judged] == ["inconclusive", "supported", "no runs yet", "not supported"]
    # Four claims; after the clear one three are left, and none of those can be rejected.
    assert [one.confidence for one in judged] == pytest.approx([1 - 0.05 / 3, 1 - 0.05 / 4, 1 - 0.05 / 3, 1 - 0.05 / 3])
    assert judged[0].interval == paired_interval(*NOTHING, 1 - 0.05 / 3)
    assert judged[2].interval is None


def test_more_claims_ask_for_more_evidence() -> None:
    weak = pair(0.01, 0.05, 0.02, 0.04, -0.01, 0.05)
    assert judge_alone(weak).verdict == "supported"
    assert judge_family([weak, *[None] * 8])[0].verdict == "inconclusive"
    assert judge_family([weak, *[CLEAR] * 8])[0].verdict == "supported"


def test_a_difference_the_other_way_is_not_supported_and_counts_as_found() -> None:
    judged = judge_family([pair(-0.10, -0.12, -0.09, -0.11), CLEAR])
    assert [one.verdict for one in judged] == ["not supported", "supported"]
    assert sorted(one.confidence for one in judged) == pytest.approx([0.95, 0.975])


def test_a_verdict_waits_for_all_planned_pairs() -> None:
    clear = judge_alone(CLEAR)
    assert settle(clear, 6, 6) == clear
    assert settle(clear, 5, 6) == clear._replace(verdict="inconclusive")
    nothing = judge_alone(None)
    assert settle(nothing, 0, 6).verdict == "no runs yet"
    assert settle(nothing, 1, 1).verdict == "inconclusive"


def test_false_verdicts_are_as_rare_as_promised() -> None:
    rng = np.random.default_rng(0)
    false = 0
    for _ in range(400):
        family = [Pair(rng.normal(size=8), np.zeros(8)) for _ in range(4)]
        false += any(one.verdict != "inconclusive" for one in judge_family(family, margin=None))
    # 5 % of 400 are 20; three standard errors more are 33.
    assert false <= 33


def test_the_validation_metric_is_the_mean_of_the_last_three_points() -> None:
    assert validation_mean([0.1, 0.2, 0.6, 0.7, 0.8]) == pytest.approx(0.7)
    assert validation_mean([[0.0, 9.0], [0.3, 1.0], [0.6, 2.0], [0.6, 3.0]]).tolist() == pytest.approx([0.5, 2.0])
    assert validation_mean([0.4]) == pytest.approx(0.4)


def test_tuning_takes_the_best_mean_over_all_pilot_seeds() -> None:
    first, second = PILOT_SEEDS
    values = {
        "lucky": {first: 0.9},
        "usual": {first: 0.70, second: 0.72},
        "equal": {first: 0.71, second: 0.71},
        "worse": {first: 0.80, second: 0.40},
    }
    assert choose_setting(values) == "usual"
    assert choose_setting({"lucky": {first: 0.9}}) is None


def test_a_gain_is_consistent_if_every_judge_sees_it() -> None:
    assert judge_consistency(["supported", "supported"]) == "supported"
    assert judge_consistency(["supported", "inconclusive"]) == "inconclusive"
    assert judge_consistency(["supported", "no runs yet"]) == "inconclusive"
    assert judge_consistency(["supported", "not supported", "no runs yet"]) == "not supported"
    assert judge_consistency(["no runs yet", "no runs yet"]) == "no runs yet"
