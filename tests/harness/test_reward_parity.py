"""The comparison with published packages can fail. It is made by ``make check-reward-parity``."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.cli import main
from harness.config import ROOT, RewardConfig
from harness.rewards import RewardError, build_reward, parity
from harness.rewards.files.twin_models import SIZES, pictures, write_hpsv3
from harness.rewards.native.hpsv2 import preprocess
from harness.rewards.native.hpsv3 import HpsV3
from harness.rewards.parity import EVERY_PAIR, TOLERANCE, Comparison, Outcome

SPREAD_OUT = torch.rand(len(EVERY_PAIR), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("package", "project", "problem"),
    [
        (SPREAD_OUT, SPREAD_OUT + 0.5 * TOLERANCE, None),
        (SPREAD_OUT, SPREAD_OUT + 2 * TOLERANCE, "differ by 2e-05, more than 1e-05"),
        (SPREAD_OUT, SPREAD_OUT.index_fill(0, torch.tensor([5]), float("nan")), "differ by nan"),
        (torch.ones(24), torch.ones(24), "spread by less than"),
        (torch.arange(24.0) % 8, torch.arange(24.0) % 8, "spread by less than"),  # prompts count, pictures do not
    ],
)
def test_a_comparison_fails_on_differences_and_on_scores_that_are_all_alike(
    package: torch.Tensor, project: torch.Tensor, problem: str | None
) -> None:
    found = Comparison.of(package, project, EVERY_PAIR).problem
    assert (found is None) if problem is None else (problem in str(found))


FINE = Outcome(EVERY_PAIR, Comparison(5e-7, 0.11, 0.14), {"shuffled prompts": 0.42, "mrope positions": 0.23})
UNNOTICED = replace(FINE, planted={"mrope positions": 1e-6, "shuffled prompts": 0.1})


def check(outcome: Outcome, page: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The command on HPS-v3, whose comparison comes out so."""
    monkeypatch.setattr(parity, "_hpsv3", lambda *_: outcome)
    monkeypatch.setattr(parity.IsolatedReward, "command", ["python"])
    with pytest.raises(SystemExit) as end:
        main(["check-reward-parity", "hpsv3", "--output", str(page)])
    return int(end.value.code or 0)


def test_the_page_has_the_figures_and_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(FINE, tmp_path / "page.md", monkeypatch) == 0
    rows = dict(re.findall(r"^\| (.*?) \| (.*) \|$", (tmp_path / "page.md").read_text(), re.M))
    assert rows["package"] == "hpsv3 1.0.0"
    assert rows["its environment"] == "torch 2.13.0, transformers 4.45.2"
    assert (rows["scores compared"], rows["largest difference"]) == ("24", "5.0e-07")
    assert (rows["spread over pictures (one prompt)"], rows["spread over prompts (one picture)"]) == ("0.11", "0.14")
    assert rows["planted error: mrope positions"] == "0.23"
    assert rows["verdict"] == "the same scores"
    assert "| verdict | the same scores |" in capsys.readouterr().out


def test_a_planted_error_that_goes_unnoticed_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(UNNOTICED, tmp_path / "page.md", monkeypatch) == 1
    assert capsys.readouterr().err == "FAILED hpsv3: mrope positions goes unnoticed\n"
    assert "| verdict | mrope positions goes unnoticed |" in (tmp_path / "page.md").read_text()


def test_a_missing_environment_is_said_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("harness.rewards.remote.isolated.ENVIRONMENTS", tmp_path)
    for reward in ("_hpsv2", "_hpsv3"):
        monkeypatch.setattr(parity, reward, lambda *_: pytest.fail("computed"))
    with pytest.raises(SystemExit) as end:
        main(["check-reward-parity"])
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith("make it with `make reward-env REWARD=hpsv2`\n")


def test_the_planted_errors_are_errors(tmp_path: Path) -> None:
    for picture in pictures()[1:]:
        assert (parity._centre_crop(picture[None]) - preprocess(picture[None])).abs().max() > 0.5
    checkpoint, base = write_hpsv3(tmp_path)
    settings = RewardConfig(path=str(checkpoint), base=str(base), precision="fp32")
    right, wrong = HpsV3(settings), HpsV3(settings)
    wrong.model_class = parity._OnAPlane
    images = pictures()[0][None].float() / 255
    assert (right.score(images, ["a cat"]) - wrong.score(images, ["a cat"])).abs().item() > 100 * TOLERANCE


def test_the_pictures_are_those_of_the_comparison() -> None:
    assert sorted(SIZES) == [(512, 512), (768, 1024), (900, 300)]
    assert [tuple(picture.shape) for picture in pictures()] == [(3, *size) for size in SIZES]
    assert all(picture.dtype == torch.uint8 for picture in pictures())


# --- the commands and the worker that they start


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["check-reward-parity", "clip"], "no package to compare 'clip' with; there are hpsv2, hpsv3"),
        (["serve-reward", "hpsv9"], "unknown reward 'hpsv9': the nearest is"),
        (["serve-reward", "colour", "devise=cpu"], "unknown key 'devise'; the nearest is 'device'"),
        (["serve-reward", "hpsv2", "path=none.pt"], "none.pt is not on this machine"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert expected in said
    assert len(said.strip().splitlines()) == 1


@pytest.fixture
def served() -> Iterator[str]:
    command = [sys.executable, "-u", "-m", "harness.cli", "serve-reward", "colour", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        yield process.stdout.readline()
        process.terminate()


def test_serve_reward_says_what_a_run_needs(served: str) -> None:
    found = re.search(r"rewards\.colour\.backend=url rewards\.colour\.url=(http://127\.0\.0\.1:\d+);", served)
    assert found is not None
    there = build_reward("colour", 1, RewardConfig(backend="url", url=found[1]))
    assert there.fingerprint() == build_reward("colour").fingerprint()
    assert there.score(torch.ones(1, 3, 32, 128), ['the word "tin" in red on white']).shape == (1,)


def test_a_package_that_is_not_installed_is_one_line(tmp_path: Path) -> None:
    for name in ("ImageReward.pt", "med_config.json"):
        (tmp_path / name).write_text("{}")
    settings = RewardConfig(path=str(tmp_path), base=str(tmp_path), python=sys.executable)
    reward = build_reward("imagereward", 1, settings)
    with pytest.raises(RewardError, match="did not load: ModuleNotFoundError: no package 'ImageReward'"):
        reward.score(torch.ones(1, 3, 32, 32), ["a cat"])
