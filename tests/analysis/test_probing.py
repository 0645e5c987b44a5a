"""What a probe says of rewards whose structure is known."""

import numpy as np
import pytest

from analysis.probing.summary import intraclass_correlation, summary, table


def fabricated(between: float, within: float, prompts: int = 400, noises: int = 10, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 0.5 + between * rng.normal(size=(prompts, 1)) + within * rng.normal(size=(prompts, noises))


@pytest.mark.parametrize(("between", "within"), [(0.3, 0.1), (0.2, 0.2), (0.1, 0.3), (0.0, 0.2)])
def test_the_prompt_s_share_is_that_of_known_components(between: float, within: float) -> None:
    share = intraclass_correlation(fabricated(between, within))
    assert share.estimate == pytest.approx(between**2 / (between**2 + within**2), abs=0.04)
    assert share.low < share.estimate < share.high


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(60):
        share = intraclass_correlation(fabricated(0.2, 0.2, prompts=40, noises=6, seed=seed))
        covered += share.low <= 0.5 <= share.high
    assert covered >= 51  # 95 % of 60, less three standard errors


def test_equal_values_have_no_share() -> None:
    assert np.isnan(intraclass_correlation(np.ones((4, 3))).estimate)


def test_a_summary_tells_spreads_bins_and_agreement() -> None:
    rewards = np.array([[0.0, 0.1], [0.4, 0.6], [0.9, 1.0]])
    groups = np.array([[[0.2, 0.2], [0.0, 1.0]], [[0.5, 0.5], [0.1, 0.3]], [[0.4, 0.4], [0.4, 0.4]]])
    told = summary(rewards, groups, {"same": rewards, "flat": np.ones((3, 2)), "contrary": -rewards})
    assert told["mean"] == pytest.approx(0.5)
    assert told["prompt_mean_bins"] == pytest.approx([1 / 3, 0, 0, 1 / 3, 0, 1 / 3])
    assert told["no_spread"]["estimate"] == pytest.approx(4 / 6)
    assert told["group_std"]["mean"] == pytest.approx((1.0 + 0.2) / 2**0.5 / 6)
    assert told["judges"]["same"] == pytest.approx({"prompts": 1.0, "within_prompts": 1.0})
    assert told["judges"]["contrary"]["prompts"] == pytest.approx(-1.0)
    assert told["judges"]["flat"]["prompts"] is None
    rows = [line.split("|")[1:-1] for line in table({"one": told, "two": told}).splitlines()]
    assert {len(cells) for cells in rows} == {3}
    assert rows[0][1:] == [" one ", " two "]
