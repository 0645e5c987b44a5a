"""Hostile requests, configurations and files: one line or the right answer, soon, and nothing outside.

``make test`` tries a few of each; ``make faults`` sets ADAGRPO_FUZZ=1: 2,000 requests, 2,000 configurations, 800 files.
"""

import json
import os
import random
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from analysis.runs.runlog import RunLog, read_directory
from analysis.runs.shards import read_shard, write_shards
from harness.config import leaves, read_yaml, validate
from harness.experiments.status import status_lines
from harness.foundation.errors import HarnessError
from harness.models.pipelines.lora_files import read_lora
from harness.rewards.native.colour import ColourReward
from harness.rewards.remote.server import RewardServer, _Handler
from harness.rewards.remote.wire import request
from harness.runs.directory import RunDirectory
from harness.runs.identity import read_identity
from harness.trained.checkpoints import find_run_checkpoint
from tests.harness.conftest import Serve

SHARE = float(os.environ.get("ADAGRPO_FUZZ", "0.02"))
WORDS = ['the word "tin" in red on white', 'the word "up" in blue on yellow']
ODD = [b"", b"\x00", b"\xff\xfe", b"[" * 5000, b"9" * 5000, b"\r\n", b"\t", b'"', b": ", "\ufb00\u0301".encode()]
ODD += [b"-1", b"NaN", b"1e999", b"null", b"{}", b"true", b"../../etc/passwd", b"&a [*a, *a]"]
ODD += [b"!!python/object/apply:os.system [id]"]
Draw = random.Random


def outcome(read: Callable[[], Any]) -> Any:
    """What a function returns, or the one line that its error is."""
    try:
        return read()
    except HarnessError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return str(error)


def mutated(content: bytes, draw: Draw) -> bytes:
    """The content with a few pieces cut out, doubled, moved, or put in."""
    for _ in range(draw.randint(1, 3)):
        a, b = sorted(draw.randrange(len(content) + 1) for _ in range(2))
        b = min(b, a + draw.choice((1, 4, 40)))
        kind = draw.randrange(6)
        middle = {0: b"", 1: content[a:b] * 2, 2: draw.choice(ODD), 3: bytes([draw.randrange(256)]),
                  4: content[a:b][::-1], 5: content[a:b]}[kind]  # fmt: skip
        content = content[:a] + middle + content[b:]
        if kind == 5:
            content = content[: max(1, a)]
    return content


# --- requests


def scores_of(body: bytes) -> list[float] | None:
    """What a request asks for, read by another reader than the server's; None if it is none."""
    import base64

    try:
        said = json.loads(body)
        pixels = np.frombuffer(base64.b64decode(said["pixels"], validate=True), np.uint8).reshape(said["shape"])
        pictures = torch.from_numpy(pixels.copy()).float() / 255
        found: list[float] = ColourReward().score(pictures, said["prompts"]).tolist()
        return found
    except Exception:  # noqa: BLE001 - whatever it is, no scores
        return None


