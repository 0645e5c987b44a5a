"""``runtime.arithmetic``: what fast stands for, and that a run is never called what it is not."""

import sys
from pathlib import Path

import pytest
import torch

import harness.config.arithmetic as arithmetic
import harness.rewards.native.recogniser as recogniser
from harness.config import RunConfig, compose
from harness.foundation import processor
from harness.rewards import RewardError, build_reward
from harness.rewards.native.ocr import OcrReward
from harness.runs.directory import prepare_run
from tests.harness.test_rewards import picture, prompt


def composed(monkeypatch: pytest.MonkeyPatch, has_bf16: bool, *overrides: str) -> RunConfig:
    monkeypatch.setattr(arithmetic, "has_bf16", lambda: has_bf16)
    return compose("smoke", overrides=["runtime.arithmetic=fast", *overrides])


def test_fast_is_said_by_settings_that_name_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fast, exact = composed(monkeypatch, True), compose("smoke")
    assert {name: settings.precision for name, settings in fast.rewards.items()} == {"ocr": "bf16", "ocr-v4": "bf16"}
    fingerprints = {build_reward(name, 1, fast.rewards[name]).fingerprint() for name in fast.rewards}
    assert fingerprints.isdisjoint(build_reward(name).fingerprint() for name in fast.rewards)
    assert prepare_run(fast, tmp_path).run_id != prepare_run(exact, tmp_path).run_id


def test_what_was_set_otherwise_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    config = composed(monkeypatch, True, "rewards.ocr.precision=fp32")
    assert {name: settings.precision for name, settings in config.rewards.items()} == {"ocr": "fp32", "ocr-v4": "bf16"}


def test_without_bfloat16_the_run_is_the_exact_one_and_a_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arithmetic._say_exact.cache_clear()
    assert composed(monkeypatch, False) == compose("smoke")
    composed(monkeypatch, False)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_recogniser_is_not_read_in_another_precision_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recogniser, "has_bf16", lambda: False)
    with pytest.raises(RewardError, match=r"rewards\.ocr\.precision=fp32"):
        OcrReward("ocr", precision="bf16").check_ready()
    monkeypatch.setattr(recogniser, "has_bf16", lambda: True)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(RewardError, match=r"adagrpo\[fast\]"):
        OcrReward("ocr", precision="bf16").check_ready()


@pytest.mark.skipif(not processor.has_bf16(), reason="this processor has no bfloat16")
@pytest.mark.parametrize("name", ["ocr", "ocr-v4"])
def test_in_bfloat16_pictures_keep_their_order(name: str) -> None:
    pytest.importorskip("openvino")
    words = ["harbor", "tin", "quiet", "banjo", "letter"] * 4
    generator = torch.Generator().manual_seed(0)
    noise = torch.linspace(0, 0.4, len(words))[:, None, None, None]
    clean = torch.stack([picture(word, "red", "yellow") for word in words])
    images = ((clean + noise * torch.randn(clean.shape, generator=generator)).clamp(0, 1) * 255).round() / 255
    prompts = [prompt(word, "red", "yellow") for word in words]
    exact, fast = (OcrReward(name, precision=precision).score(images, prompts) for precision in ("fp32", "bf16"))
    assert torch.corrcoef(torch.stack([exact, fast]))[0, 1] > 0.99
    alone = torch.cat([OcrReward(name, precision="bf16").score(images[i : i + 1], prompts[i : i + 1]) for i in (3, 11)])
    assert torch.equal(alone, fast[[3, 11]])
