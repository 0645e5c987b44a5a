"""``adagrpo probe``: what is drawn, what is written, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.probing import summary
from harness.cli import main
from harness.config import ROOT, compose
from harness.experiments.choices import choices
from harness.experiments.probe import num_pictures

SMALL = ["--profile", "smoke", "rollout.group_size=2", "rollout.branch_indices=[0,1]", "rollout.candidates=2"]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["probe", *arguments])
    return int(ended.value.code or 0)


def test_a_probe_writes_what_it_measured_of_each_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = ["miniature-luck", "miniature"]
    code = run(*SMALL, "--prompts", "3", "--noises", "2", "--models", *models, "--output", str(tmp_path))
    assert code == 0
    told = capsys.readouterr().out
    for model in models:
        content = json.loads((tmp_path / f"probe-{model}.json").read_text(encoding="utf-8"))
        assert np.shape(content["rewards"]) == (3, 2)
        assert np.shape(content["groups"]) == (3, 2, 2)
        assert content["summary"]["mean"] == pytest.approx(np.mean(content["rewards"]), abs=1e-4)
        assert set(content["summary"]["judges"]) == {"ocr-v4", "colour"}
        assert str(ROOT) not in json.dumps(content)
        assert len(set(map(tuple, content["rewards"]))) == 3
        assert content["summary"]["choices"]["curriculum"]["forwards"] == 8  # one candidate's, the other's is used
    assert content["model"] == "harness/models/miniature/letters"
    for line in (tmp_path / "probe.md").read_text(encoding="utf-8").splitlines():
        assert line in told
        assert line.count("|") in (0, 4)


def test_what_rules_would_choose_of_prompts_that_are_known() -> None:
    levels = torch.linspace(0, 1, 20, dtype=torch.float64)
    rewards = levels[:, None].expand(20, 4)
    # Prompts of the middle have spread, the easiest none.
    spreads = (0.5 - (levels - 0.5).abs())[:, None, None] * torch.tensor([-1.0, 1.0]).double()
    groups = levels[:, None, None] + spreads.expand(20, 3, 2)
    found = choices(rewards, groups, candidates=20, num_steps=8)
    assert found["easiest"].mean == 1
    assert found["hardest"].mean == 0
    assert found["easiest"].flat == 1
    assert found["curriculum"].spread == pytest.approx(spreads.max().item() * 2**0.5, rel=0.1)
    assert found["curriculum"].spread > found["random"].spread > found["hardest"].spread
    assert found["random"].mean == pytest.approx(0.5, abs=0.03)
    assert [found[rule].forwards for rule in ("random", "curriculum", "screened")] == [0, 19 * 8, 19 * 8]
    assert found["random"].mean_error == pytest.approx(levels.std().item() / 20**0.5, rel=0.5)


def test_the_count_of_pictures_is_said_beforehand() -> None:
    anchor = compose("smoke", overrides=["rollout.group_size=4", "rollout.branch_indices=[0,1,2]"])
    assert num_pictures(anchor, 10, 5) == 10 * (5 + 3 * 4)
    full = compose("smoke", overrides=["rollout.group_size=4", "rollout.kind=full_sde", "rollout.branch_indices=[0,1]"])
    assert num_pictures(full, 10, 5) == 10 * (5 + 4)


def test_the_page_of_the_testbed_shows_the_committed_measurements() -> None:
    folder = ROOT / "results" / "testbed"
    tables = (folder / "probe.md").read_text(encoding="utf-8").split("\n\n")
    for page, table in zip(("testbed.md", "selection.md"), tables, strict=True):
        assert table.strip() in (ROOT / "docs" / page).read_text(encoding="utf-8")
    for model in ("miniature-luck", "miniature-weak", "letters-luck", "miniature"):
        content = json.loads((folder / f"probe-{model}.json").read_text(encoding="utf-8"))
        again = summary(content["rewards"], content["groups"], {})
        assert again["mean"] == pytest.approx(content["summary"]["mean"], abs=1e-4)
        share = content["summary"]["prompt_share"]["estimate"]
        assert again["prompt_share"]["estimate"] == pytest.approx(share, abs=2e-3)
