"""A server that holds a reward's model: of ``adagrpo serve-reward``, and of a package in an environment of its own.

Whoever reaches it may ask: what comes is bounded, and what is no request is refused in one line. It needs torch and the
standard library alone.
"""

import json
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from torch import Tensor

from harness.rewards.base import Reward
from harness.rewards.remote.wire import LONGEST_REQUEST, MALFORMED, read_request, reply

Measure = Callable[[Tensor, Sequence[str]], Mapping[str, Tensor]]
"""Metrics ``{name: [b]}`` of ``[b, 3, H, W]`` uint8 pictures and b prompts."""


class RewardServer(ThreadingHTTPServer):
    """A server that holds a reward; call its ``serve_forever``.

    Args:
        measure: scores pictures; called by one thread at a time. An exception's attribute ``image``, if it has one, is
            the number of the picture that it is about.
        about: name, fingerprint and resolution: what ``GET /reward`` answers, and every reply says again.
        host: address to listen at.
        port: 0 takes a free one, see ``server_port``.

    Raises:
        OSError: the address cannot be used.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, measure: Measure, about: Mapping[str, Any], host: str, port: int = 0) -> None:
        self.measure, self.about, self.turn = measure, about, threading.Lock()
        super().__init__((host, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing is said of a connection that was lost, and one line of what nobody thought of."""
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            print(f"reward server: {one_line(error)}", file=sys.stderr, flush=True)


def one_line(error: BaseException) -> str:
    """An exception's class and reason."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def serving(reward: Reward, host: str, port: int) -> RewardServer:
    """A server that holds a reward; raises OSError, and RewardError if the reward's model is not on this machine."""
    about = {"name": reward.name, "fingerprint": reward.fingerprint(), "resolution": reward.resolution}
    return RewardServer(lambda levels, prompts: reward.measure(levels.float() / 255, prompts), about, host, port)


class _Handler(BaseHTTPRequestHandler):
    server: RewardServer
    timeout = 60.0
    """Seconds that a connection may be silent."""

    def do_GET(self) -> None:
        if self.path == "/reward":
            self._answer(200, self.server.about)
        else:
            self._refuse(404, "no such path; there are GET /reward and POST /score")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length") or ""
        if self.path != "/score":
            self._refuse(404, "no such path; there are GET /reward and POST /score")
        elif not length.isdecimal() or len(length) > 12 or int(length) > LONGEST_REQUEST:
            self._refuse(413, f"a request may have {LONGEST_REQUEST} bytes; send fewer pictures at a time (batch_size)")
        else:
            self._score(self.rfile.read(int(length)))

    def _score(self, body: bytes) -> None:
        try:
            levels, prompts = read_request(body)
        except MALFORMED as error:
            self._refuse(400, f"no request ({one_line(error)})")
            return
        try:
            with self.server.turn:  # a model takes one batch at a time
                said = reply(self.server.measure(levels, prompts))
        except Exception as error:  # noqa: BLE001 - whatever a model raises is told to whoever waits for its scores
            image = getattr(error, "image", None)
            # Whoever asked says which reward, and which picture it is among all of its own.
            reason = one_line(error) if image is None else str(error).rpartition(f"picture {image}: ")[2]
            self._answer(422, {"error": reason, "image": image})
        else:
            self._answer(200, {**said, **self.server.about})

    def _refuse(self, code: int, reason: str) -> None:
        self._answer(code, {"error": reason})

    def _answer(self, code: int, content: Mapping[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: a line per request would bury the rest."""
