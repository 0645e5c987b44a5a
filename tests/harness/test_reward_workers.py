"""Rewards computed by other processes: frames, isolated workers, reward servers, and judges behind a URL."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.config import ROOT, RewardConfig
from harness.rewards import RewardError, build_reward
from harness.rewards.remote.frames import FrameError, pack, read_frame, read_reply, read_request, reply, request
from harness.rewards.remote.isolated import IsolatedReward

# --- frames


def through(header: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    return read_frame(io.BytesIO(pack(header, body)))


def test_pictures_prompts_and_scores_travel_unchanged() -> None:
    levels = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    arrived, prompts = read_request(*through(*request(levels, ["a", "ü\n"])))
    assert torch.equal(arrived, levels)
    assert prompts == ["a", "ü\n"]
    scores = {"x": torch.tensor([0.1, float("nan")]), "x/y": torch.tensor([-1e30, 2.0])}
    back = read_reply(*through(*reply(scores)), 2)
    assert list(back) == ["x", "x/y"]
    assert all(torch.equal(back[name].nan_to_num(7), values.nan_to_num(7)) for name, values in scores.items())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the stream ended"),
        (pack({"a": 1}, b"body")[:-1], "the stream ended"),
        (b"Loading model...: 100%", "expected a frame"),
        (b"AGR1" + b"\xff" * 12, "too long"),
        (b"AGR1" + bytes([0, 0, 0, 2]) + bytes(8) + b"{]", "not JSON"),
    ],
)
def test_what_is_no_frame_is_an_error(data: bytes, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        read_frame(io.BytesIO(data))


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"shape": [1, 3, 2, 2], "prompts": ["a"]}, 11),
        ({"shape": [1, 3, 2, 2], "prompts": []}, 12),
        ({"shape": [1, 4, 1, 3], "prompts": ["a"]}, 12),
        ({"shape": [1, 3, 2, -2], "prompts": ["a"]}, 12),
        ({"prompts": ["a"]}, 12),
    ],
)
def test_a_request_whose_parts_do_not_fit_is_an_error(header: dict[str, Any], size: int) -> None:
    with pytest.raises(FrameError):
        read_request(header, bytes(size))


# --- isolated workers: this one is written on the protocol's words alone, and does what each picture's first byte says

WORKER = """
import json, os, struct, sys, time
from pathlib import Path

def read():
    start = sys.stdin.buffer.read(16)
    if not start:
        sys.exit()
    header, body = struct.unpack("!IQ", start[4:])
    return json.loads(sys.stdin.buffer.read(header)), sys.stdin.buffer.read(body)

def write(header, body=b""):
    encoded = json.dumps(header).encode()
    sys.stdout.buffer.write(b"AGR1" + struct.pack("!IQ", len(encoded), len(body)) + encoded + body)
    sys.stdout.buffer.flush()

settings, _ = read()
Path(settings["path"]).with_suffix(".device").write_text(settings["device"])
Path(settings["path"]).with_suffix(".precision").write_text(str(settings["precision"]))
if "broken" in settings["path"]:
    write({"error": "ValueError: no such layer"})
    sys.exit()
write({"ready": True})
flag = Path(settings["path"]).with_suffix(".died")
while True:
    header, body = read()
    count, size = header["shape"][0], 3 * header["shape"][2] * header["shape"][3]
    orders = [body[i * size] for i in range(count)]
    if 1 in orders or (2 in orders and not flag.exists()):
        flag.touch()
        print("a last word", file=sys.stderr, flush=True)
        os.kill(os.getpid(), 9)
    if 3 in orders:
        time.sleep(60)
    if 4 in orders:
        write({"error": "RuntimeError: cannot read this picture"})
        continue
    scores = [float("nan") if order == 5 else order / 255 for order in orders]
    write({"metrics": ["hpsv2"]}, struct.pack(f"={count}f", *scores))
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
    """One picture an order, its first byte."""
    images = torch.zeros(len(orders), 3, 4, 4)
    images[:, 0, 0, 0] = torch.tensor(orders) / 255
    return images


PROMPTS = ["a"] * 10


def test_a_worker_scores_in_order_whatever_the_batch(isolated: Callable[..., IsolatedReward]) -> None:
    orders = [50, 60, 70, 80, 90, 100, 110]
    for batch_size in (3, 7):
        reward = isolated(batch_size=batch_size)
        assert reward.score(pictures(*orders), PROMPTS[:7]).mul(255).round().tolist() == orders