def asked(port: int, sent: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to raw bytes; 0 if the connection was closed without."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        try:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: connection.recv(2**16), b""))
        except TimeoutError:
            raise
        except OSError:  # closed by the server
            return 0, b""
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split()
    return (int(words[1]) if len(words) > 1 and words[1].isdigit() else 0), body


def test_no_request_brings_a_server_down_or_gets_a_wrong_score(
    serve: Serve, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Handler, "timeout", 4.0)
    server = RewardServer(ColourReward(), "127.0.0.1", 0, token="secret")
    serve(server)
    levels = torch.randint(0, 256, (2, 3, 32, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole, draw, statuses = request(levels, WORDS), Draw(0), []
    for number in range(round(2000 * SHARE)):
        body = mutated(whole, draw) if number % 2 else whole
        lines = ["POST /score HTTP/1.1", "Host: localhost", "Authorization: Bearer secret"]
        head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
        sent = head.encode() if number % 2 else mutated(head.encode(), draw)
        began = time.monotonic()
        status, answer = asked(server.server_port, sent + body)
        assert time.monotonic() - began < 5, (sent, body[:200])
        assert status in (0, 200) or 400 <= status < 506, (status, sent)
        if status == 200 and b"metrics" in answer:
            wanted = scores_of(body)
            assert wanted is not None, body[:200]
            assert json.loads(answer)["metrics"]["colour"] == pytest.approx(wanted, nan_ok=True)
        statuses.append(status)
    assert statuses.count(200) < 0.7 * len(statuses)
    assert "Traceback" not in capfd.readouterr().err
    assert asked(server.server_port, b"GET /reward HTTP/1.0\r\nAuthorization: Bearer secret\r\n\r\n")[0] == 200


# --- configurations


def second_reader(content: bytes) -> Any:
    """Another reader of YAML than the project's; a tab within a word is one that only libyaml takes."""
    try:
        return yaml.safe_load(content)
    except yaml.YAMLError:
        assert b"\t" in content
        return yaml.load(content, yaml.CSafeLoader)


def test_no_configuration_is_a_traceback_or_means_something_else(lora_run: RunDirectory, tmp_path: Path) -> None:
    whole, draw, path = (lora_run.folder / "config.yaml").read_bytes(), Draw(1), tmp_path / "config.yaml"
    accepted = 0
    for _ in range(round(2000 * SHARE)):
        content = mutated(whole, draw)
        path.write_bytes(content)
        began = time.monotonic()
        config = outcome(lambda: validate(read_yaml(path), str(path)))
        if not isinstance(config, str):
            accepted += 1
            ours, theirs = leaves(config.model_dump(mode="json")), leaves(second_reader(content))
            assert {key: ours[key] for key in theirs if key in ours} == {k: v for k, v in theirs.items() if k in ours}
        assert time.monotonic() - began < 5, content
    assert accepted < 2000 * SHARE
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


# --- files

FINAL = "checkpoints/final/pytorch_lora_weights.safetensors"


def weights(run: RunDirectory) -> dict[str, list[float]]:
    state = run.load_checkpoint() or {}
    return {name: value.flatten().tolist() for name, value in state["parameters"].items()}


def progress(status: dict[str, Any]) -> Any:
    """Of a finished run; of one that is called anything else, what it is called."""
    return [status["iteration"], status["iterations"]] if status["state"] == "finished" else status["state"]


def logged(log: RunLog) -> Any:
    return (log.config, str(log.numbers.to_pydict())) if log.state == "finished" else log.state


READERS: dict[str, Callable[[RunDirectory, Path], Any]] = {
    "checkpoints/iteration-0000001/state.pt": lambda run, path: weights(run),
    "checkpoints/iteration-0000001/manifest.json": lambda run, path: weights(run),
    FINAL: lambda run, path: [find_run_checkpoint(run.folder).label, read_lora(path)][:1],
    "identity.json": lambda run, path: [read_identity(run.folder), None][1],  # it has no checksum
    "status.json": lambda run, path: [status_lines(run.folder.parent)] and progress(run.status()),
    "metrics.jsonl": lambda run, path: logged(read_directory(run.folder)),
    "eval.jsonl": lambda run, path: logged(read_directory(run.folder)),
    "shard.parquet": lambda run, path: logged(read_shard(path)),
}


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_one_line_or_what_it_was(lora_run: RunDirectory, tmp_path: Path, name: str) -> None:
    run, draw, told = RunDirectory(Path(shutil.copytree(lora_run.folder, tmp_path / "run"))), Draw(2), 0
    path, read = run.folder / name, READERS[name]
    if name == "shard.parquet":
        path = write_shards(run.folder, tmp_path / "shards")[0].rename(path)
    whole, before = path.read_bytes(), outcome(lambda: read(run, path))
    assert not isinstance(before, str)
    for number in range(round(100 * max(SHARE, 0.3))):
        at = draw.randrange(len(whole))
        flipped = whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :]
        path.write_bytes(mutated(whole, draw) if number % 2 else flipped)
        began = time.monotonic()
        found = outcome(lambda: read(run, path))
        assert time.monotonic() - began < 5
        if isinstance(found, str):
            told += 1
        else:
            assert found == before
    assert told > 5 or before is None
