"""The committed measurement of gradients gives the committed numbers, words and figures; signs equal those by hand."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import paper
from analysis.gradients.effects import FUSED, contrasts
from analysis.gradients.report import write_mechanism_report
from analysis.gradients.signs import corrected_signs, needed_weights, sign_errors
from harness.foundation.errors import ConfigError

MEASUREMENT = Path(__file__).parents[2] / "results" / "mechanism"


def test_the_committed_tables_give_the_committed_numbers(tmp_path: Path) -> None:
    """The first checkpoint alone: more take their time."""
    about = json.loads((MEASUREMENT / "about.json").read_text())
    about |= {name: about[name][:1] for name in ("checkpoints", "reference_lengths", "seconds")}
    (tmp_path / "about.json").write_text(json.dumps(about))
    for name in ("units", "blocks"):
        rows = pd.read_parquet(MEASUREMENT / f"{name}.parquet", filters=[("checkpoint", "==", "base")])
        rows.to_parquet(tmp_path / f"{name}.parquet", index=False)
    assert write_mechanism_report(tmp_path).read_text().startswith("# Gradients at fixed checkpoints")
    for name in ("checkpoints", "effects", "comparisons", "signs"):
        ours, theirs = (pd.read_csv(folder / f"{name}.csv") for folder in (tmp_path, MEASUREMENT))
        theirs = theirs[theirs["checkpoint"] == "base"].reset_index(drop=True)
        pd.testing.assert_frame_equal(ours, theirs, rtol=1e-4, atol=1e-8)
    drawn, expected = ({path.name for path in (of / "figures").iterdir()} for of in (tmp_path, MEASUREMENT))
    assert drawn == expected


def test_a_missing_or_broken_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"about\.json: cannot be read"):
        write_mechanism_report(tmp_path)
    shutil.copy(MEASUREMENT / "about.json", tmp_path)
    (tmp_path / "units.parquet").write_text("no parquet")
    with pytest.raises(ConfigError, match=r"units\.parquet: cannot be read"):
        write_mechanism_report(tmp_path)


def test_the_comparisons_are_those_of_the_claims() -> None:
    strategies = ("random", "medium", "curriculum")
    made = list(contrasts(strategies))
    assert [c.treatment[0] for c in made if c.question == "selection"] == ["medium", "curriculum"]
    for question in ("fusion", "kink"):  # no strategy is left out: a claim on fusion is one on all of them
        asked = [c.treatment for c in made if c.question == question]
        assert asked == [(strategy, fused) for strategy in strategies for fused in FUSED]
    for (_, fused), (_, rescaled) in ((c.treatment, c.control) for c in made if c.question == "kink"):
        assert (rescaled.name, rescaled.weight) == ("rescaled", fused.weight)


def test_wrong_signs_of_hand_made_groups() -> None:
    # Capability 2. One group below it, one on both sides; local signs are those of reward - mean.
    rewards = np.array([[0.0, 1.0, 1.5, 1.9], [1.0, 1.6, 2.2, 3.6]])
    local = np.array([[-2.0, -0.2, 0.8, 1.4], [-1.0, -0.4, -0.1, 1.5]])
    global_ = np.array([[-1.0, -0.1, 0.4, 0.7], [-0.7, -0.3, 0.1, 0.9]])
    signs = sign_errors(rewards, local, np.array([2.0, 2.0]))
    assert signs.one_sided.tolist() == [[True] * 4, [False] * 4]
    assert signs.wrong.tolist() == [[False, False, True, True], [False, False, True, False]]
    assert corrected_signs(signs, local, global_, 0.9).sum() == 0
    assert corrected_signs(signs, local, global_, 1.1).tolist() == [[False] * 4, [False, False, True, False]]
    # In a one-sided group global and local agree, so that no weight helps.
    needed = needed_weights(signs, local, global_)
    assert needed[0].tolist() == pytest.approx([math.nan, math.nan, math.inf, math.inf], nan_ok=True)
    assert needed[1, 2] == pytest.approx(1.0)


def test_the_paper_s_examples_need_the_weights_that_are_known_of_them() -> None:
    needed = []
    for _, rows in paper.example_groups().groupby("group", sort=False):
        rewards, local, global_ = (rows[name].to_numpy() for name in ("reward", "local", "global"))
        signs = sign_errors(rewards, local, rows["capability_mean"].to_numpy()[0])
        weights = needed_weights(signs, local, global_)
        needed += weights[np.isfinite(weights)].round(2).tolist()
    assert needed == pytest.approx([5.41, 12.28, 0.96, 2.61], abs=0.01)
