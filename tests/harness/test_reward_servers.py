"""Rewards over HTTP: reward servers, chat models at an OpenAI-compatible address, and addresses of something else."""

import json
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.cli import main
from harness.config import RewardConfig
from harness.rewards import Reward, RewardError, build_reward
from harness.rewards.native.colour import ColourReward
from harness.rewards.remote import client
from harness.rewards.remote.server import RewardServer, _Handler
from harness.rewards.remote.wire import MALFORMED, TOKEN_VARIABLE, is_loopback, read_reply, read_request, request
from tests.harness.conftest import Serve

WORDS = ['the word "tin" in red on white', 'the word "up" in blue on yellow', 'the word "oak" in black on white']


def noise(count: int = 3) -> Tensor:
    return (torch.rand(count, 3, 32, 128, generator=torch.Generator().manual_seed(0)) * 255).round() / 255


def here(reward: Reward | None = None, port: int = 0, token: str | None = None) -> RewardServer:
    return RewardServer(reward or ColourReward(), "127.0.0.1", port, token)


def at(url: str, name: str = "colour", **settings: Any) -> Reward:
    return build_reward(name, 1, RewardConfig.model_validate({"backend": "url", "url": url, **settings}))


def scores_at(url: str) -> bool:
    """Whether the reward at an address scores a picture as it does here."""
    return torch.equal(at(url).score(noise(1), WORDS[:1]), ColourReward().score(noise(1), WORDS[:1]))


def free_port() -> int:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        return server.server_port


