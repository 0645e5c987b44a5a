"""Published packages in environments of their own: workers that die, hang, refuse, and what they may need."""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.config import RewardConfig
from harness.rewards import RewardError, build_reward
from harness.rewards.remote.client import Refusal
from harness.rewards.remote.isolated import IsolatedReward

# It does what each picture's first byte says.
WORKER = """
import json, os, sys, time
from pathlib import Path
import torch
from harness.rewards.remote.server import RewardServer

settings = json.loads(sys.argv[1])
Path(settings["path"]).with_suffix(".environment").write_text(json.dumps(dict(os.environ)))
Path(settings["path"]).with_suffix(".settings").write_text(sys.argv[1])
flag = Path(settings["path"]).with_suffix(".died")

def measure(levels, prompts):
    orders = levels[:, 0, 0, 0].tolist()
    if 1 in orders or (2 in orders and not flag.exists()):
        flag.touch()
        print("a last word", file=sys.stderr, flush=True)
        os.kill(os.getpid(), 9)
    if 3 in orders:
        time.sleep(60)
    if 4 in orders:
        raise RuntimeError("cannot read this picture")
    scores = torch.tensor([float("nan") if order == 5 else order / 255 for order in orders])
    return {settings["name"]: scores}

server = RewardServer(measure, {"name": settings["name"]}, "127.0.0.1")
print(json.dumps({"port": server.server_port}), flush=True)
server.serve_forever()
"""
DIES, DIES_ONCE, HANGS, FAILS, NOT_A_NUMBER = range(1, 6)


@pytest.fixture
def isolated(tmp_path: Path) -> Iterator[Callable[..., IsolatedReward]]:
    (tmp_path / "worker.py").write_text(WORKER)
    made = []

    def make(checkpoint: str = "model.pt", name: str = "hpsv2", **settings: Any) -> IsolatedReward:
        (tmp_path / checkpoint).write_bytes(b"weights")
        reward = IsolatedReward(name, RewardConfig(path=str(tmp_path / checkpoint), **settings))
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


PROMPTS = ["a"] * 10


def test_a_worker_that_is_killed_is_started_again_and_nothing_is_lost(
    isolated: Callable[..., IsolatedReward], capfd: pytest.CaptureFixture[str]
) -> None:
    reward, orders = isolated(batch_size=2), [50, 60, 70, DIES_ONCE, 90]
    assert reward.score(pictures(*orders), PROMPTS[:5]).mul(255).round().tolist() == orders
    assert "exit code -9: a last word" in capfd.readouterr().err
    assert reward._worker is not None
    os.kill(reward._worker.process_id, 9)  # between batches
    assert reward.score(pictures(50), PROMPTS[:1]).item() == pytest.approx(50 / 255)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (DIES, r"ended with exit code -9: a last word"),
        (FAILS, "RuntimeError: cannot read this picture"),
        (NOT_A_NUMBER, "hpsv2 is nan, not finite"),
    ],
)
def test_an_image_that_cannot_be_scored_is_named(
    isolated: Callable[..., IsolatedReward], order: int, message: str
) -> None:
    reward = isolated(batch_size=2)
    with pytest.raises(RewardError, match=f"reward 'hpsv2': picture 3: .*{message}") as error:
        reward.score(pictures(50, 60, 70, order, 90), PROMPTS[:5])
    assert error.value.image == 3
    assert "\n" not in str(error.value)
    assert reward.score(pictures(50), PROMPTS[:1]).item() == pytest.approx(50 / 255)


@pytest.mark.parametrize(
    ("name", "wanted", "given", "chosen", "precision"),
    [
        ("hpsv3", "auto", "cuda:3", None, "bf16"),
        ("hpsv3", "cpu", "cpu", "fp32", "fp32"),
        ("hpsv2", "cuda:1", "cuda:1", None, None),
    ],
)
def test_a_worker_is_told_its_process_s_gpu_and_the_precision_that_the_settings_mean(
    isolated: Callable[..., IsolatedReward],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    wanted: str,
    given: str,
    chosen: str | None,
    precision: str | None,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    process = threading.current_thread()  # every other thread's current GPU is the first one
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3 * (threading.current_thread() is process))
    base = "twin:hpsv3" if name == "hpsv3" else None
    reward = isolated(name=name, base=base, device=wanted, precision=chosen)
    reward.submit(pictures(50), PROMPTS[:1])()
    told = json.loads((tmp_path / "model.settings").read_text())
    assert (told["device"], told["precision"]) == (given, precision)
    assert reward.fingerprint().endswith(f":package:{precision}")


def test_a_worker_cannot_join_its_run_s_processes(
    isolated: Callable[..., IsolatedReward], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"}
    for name in (*told, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "1")
    isolated().score(pictures(50), PROMPTS[:1])
    environment = json.loads((tmp_path / "model.environment").read_text())
    assert told.isdisjoint(environment)
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"


def test_a_worker_that_does_not_answer_is_ended(isolated: Callable[..., IsolatedReward]) -> None:
    reward = isolated()
    reward.score(pictures(50), PROMPTS[:1])
    worker = reward._worker
    assert worker is not None
    reward._timeout = 0.5
    with pytest.raises(Refusal, match=r"its worker did not answer within 0\.5 s"):
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
