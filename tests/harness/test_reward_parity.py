"""The comparison with published packages can fail. It is made by ``make check-reward-parity``."""

import re
from pathlib import Path

import pytest
import torch

from harness.config import RewardConfig
from harness.rewards.files.twins import write_hpsv3
from harness.rewards.native.hpsv2 import preprocess
from harness.rewards.native.hpsv3 import HpsV3
from tests import parity
from tests.parity import EVERY_PAIR, TOLERANCE, Outcome

SPREAD_OUT = torch.rand(len(EVERY_PAIR), generator=torch.Generator().manual_seed(0))
PLANTED = {"shuffled prompts": 0.42, "mrope positions": 0.23}
FINE = Outcome(SPREAD_OUT, SPREAD_OUT + 0.5 * TOLERANCE, EVERY_PAIR, PLANTED)
ALIKE = torch.arange(24.0) % 8  # prompts count, pictures do not


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        (FINE, "the same scores"),
        (Outcome(SPREAD_OUT, SPREAD_OUT + 2 * TOLERANCE, EVERY_PAIR, PLANTED), "differ by 2e-05, more than 1e-05"),
        (Outcome(SPREAD_OUT, SPREAD_OUT.where(SPREAD_OUT > 0.5, torch.nan), EVERY_PAIR, {}), "differ by nan"),
        (Outcome(torch.ones(24), torch.ones(24), EVERY_PAIR, PLANTED), "spread by less than"),
        (Outcome(ALIKE, ALIKE, EVERY_PAIR, PLANTED), "spread by less than"),
        (Outcome(SPREAD_OUT, SPREAD_OUT, EVERY_PAIR, {"mrope positions": 1e-6}), "mrope positions goes unnoticed"),
    ],
)
def test_a_comparison_fails_on_differences_on_equal_scores_and_on_errors_that_go_unnoticed(
    outcome: Outcome, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity.IsolatedReward, "command", ["python"])
    monkeypatch.setitem(parity.COMPARISONS, "hpsv3", lambda _: outcome)
    assert parity.main(["hpsv3", "--output", str(tmp_path / "page.md")]) == (outcome is not FINE)
    rows = dict(re.findall(r"^\| (.*?) \| (.*) \|$", (tmp_path / "page.md").read_text(), re.M))
    assert (rows["package"], rows["scores compared"]) == ("hpsv3 1.0.0", "24")
    assert verdict in rows["verdict"]


def test_a_missing_environment_is_said_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("harness.rewards.remote.isolated.ENVIRONMENTS", tmp_path)
    monkeypatch.setattr(parity, "COMPARISONS", dict.fromkeys(parity.COMPARISONS, lambda _: pytest.fail("computed")))
    with pytest.raises(SystemExit, match="2"):
        parity.main([])
    assert capsys.readouterr().err.endswith("make it with `make reward-env REWARD=hpsv2`\n")


def test_the_planted_errors_are_errors(tmp_path: Path) -> None:
    for picture in parity.pictures()[1:]:
        assert (parity.centre_crop(picture[None]) - preprocess(picture[None])).abs().max() > 0.5
    checkpoint, base = write_hpsv3(tmp_path)
    settings = RewardConfig(path=str(checkpoint), base=str(base), precision="fp32")
    right, wrong = HpsV3("hpsv3", settings), HpsV3("hpsv3", settings)
    wrong.model_class = parity.OnAPlane
    images = parity.pictures()[0][None].float() / 255
    assert (right.score(images, ["a cat"]) - wrong.score(images, ["a cat"])).abs().item() > 100 * TOLERANCE
