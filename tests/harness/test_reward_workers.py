"""Published packages in environments of their own: workers that die, hang, refuse, and what they may need."""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.config import ConfigError, RewardConfig
from harness.rewards import RewardError, build_reward
from harness.rewards.base import ScoringError
from harness.rewards.remote.isolated import IsolatedReward
from harness.rewards.remote.wire import request
from harness.rewards.remote.workers import __main__ as worker

# It does what each picture's first byte says, without importing what takes seconds.
WORKER = """
import base64, json, os, sys, time
from multiprocessing.connection import Connection
from pathlib import Path

settings, pipe = json.loads(sys.argv[1]), Connection(int(sys.argv[2]))
path, answer = Path(settings["path"]), {}
path.with_suffix(".json").write_text(json.dumps({**settings, "environment": dict(os.environ)}))
while True:
    pipe.send_bytes(json.dumps(answer).encode())
    asked = json.loads(pipe.recv_bytes())
    orders = base64.b64decode(asked["pixels"])[::48]
    if 1 in orders or (2 in orders and not path.with_suffix(".died").exists()):
        path.with_suffix(".died").touch()
        print("a last word", file=sys.stderr, flush=True)
        os.kill(os.getpid(), 9)
    if 3 in orders:
        time.sleep(60)
    scores = [float("nan") if order == 5 else order / 255 for order in orders]
    answer = {"error": "cannot read this picture"} if 4 in orders else {"metrics": {settings["name"]: scores}}
"""
DIES, DIES_ONCE, HANGS, FAILS, NOT_A_NUMBER = range(1, 6)
PROMPTS = ["a"] * 10
Isolated = Callable[..., IsolatedReward]


@pytest.fixture
def isolated(tmp_path: Path) -> Iterator[Isolated]:
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "model.pt").write_bytes(b"weights")
    made = []

    def make(name: str = "hpsv2", **settings: Any) -> IsolatedReward:
        reward = IsolatedReward(name, RewardConfig(path=str(tmp_path / "model.pt"), batch_size=2, **settings))
        vars(reward)["command"] = [sys.executable, str(tmp_path / "worker.py")]
        made.append(reward)
        return reward

    yield make
    for reward in made:
        reward.close()


def pictures(*orders: int) -> Tensor:
    """One picture per order, its first byte."""
    images = torch.zeros(len(orders), 3, 4, 4)
    images[:, 0, 0, 0] = torch.tensor(orders) / 255
    return images


def test_a_worker_that_is_killed_is_started_again_and_nothing_is_lost(
    isolated: Isolated, capfd: pytest.CaptureFixture[str]
) -> None:
    reward, orders = isolated(), [50, 60, 70, DIES_ONCE, 90]
    assert reward.score(pictures(*orders), PROMPTS[:5]).mul(255).round().tolist() == orders
    assert "exit code -9: a last word" in capfd.readouterr().err
    assert reward._worker is not None
    os.kill(reward._worker.process_id, 9)  # between batches
    assert reward.score(pictures(50), PROMPTS[:1]).item() == pytest.approx(50 / 255)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (DIES, r"ended with exit code -9: a last word"),
        (FAILS, "cannot read this picture"),
        (NOT_A_NUMBER, "hpsv2 is nan, not finite"),
    ],
)
def test_an_image_that_cannot_be_scored_is_named(isolated: Isolated, order: int, message: str) -> None:
    reward = isolated()
    with pytest.raises(RewardError, match=f"reward 'hpsv2': picture 3: .*{message}") as error:
        reward.score(pictures(50, 60, 70, order, 90), PROMPTS[:5])
    assert error.value.image == 3
    assert "\n" not in str(error.value)
    assert reward.score(pictures(50), PROMPTS[:1]).item() == pytest.approx(50 / 255)


