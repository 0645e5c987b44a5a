"""Rewards over HTTP: a server that holds one (``adagrpo serve-reward``), and the client that is the backend ``url``.

``GET /reward`` describes it in JSON. ``POST /score`` takes a frame of pictures and prompts and answers with a frame of
metrics, see ``frames``, whose header also has the reward's ``fingerprint``; an error is JSON with ``error`` and, where
it is one image that cannot be scored, ``image``.
"""

import http.client
import io
import json
import math
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from torch import Tensor

from harness.config import RewardConfig
from harness.rewards.base import Reward, RewardError
from harness.rewards.batched import ImageError, RemoteReward
from harness.rewards.frames import FrameError, pack, read_frame, read_reply, read_request, reply, request
from harness.truncation import TextReader

_LONGEST_BODY = 2**32


class ServedReward(RemoteReward):
    """A reward that another process holds, perhaps on another GPU. Its bounds are not asked."""

    low, high = -math.inf, math.inf

    def __init__(self, name: str, settings: RewardConfig) -> None:
        """Choose a server; nothing is sent yet.

        Raises:
            ValueError: no url.
        """
        super().__init__(name, settings.batch_size)
        if settings.url is None:
            raise ValueError(f"rewards.{name}.url is missing: the address of `adagrpo serve-reward {name}`")
        self._url, self._timeout = settings.url.rstrip("/"), settings.timeout_seconds

    def fingerprint(self) -> str:
        """That of the server's reward: a run is the same wherever its reward is computed.

        Raises:
            RewardError: the server cannot be reached, or holds another reward.
        """
        return str(self._description["fingerprint"])

    def check_prompt(self, prompt: str) -> None:
        """Raise ValueError if a reward of this name, here, could not score the prompt."""
        self._local.check_prompt(prompt)

    def text_readers(self) -> Sequence[TextReader]:
        """Those of a reward of this name, here; raises RewardError if its tokenizer is not on this machine."""
        return self._local.text_readers()

    @cached_property
    def resolution(self) -> float:  # type: ignore[override]
        """That of the server's reward; of one that does not say, what a reward of this name has here."""
        stated = self._description.get("resolution")
        if stated is None:
            return self._local.resolution
        if not isinstance(stated, int | float) or not 0 <= stated < math.inf:
            raise RewardError(
                f"reward {self.name!r}: {self._url} states {stated!r} as its resolution, which is no number"
            )
        return stated

    @cached_property
    def _local(self) -> Reward:
        from harness.rewards import build_reward

        return build_reward(self.name)

    @cached_property
    def _description(self) -> dict[str, Any]:
        description = as_json(self.name, self._url, fetch(self.name, f"{self._url}/reward", None, self._timeout))
        if "name" not in description or "fingerprint" not in description:
            raise RewardError(f"reward {self.name!r}: {self._url} is no reward server: it answers {description}")
        if description["name"] != self.name:
            raise RewardError(f"reward {self.name!r}: {self._url} serves {description['name']!r}")
        return description

    def _measure_batch(self, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        frame = pack(*request(levels, prompts))
        answer = fetch_patiently(self.name, f"{self._url}/score", frame, self._timeout)
        try:
            header, body = read_frame(io.BytesIO(answer))
            measured = read_reply(header, body, len(prompts))
        except FrameError as error:
            raise RewardError(f"reward {self.name!r}: {self._url} is no reward server: {error}") from None
        if header.get("fingerprint") != self.fingerprint():
            # A server that was restarted may hold other weights: scores of two models must not be mixed.
            raise RewardError(
                f"reward {self.name!r}: {self._url} scores with another model than it had when it was first asked; "
                "start its server with that one again, or begin a new run"
            )
        return measured


class Unreachable(RewardError):
    """Nobody answers at an address, or says that it cannot now."""


_BUSY = (429, 502, 503, 504)
"""HTTP codes of a server that is there but cannot answer now, or whose proxy finds it away."""


def fetch_patiently(
    reward: str, url: str, data: bytes, timeout: float, content_type: str = "application/octet-stream"
) -> bytes:
    """``fetch``, asked again for ``timeout`` seconds while nobody answers: a server may be restarted."""
    began, pause, said = time.monotonic(), 0.25, False
    while True:
        try:
            return fetch(reward, url, data, timeout, content_type)
        except Unreachable as error:
            if time.monotonic() - began + pause > timeout:
                raise
            if not said:
                print(f"{error}; asked again for {timeout:g} s", file=sys.stderr, flush=True)
                said = True
        time.sleep(pause)
        pause = min(2 * pause, 10.0)


def fetch(
    reward: str, url: str, data: bytes | None, timeout: float, content_type: str = "application/octet-stream"
) -> bytes:
    """GET, or POST with data.

    Raises:
        ImageError: the server could not score one image.
        Unreachable: no answer.
        RewardError: any other error, in one line that names reward and address.
    """
    try:
        asked = urllib.request.Request(url, data, {"Content-Type": content_type})
        with urllib.request.urlopen(asked, timeout=timeout) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        reason, image = _explain(error.read())
        if image is not None:
            raise ImageError(image, reason) from None
        kind = Unreachable if error.code in _BUSY else RewardError
        raise kind(f"reward {reward!r}: {url} answered {error.code}: {reason or error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else f"{type(error).__name__} {error}".strip()
        raise Unreachable(f"reward {reward!r}: {url} cannot be reached ({cause}): is its server running?") from None


def as_json(reward: str, url: str, answer: bytes) -> dict[str, Any]:
    """An answer's JSON object. Raises RewardError if it is none: the address is of something else."""
    try:
        content = json.loads(answer)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise RewardError(
            f"reward {reward!r}: {url} answers no JSON object but {answer[:80]!r}: is it the right address?"
        )
    return content


def _explain(body: bytes) -> tuple[str, int | None]:
    try:
        content = json.loads(body)
    except ValueError:
        return " ".join(body.decode(errors="replace").split())[:200], None
    error = content.get("error") if isinstance(content, dict) else None
    if isinstance(error, dict):  # as OpenAI-compatible servers say it
        return " ".join(str(error.get("message")).split())[:200], None
    if error is None:  # as other servers say it
        return " ".join(body.decode(errors="replace").split())[:200], None
    image = content.get("image")
    return str(error), image if isinstance(image, int) else None


def make_server(reward: Reward, host: str, port: int) -> ThreadingHTTPServer:
    """A server that holds a reward; call its ``serve_forever``. Port 0 takes a free one, see ``server_port``.

    Raises:
        OSError: the address cannot be used.
        RewardError: the reward's model is not on this machine.
    """
    fingerprint = reward.fingerprint()
    server = ThreadingHTTPServer((host, port), _Handler)
    server.daemon_threads = True
    vars(server).update(reward=reward, fingerprint=fingerprint, turn=threading.Lock())
    return server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        reward: Reward = self.server.reward  # type: ignore[attr-defined]
        if self.path != "/reward":
            self._answer_json(404, {"error": f"no such path: {self.path}; there are /reward and /score"})
            return
        fingerprint: str = self.server.fingerprint  # type: ignore[attr-defined]
        self._answer_json(200, {"name": reward.name, "fingerprint": fingerprint, "resolution": reward.resolution})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        if self.path != "/score" or not 0 < length <= _LONGEST_BODY:
            self.close_connection = True
            self._answer_json(404, {"error": f"POST a frame of at most {_LONGEST_BODY} bytes to /score"})
            return
        try:
            levels, prompts = read_request(*read_frame(io.BytesIO(self.rfile.read(length))))
        except FrameError as error:
            self._answer_json(400, {"error": str(error)})
            return
        reward: Reward = self.server.reward  # type: ignore[attr-defined]
        try:
            # A model takes one batch at a time; others wait.
            with self.server.turn:  # type: ignore[attr-defined]
                measured = reward.measure(levels.float() / 255, prompts)
        except (ValueError, RuntimeError) as error:
            image = getattr(error, "image", None)
            # Whoever asked says which reward, and which image it is among all of its own.
            reason = str(error).removeprefix(f"reward {reward.name!r}: image {image}: ")
            self._answer_json(422, {"error": reason, "image": image})
            return
        header, body = reply(measured)
        header["fingerprint"] = self.server.fingerprint  # type: ignore[attr-defined]
        self._answer(200, "application/octet-stream", pack(header, body))

    def _answer_json(self, code: int, content: dict[str, Any]) -> None:
        self._answer(code, "application/json", json.dumps(content).encode())

    def _answer(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: a line a request would bury the rest."""
