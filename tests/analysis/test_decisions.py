"""The rule of verdicts: what it decides on plain cases, that it keeps its level, and that its power is the planned."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.decisions import (
    LEVEL,
    LOOKS,
    OUTCOMES,
    Contrast,
    Question,
    contrast,
    decide,
    equivalence_power,
    pairs_needed,
    power,
)

MARGIN, PAPER = 0.03, 0.08
RUNS = Path(__file__).parents[2] / "results" / "miniature-study" / "tables" / "runs.csv"


def test_one_stratum_is_students_paired_t():
    differences = np.array([0.02, -0.01, 0.05, 0.03])
    found = contrast([differences])
    expected = stats.ttest_1samp(differences, 0, alternative="greater")
    assert found.p_above(0) == pytest.approx(expected.pvalue)
    assert found.p_below(0) == pytest.approx(1 - expected.pvalue)
    low, high = found.bounds()
    assert found.p_above(low) == pytest.approx(LEVEL)
    assert found.p_below(high) == pytest.approx(LEVEL)


def test_strata_count_alike_whatever_their_size():
    found = contrast([[0.1, 0.2], [0.0, 0.0, 0.3, 0.3]])
    assert found.mean == pytest.approx(0.15)
    assert found.error == pytest.approx(math.sqrt(0.005 / 2 + 0.03 / 4) / 2)
    assert 1 < found.degrees <= 4


@pytest.mark.parametrize(
    ("mean", "error", "paper", "verdict"),
    [
        (0.05, 0.01, PAPER, "supported"),
        (-0.05, 0.01, PAPER, "opposite"),
        (0.00, 0.01, PAPER, "equivalent"),
        (0.00, 0.00, PAPER, "equivalent"),  # equal runs
        (0.02, 0.03, PAPER, "smaller than the paper's"),
        (0.02, 0.03, None, "undecided"),
        (0.05, 0.05, PAPER, "undecided"),
        (0.02, 0.001, PAPER, "supported"),  # within the margin, but found
    ],
)
def test_each_verdict(mean, error, paper, verdict):
    assert decide([Question(Contrast(mean, error, 20), MARGIN, paper)])[0].verdict == verdict


def test_a_claim_without_runs_counts_in_its_family():
    found = Question(Contrast(0.0175, 0.01, 1000), MARGIN, None)
    assert decide([found])[0].verdict == "supported"
    assert [d.verdict for d in decide([found, Question(None, MARGIN, None)])][1] == "undecided"
    assert decide([found, Question(None, MARGIN, None)])[0].p_values["supported"] > LEVEL


def _with_dips(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Scores of runs as training leaves them: most alike, one in ten lower by several standard deviations."""
    scores = generator.normal(0, 0.02, shape)
    return scores - generator.binomial(1, 0.1, shape) * generator.uniform(0.05, 0.15, shape)


@pytest.mark.parametrize("pairs", [3, 24])
def test_false_verdicts_keep_to_the_level(pairs):
    """Nine claims of three strata, no true difference, training noise with dips: any false verdict, by kind."""
    generator, trials = np.random.default_rng(1), 100
    wrong = dict.fromkeys(OUTCOMES, 0)
    for _ in range(trials):
        differences = _with_dips(generator, (9, 3, pairs)) - _with_dips(generator, (9, 3, pairs))
        decisions = decide([Question(contrast(strata), MARGIN, None) for strata in differences])
        for kind in ("supported", "opposite"):
            wrong[kind] += any(decision.verdict == kind for decision in decisions)
    assert max(wrong["supported"], wrong["opposite"]) / trials <= _limit(trials)


def _limit(trials: int) -> float:
    """Three standard errors above the level: of a share in so many trials."""
    return LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / trials)


def _share(kind: str, differences: np.ndarray, paper: float | None = None) -> float:
    """How often one claim comes out as a kind of verdict, of ``[trials, pairs]``."""
    decisions = (decide([Question(contrast([of_trial]), MARGIN, paper)])[0] for of_trial in differences)
    return float(np.mean([decision.p_values[kind] <= LEVEL for decision in decisions]))


def _real_scores() -> np.ndarray:
    """Test rewards of the committed study's runs that differ by seed alone, as deviations from their cell's mean."""
    runs = pd.read_csv(RUNS)
    finished = runs[
        (runs["state"] == "finished") & (runs["reward"] == "ocr") & (runs["experiment"] == "miniature-study")
    ]
    of_cells = finished.groupby("cell")["test_training_reward"]
    large = of_cells.transform("size") >= 10
    return (finished["test_training_reward"] - of_cells.transform("mean"))[large].to_numpy()


@pytest.mark.parametrize(("strata", "pairs"), [(1, 10), (3, 3), (3, 8)])
def test_two_cells_of_equal_runs_are_rarely_told_apart(strata, pairs):
    """A/A: differences of real runs drawn at random, in which there is nothing to find."""
    scores, generator, trials = _real_scores(), np.random.default_rng(6), 500
    assert len(scores) > 100
    wrong = 0
    for _ in range(trials):
        ours, theirs = generator.choice(scores, (2, strata, pairs))
        wrong += decide([Question(contrast(ours - theirs), MARGIN, None)])[0].p_values["supported"] <= LEVEL
    assert LEVEL / 5 <= wrong / trials <= _limit(trials)


def test_a_true_margin_is_rarely_called_equivalent_and_the_papers_gain_rarely_smaller():
    draws = np.random.default_rng(2).normal(0, 0.04, (500, 16))
    assert _share("equivalent", draws + MARGIN) <= _limit(500)
    assert _share("smaller than the paper's", draws + PAPER, PAPER) <= _limit(500)


def test_an_early_look_keeps_the_level_too():
    assert sum(LOOKS) == pytest.approx(LEVEL)
    generator, trials, wrong = np.random.default_rng(3), 500, 0
    for _ in range(trials):
        differences = generator.normal(0, 0.05, 20)
        looks = ((differences[:10], LOOKS[0]), (differences, LOOKS[1]))
        wrong += any(
            decide([Question(contrast([d]), MARGIN, None)], level)[0].verdict == "supported" for d, level in looks
        )
    assert wrong / trials <= _limit(trials)


def test_planned_pairs_find_effects_and_equivalence_with_the_planned_power():
    pairs, generator = pairs_needed(0.03, 0.05), np.random.default_rng(4)
    assert pairs is not None
    assert power(0.03, 0.05, pairs) >= 0.8 > power(0.03, 0.05, pairs - 1)
    found = _share("supported", generator.normal(0.03, 0.05, (500, pairs)))
    assert found == pytest.approx(power(0.03, 0.05, pairs), abs=0.05)
    found = _share("equivalent", generator.normal(0, 0.05, (500, 40)))
    assert found == pytest.approx(equivalence_power(MARGIN, 0.05, 40), abs=0.05)
    assert pairs_needed(0.0, 0.05, most=1000) is None
    assert equivalence_power(0.01, 0.05, 3) == 0
    # Three strata of two pairs each: Student's t of the pooled variance, on 3 degrees of freedom.
    strata = generator.normal(0.05, 0.05, (4000, 3, 2))
    t = strata.mean((1, 2)) / np.sqrt(strata.var(axis=2, ddof=1).mean(axis=1) / 6)
    assert power(0.05, 0.05, 2, strata=3) == pytest.approx((t > stats.t.ppf(1 - LEVEL, 3)).mean(), abs=0.03)