def test_a_worker_killed_in_mid_batch_is_started_again_and_nothing_is_lost(
    isolated: Callable[..., IsolatedReward], capfd: pytest.CaptureFixture[str]
) -> None:
    reward = isolated()
    assert reward.score(pictures(50, DIES_ONCE, 70), PROMPTS[:3]).mul(255).round().tolist() == [50, DIES_ONCE, 70]
    assert "exit code -9: a last word; it is started again" in capfd.readouterr().err


def test_a_worker_killed_between_batches_is_started_again(isolated: Callable[..., IsolatedReward]) -> None:
    reward = isolated()
    first = reward.score(pictures(50), PROMPTS[:1])
    assert reward._worker is not None
    os.kill(reward._worker.process_id, 9)
    assert torch.equal(reward.score(pictures(50), PROMPTS[:1]), first)


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
    with pytest.raises(RewardError, match=f"reward 'hpsv2': image 3: .*{message}") as error:
        reward.score(pictures(50, 60, 70, order, 90), PROMPTS[:5])
    assert error.value.image == 3
    assert "\n" not in str(error.value)
    assert reward.score(pictures(50), PROMPTS[:1]).item() == pytest.approx(50 / 255)


@pytest.mark.parametrize(("wanted", "given"), [("auto", "cuda:3"), ("cpu", "cpu"), ("cuda:1", "cuda:1")])
def test_a_worker_scores_on_the_gpu_of_its_own_process(
    isolated: Callable[..., IsolatedReward], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str, given: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    isolated(device=wanted).score(pictures(50), PROMPTS[:1])
    assert (tmp_path / "model.device").read_text() == given


@pytest.mark.parametrize(
    ("name", "chosen", "given"), [("hpsv3", None, "bf16"), ("hpsv3", "fp32", "fp32"), ("hpsv2", None, "None")]
)
def test_a_worker_is_told_the_precision_that_the_settings_mean(
    isolated: Callable[..., IsolatedReward], tmp_path: Path, name: str, chosen: str | None, given: str
) -> None:
    reward = isolated(name=name, base="twin:hpsv3" if name == "hpsv3" else None, precision=chosen)
    reward._measure_batch((pictures(50) * 255).round().to(torch.uint8), PROMPTS[:1])
    assert (tmp_path / "model.precision").read_text() == given
    assert reward.fingerprint().endswith(f":package:{given}")


def test_a_worker_that_does_not_answer_is_ended(isolated: Callable[..., IsolatedReward]) -> None:
    reward = isolated(timeout_seconds=2.0)
    with pytest.raises(RewardError, match="reward 'hpsv2': image 0: its worker did not answer within 2 s"):
        reward.score(pictures(HANGS), PROMPTS[:1])


def test_a_model_that_does_not_load_is_one_line(isolated: Callable[..., IsolatedReward]) -> None:
    with pytest.raises(
        RewardError, match=r"reward 'hpsv2': the package's model did not load: ValueError: no such layer"
    ):
        isolated("broken.pt").score(pictures(50), PROMPTS[:1])


def test_an_interpreter_that_cannot_be_started_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "python").write_text("no program")
    settings = RewardConfig(backend="package", path=__file__, python=str(tmp_path / "python"))
    with pytest.raises(RewardError, match=r"did not load: \S+/python cannot be started \(Permission denied\)") as error:
        build_reward("hpsv2", 1, settings).score(pictures(50), PROMPTS[:1])
    assert "\n" not in str(error.value)


def test_an_interpreter_is_looked_for_in_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = RewardConfig(backend="package", path=__file__, python="harness/cli.py")
    reward = build_reward("hpsv2", 1, settings)
    assert isinstance(reward, IsolatedReward)
    assert reward.command[0] == str(ROOT / "harness" / "cli.py")


def test_a_missing_environment_names_the_command_that_makes_it(tmp_path: Path) -> None:
    settings = RewardConfig(backend="package", path=__file__, python=str(tmp_path / "python"))
    with pytest.raises(RewardError, match=r"no environment at .*python; make it with `make reward-env REWARD=hpsv2`"):
        build_reward("hpsv2", 1, settings).score(pictures(50), PROMPTS[:1])


def test_scoring_elsewhere_goes_on_in_the_background(isolated: Callable[..., IsolatedReward]) -> None:
    reward = isolated()
    waiting = [reward.submit(pictures(order), PROMPTS[:1]) for order in (50, 60)]
    assert [part()["hpsv2"].mul(255).round().item() for part in waiting] == [50, 60]
    failing = reward.submit(pictures(FAILS), PROMPTS[:1])
    with pytest.raises(RewardError, match="image 0"):
        failing()