def test_a_worker_gets_its_process_s_gpu_the_precision_that_the_settings_mean_and_no_place_in_the_run(
    isolated: Isolated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_launcher = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"}
    for variable in (*of_launcher, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    process = threading.current_thread()  # every other thread's current GPU is the first one
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3 * (threading.current_thread() is process))
    hpsv3 = {"name": "hpsv3", "base": "twin:hpsv3"}
    for settings, device, precision in (
        (hpsv3, "cuda:3", "bf16"),
        ({**hpsv3, "device": "cpu", "precision": "fp32"}, "cpu", "fp32"),
        ({"device": "cuda"}, "cuda:3", None),
        ({"device": "cuda:1"}, "cuda:1", None),
    ):
        reward = isolated(**settings)
        reward.submit(pictures(50), PROMPTS[:1])()
        told = json.loads((tmp_path / "model.json").read_text())
        assert (told["device"], told["precision"]) == (device, precision)
        assert reward.fingerprint().endswith(f":package:{precision}")
        assert of_launcher.isdisjoint(told["environment"])
        assert told["environment"]["CUDA_VISIBLE_DEVICES"] == "1"


def test_a_gpu_that_is_not_here_is_told_before_anything_is_scored(
    isolated: Isolated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    isolated(device="cuda:0").check_ready()
    with pytest.raises(ConfigError, match=r"rewards\.hpsv2\.device: cuda:1 "):
        isolated(device="cuda:1").check_ready()


def test_a_worker_that_does_not_answer_is_ended(isolated: Isolated) -> None:
    reward = isolated()
    reward.score(pictures(50), PROMPTS[:1])
    worker = reward._worker
    assert worker is not None
    worker._timeout = 0.2
    with pytest.raises(ScoringError, match=r"its worker did not answer within 0\.2 s"):
        reward._ask((pictures(HANGS) * 255).to(torch.uint8), PROMPTS[:1])
    with pytest.raises(ProcessLookupError):
        os.kill(worker.process_id, 0)


def test_a_missing_environment_or_one_that_cannot_be_started_is_one_line(tmp_path: Path) -> None:
    settings = RewardConfig(backend="package", path=__file__, python=str(tmp_path / "python"))
    with pytest.raises(RewardError, match=r"no environment at .*python; make it with `make reward-env REWARD=hpsv2`"):
        build_reward("hpsv2", 1, settings).score(pictures(50), PROMPTS[:1])
    (tmp_path / "python").write_text("no program")
    with pytest.raises(RewardError, match=r"did not load: \S+/python cannot be started \(Permission denied\)\Z"):
        build_reward("hpsv2", 1, settings).score(pictures(50), PROMPTS[:1])


def test_a_worker_answers_each_request_with_scores_or_the_package_s_error_and_ends_with_its_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def score(shown: Any, prompts: Any) -> dict[str, Tensor]:
        assert (shown[0].size, torch.is_grad_enabled()) == ((4, 2), False)
        return {"own": torch.tensor([shown[0].getpixel((3, 1))[2] / int(prompts[0])])}

    ended, (ours, theirs) = threading.Event(), Pipe()
    monkeypatch.setattr(os, "_exit", lambda code: ended.set())
    monkeypatch.setattr(worker, "allow_torchvision", lambda: None)
    package = SimpleNamespace(load=lambda settings: score)
    monkeypatch.setitem(sys.modules, f"{worker.__package__}.own_package", package)
    settings = {"name": "own", "device": "auto", "num_threads": 1}
    try:
        threading.Thread(target=worker.main, args=(settings, theirs), daemon=True).start()
        assert ours.recv_bytes() == b"{}"
        levels = torch.arange(24, dtype=torch.uint8).reshape(1, 3, 2, 4)
        for prompt, answer in (
            ("2", {"metrics": {"own": [11.5]}}),
            ("0", {"error": "ZeroDivisionError: division by zero"}),
        ):
            ours.send_bytes(request(levels, [prompt]))
            assert json.loads(ours.recv_bytes()) == answer
    finally:
        ours.close()
        assert ended.wait(60)


# --- a package's environment has old versions of everything: its worker may need torch, numpy and PIL alone

ALONE = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent}:
            raise ModuleNotFoundError(f"no package {{name!r}} in this environment")

sys.meta_path.insert(0, Absent())
"""


def test_a_worker_needs_nothing_that_its_package_does_not_bring(tmp_path: Path) -> None:
    """Takes as long as a new interpreter takes to import torch."""
    absent = ("pydantic", "transformers", "diffusers", "accelerate", "pandas", "yaml", "onnxruntime", "ImageReward")
    (tmp_path / "sitecustomize.py").write_text(ALONE.format(absent=absent))
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}:$PYTHONPATH exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    for name in ("ImageReward.pt", "med_config.json"):
        (tmp_path / name).write_text("{}")
    settings = RewardConfig(path=str(tmp_path), base=str(tmp_path), python=str(python))
    # The package itself is missing, too, and that is all that is.
    with pytest.raises(RewardError, match="did not load: ModuleNotFoundError: no package 'ImageReward'"):
        build_reward("imagereward", 1, settings).score(torch.ones(1, 3, 32, 32), ["a cat"])