def answer_to(server: RewardServer, sent: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to raw bytes."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as connection:
        connection.sendall(sent)
        head, _, body = b"".join(iter(lambda: connection.recv(2**16), b"")).partition(b"\r\n\r\n")
    return int(head.split()[1]), body


# --- the wire


ONE = json.loads(request((noise(1) * 255).to(torch.uint8), WORDS[:1]))
NO_REQUESTS = (
    b"", b"[" * 200_000, b"\xff\xfe{}", b"[1]", b"{}",
    *(json.dumps(ONE | change).encode() for change in (
        {"shape": [1, 3, 32, 127]}, {"shape": [1, 3, -32, -128]}, {"shape": [3, 1, 32, 128]}, {"shape": "x"},
        {"shape": [1, 12288]}, {"prompts": []}, {"prompts": [1]}, {"prompts": "a"}, {"pixels": "?"}, {"pixels": None},
    )),
)  # fmt: skip


def test_what_is_no_request_or_no_reply_is_an_error() -> None:
    assert read_request(json.dumps(ONE | {"prompts": ["\u00fc\n"]}).encode())[1] == ["\u00fc\n"]
    for body in NO_REQUESTS:
        with pytest.raises(MALFORMED):
            read_request(body)
    for metrics in (None, [], {}, {"a": [1.0]}, {"a": "xy"}, {"a": [[1, 2]]}, {"a": [1, 10**400]}, {"b": [1, 2]}):
        with pytest.raises(MALFORMED):
            read_reply({"metrics": metrics}, "a", 2)


# --- servers


def test_a_served_reward_is_the_same_reward(serve: Serve) -> None:
    local, url = build_reward("colour"), serve(here())
    there = at(url, batch_size=2)
    assert (there.fingerprint(), there.resolution) == (local.fingerprint(), local.resolution)
    ours, theirs = local.measure(noise(), WORDS), there.measure(noise(), WORDS)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(ValueError, match="is not one the miniature can draw"):
        there.check_prompt("a cat")
    with pytest.raises(RewardError, match="serves 'colour'"):
        at(url, "hpsv3").fingerprint()


class Broken(ColourReward):
    """Cannot score the third word: says so of its own batch, or without a number."""

    image: int | None = 0

    def measure(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        if WORDS[2] in prompts:
            number = "" if self.image is None else f"picture {self.image}: "
            raise RewardError(f"reward 'colour': {number}colour is nan, not finite", self.image)
        return super().measure(images, prompts)


@pytest.mark.parametrize(("image", "batch_size"), [(0, 2), (None, 2), (None, 8)])
def test_an_image_that_a_server_cannot_score_has_the_number_it_has_here(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, image: int | None, batch_size: int
) -> None:
    monkeypatch.setattr(Broken, "image", image)
    there = at(serve(here(Broken())), batch_size=batch_size)
    with pytest.raises(RewardError, match=r"^reward 'colour': picture 2: .*colour is nan, not finite$") as error:
        there.score(noise(), WORDS)
    assert error.value.image == 2
    assert there.score(noise(1), WORDS[:1]).isfinite().all()


def test_a_restarted_server_loses_nothing_and_one_with_another_model_is_refused(
    serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    class Other(ColourReward):
        def fingerprint(self) -> str:
            return "other weights"

    port = free_port()
    there = at(f"http://127.0.0.1:{port}", timeout_seconds=60)
    vars(there)["_about"] = {"fingerprint": ColourReward().fingerprint()}  # asked before training
    asked = there.submit(noise(1), WORDS[:1])
    while "asked again for 60 s" not in (said := capfd.readouterr().err):
        assert not said
    serve(here(port=port))
    assert torch.equal(asked()["colour"], ColourReward().score(noise(1), WORDS[:1]))
    other = at(serve(here(Other())))
    vars(other)["_about"] = vars(there)["_about"]
    with pytest.raises(RewardError, match=r"scores with another model than it had when it was first asked"):
        other.score(noise(1), WORDS[:1])


def test_what_waits_behind_a_failure_is_not_tried_nor_what_a_server_would_not_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = at(f"http://127.0.0.1:{free_port()}", timeout_seconds=0.3)
    waiting = [there.submit(noise(1), WORDS[:1]) for _ in range(3)]
    for part, message in zip(waiting, ["cannot be reached", *["not asked, since"] * 2], strict=True):
        with pytest.raises(RewardError, match=message):
            part()
    with pytest.raises(RewardError, match="cannot be reached"):
        there.submit(noise(1), WORDS[:1])()
    monkeypatch.setattr(client, "LONGEST_REQUEST", 100)
    with pytest.raises(RewardError, match=r"lower rewards\.colour\.batch_size"):
        there.score(noise(1), WORDS[:1])


@pytest.mark.parametrize("name", ["hpsv3", "unifiedreward-v1"])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (None, "cannot be reached"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "cannot be reached .*BadStatusLine"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", "answers no JSON object but b'<html>'"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"a": 1}', "is no reward server|but none"),
        (b'HTTP/1.1 404 No\r\nContent-Length: 16\r\n\r\n{"detail": "no"}', r'answered 404: \{"detail": "no"\}'),
    ],
)
def test_an_address_of_something_else_is_one_line(serve: Serve, name: str, body: bytes | None, message: str) -> None:
    class Says(BaseHTTPRequestHandler):
        def handle(self) -> None:
            self.connection.recv(10_000)
            self.connection.sendall(body or b"")

    url = f"http://127.0.0.1:{free_port()}" if body is None else serve(ThreadingHTTPServer(("127.0.0.1", 0), Says))
    with pytest.raises(RewardError, match=rf"\Areward '{name}': {url}[^\n]*({message})[^\n]*\Z"):
        at(url, name).check_ready()
    with pytest.raises(ValueError, match=rf"rewards.{name}.url is missing"):
        build_reward(name, 1, RewardConfig(backend="url"))


@pytest.mark.parametrize(
    ("sent", "code", "reason"),
    [
        (b"POST /score HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", 400, "no request"),
        (b"POST /score HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 413, "batch_size"),
        (b"GET /scores HTTP/1.1\r\n\r\n", 404, "no such path"),
    ],
)
def test_a_server_refuses_what_is_no_request_in_one_line_and_goes_on(
    serve: Serve, sent: bytes, code: int, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    url = serve(server := here())
    status, body = answer_to(server, sent)
    assert status == code
    assert reason in json.loads(body)["error"]
    with socket.create_connection(("127.0.0.1", server.server_port)) as silent:
        silent.sendall(b"POST /score HTTP/1.1\r\nContent-Length: 1000\r\n\r\n{")
        assert scores_at(url)
    assert capfd.readouterr() == ("", "")


def test_this_machine_is_reached_past_a_proxy(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    url = serve(here())
    for host in ("127.0.0.1", "localhost", "127.1"):
        assert at(url.replace("127.0.0.1", host)).fingerprint()
    assert is_loopback("::1")
    assert not any(is_loopback(host) for host in ("10.0.0.1", "reward.invalid", "0.0.0.0", ""))


def test_a_server_asks_for_its_token_and_for_no_web_page(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    url, right = serve(server := here(token="secret")), "Authorization: Bearer secret"

    def status(*headers: str) -> int:
        return answer_to(server, "\r\n".join(["GET /reward HTTP/1.1", *headers, "", ""]).encode())[0]

    assert status("Host: localhost:8500", right) == 200
    assert status("Host: localhost:8500") == status("Authorization: Bearer secrets") == 401
    assert status("Host: rebound.example:8500", right) == 403
    assert status("Host: localhost", "Origin: http://localhost", right) == 403
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    began = time.monotonic()
    with pytest.raises(RewardError, match=f"answered 401: .*set {TOKEN_VARIABLE} as"):
        scores_at(url)
    assert time.monotonic() - began < 5  # no use to ask again
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    assert scores_at(url)


def test_connections_and_silence_are_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RewardServer, "most_connections", 4)
    monkeypatch.setattr(_Handler, "timeout", 0.5)
    url = serve(server := here())
    slow = [socket.create_connection(("127.0.0.1", server.server_port), timeout=20) for _ in range(8)]
    for connection in slow:
        with suppress(OSError):  # refused and closed already
            connection.sendall(b"POST /score HTTP/1.1\r\nContent-Length: 1000\r\n\r\n{")
    answers = []
    for connection in slow:
        with suppress(OSError):
            answers.append(int(connection.recv(2**16).split()[1]))
        connection.close()
    assert answers.count(408) == 4
    assert set(answers) <= {408, 503}
    monkeypatch.setattr(_Handler, "timeout", 60.0)
    monkeypatch.setattr(_Handler, "longest_seconds", 0.3)  # however it drips, the head too
    assert answer_to(server, b"POST /score HTTP/1.1\r\nContent-Le")[0] == 413
    monkeypatch.setattr(_Handler, "longest_seconds", 60.0)
    assert scores_at(url)


# --- the command


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["hpsv9"], "unknown reward 'hpsv9': the nearest is"),
        (["colour", "devise=cpu"], "unknown key 'devise'; the nearest is 'device'"),
        (["colour", "scale=2"], "offset and scale are for the run"),
        (["hpsv2", "path=none.pt"], "none.pt is not on this machine"),
    ],
)
def test_a_reward_that_cannot_be_served_is_one_line_and_exit_code_2(
    arguments: list[str], expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(RewardServer, "serve_forever", lambda server: None)
    with pytest.raises(SystemExit) as end:
        main(["serve-reward", *arguments])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert expected in said
    assert len(said.strip().splitlines()) == 1


def test_serve_reward_says_what_a_run_needs(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def use(server: RewardServer) -> None:
        monkeypatch.undo()
        said = capsys.readouterr().out
        url = said.partition("rewards.colour.backend=url rewards.colour.url=")[2].partition(";")[0]
        assert serve(server) == url
        monkeypatch.setenv(TOKEN_VARIABLE, said.partition(f"{TOKEN_VARIABLE}=")[2].split()[0])
        assert scores_at(url)
        assert "only this machine reaches it" in said
        server.shutdown()

    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    monkeypatch.setattr(RewardServer, "serve_forever", use)
    with pytest.raises(SystemExit, match="0"):
        main(["serve-reward", "colour", "--port", "0"])
