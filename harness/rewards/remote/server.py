"""A server that holds a reward's model: of ``adagrpo serve-reward``, and of a package in an environment of its own.

Who has no token, or comes from a web page, is refused before anything is read. What comes is bounded in bytes, time and
connections, and what is no request is refused in one line. It needs torch and the standard library alone.
"""

import hmac
import json
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from torch import Tensor

from harness.rewards.base import Reward
from harness.rewards.remote.wire import LONGEST_REQUEST, MALFORMED, TOKEN_VARIABLE, read_request, reply

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
        token: the word that a request must bring as ``Authorization: Bearer TOKEN``; None asks for none.

    Raises:
        OSError: the address cannot be used.
    """

    daemon_threads = True
    request_queue_size = 64
    most_connections = 64

    def __init__(
        self, measure: Measure, about: Mapping[str, Any], host: str, port: int = 0, token: str | None = None
    ) -> None:
        self.measure, self.about, self.turn, self.token = measure, about, threading.Lock(), token
        self.is_loopback = _is_loopback(host)
        self._free = threading.BoundedSemaphore(self.most_connections)
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread, or refuse it while there are as many as may be."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with suppress(OSError):
            request.settimeout(1.0)
            request.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, and make its place free."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing is said of a connection that was lost, and one line of what nobody thought of."""
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            print(f"reward server: {one_line(error)}", file=sys.stderr, flush=True)


def one_line(error: BaseException) -> str:
    """An exception's class and reason."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _is_loopback(host: str) -> bool:
    """Whether a name is this machine's own; asks no name server, who might be the one not to be trusted."""
    if host in ("localhost", "::1", "[::1]"):
        return True
    try:
        return socket.inet_aton(host)[0] == 127  # also written as 127.1
    except OSError:
        return False


def serving(reward: Reward, host: str, port: int, token: str | None = None) -> RewardServer:
    """A server that holds a reward; raises OSError, and RewardError if the reward's model is not on this machine."""
    about = {"name": reward.name, "fingerprint": reward.fingerprint(), "resolution": reward.resolution}
    return RewardServer(lambda levels, prompts: reward.measure(levels.float() / 255, prompts), about, host, port, token)


class _Handler(BaseHTTPRequestHandler):
    server: RewardServer
    timeout = 60.0
    """Seconds that a connection may be silent."""
    longest_seconds = 120.0
    """Seconds in which all of a request must have come, its head included."""

    def handle(self) -> None:
        """Serve a connection; nothing is read of it after ``longest_seconds``."""
        end = threading.Timer(self.longest_seconds, self._read_no_more)
        end.daemon = True
        end.start()
        try:
            super().handle()
        finally:
            end.cancel()

    def _read_no_more(self) -> None:
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)

    def do_GET(self) -> None:
        if self._is_refused():
            return
        if self.path == "/reward":
            self._answer(200, self.server.about)
        else:
            self._refuse(404, "no such path; there are GET /reward and POST /score")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length") or ""
        if self._is_refused():
            return
        if self.path != "/score":
            self._refuse(404, "no such path; there are GET /reward and POST /score")
        elif not length.isdecimal() or len(length) > 12 or int(length) > LONGEST_REQUEST:
            self._refuse(413, f"a request may have {LONGEST_REQUEST} bytes; send fewer pictures at a time (batch_size)")
        elif (body := self._body(int(length))) is not None:
            self._score(body)

    def _is_refused(self) -> bool:
        """Whether it was: a web page's request, one for another host's name, or one without the token."""
        host = (self.headers.get("Host") or "").rpartition(":")[0] or self.headers.get("Host") or ""
        brought, wanted = self.headers.get("Authorization") or "", f"Bearer {self.server.token}"
        if self.headers.get("Origin") is not None:
            self._refuse(403, "web pages may not ask")
        elif self.server.is_loopback and host and not _is_loopback(host):
            self._refuse(403, "this server is asked as localhost or 127.0.0.1 alone")
        elif self.server.token and not hmac.compare_digest(brought.encode(), wanted.encode()):
            self._refuse(401, f"the token is missing or wrong: set {TOKEN_VARIABLE} as where the server was started")
        else:
            return False
        return True

    def _body(self, length: int) -> bytes | None:
        """All of it; None if it has not come in time."""
        parts, left = [], length
        with suppress(TimeoutError):
            while left and (part := self.rfile.read1(min(left, 2**20))):
                parts.append(part)
                left -= len(part)
        if left:
            self._refuse(408, f"{left} bytes of the request have not come")
            return None
        return b"".join(parts)

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
