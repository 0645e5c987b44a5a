"""HTTP server for a reward: ``adagrpo serve-reward``.

Requests without the token or from a web page are refused before their body is read. Size, time and number of requests
are bounded, and malformed requests are refused with a one-line reason.
"""

import hmac
import json
import socket
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from harness.rewards.base import Reward
from harness.rewards.remote.wire import (
    LONGEST_REQUEST,
    MALFORMED,
    TOKEN_VARIABLE,
    is_loopback,
    one_line,
    read_request,
    reply,
)


class RewardServer(ThreadingHTTPServer):
    """HTTP server for a reward; call its ``serve_forever``.

    Args:
        reward: the reward, which scores in one thread at a time.
        host: address to listen at.
        port: port to listen at; 0 takes a free one, see ``server_port``.
        token: token that requests must send as ``Authorization: Bearer TOKEN``; None requires none.

    Raises:
        OSError: the address cannot be used.
        RewardError: the reward's model is not on this machine.
    """

    daemon_threads = True
    request_queue_size = 64
    most_connections = 64

    def __init__(self, reward: Reward, host: str, port: int, token: str | None = None) -> None:
        self.reward, self.turn, self.token = reward, threading.Lock(), token
        about = {"name": reward.name, "fingerprint": reward.fingerprint(), "resolution": reward.resolution}
        self.about: Mapping[str, Any] = about
        """What ``GET /reward`` returns and every reply includes."""
        self.is_loopback = is_loopback(host)
        self._free = threading.BoundedSemaphore(self.most_connections)
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread, or refuse it if ``most_connections`` are being served."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with suppress(OSError):
            request.settimeout(1.0)
            request.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, then release its place."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report an unexpected error in one line; lost connections are not reported."""
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            print(f"reward server: {one_line(error)}", file=sys.stderr, flush=True)


class _Handler(BaseHTTPRequestHandler):
    server: RewardServer
    timeout = 60.0
    """Longest silence of a connection in seconds."""
    longest_seconds = 120.0
    """Seconds in which a whole request, including its header, must arrive."""

    def handle(self) -> None:
        """Serve a connection; nothing is read from it after ``longest_seconds``."""
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
        if not self._is_refused("/reward"):
            self._answer(200, self.server.about)

    def do_POST(self) -> None:
        if self._is_refused("/score"):
            return
        length = self.headers.get("Content-Length") or ""
        if not length.isdecimal() or len(length) > 12 or int(length) > LONGEST_REQUEST:
            self._refuse(413, f"a request may have {LONGEST_REQUEST} bytes; send fewer pictures at a time (batch_size)")
        elif len(body := self._body(int(length))) < int(length):
            self._refuse(408, f"{length} bytes of the request have not come in time")
        else:
            self._score(body)

    def _is_refused(self, path: str) -> bool:
        """Refuse requests of web pages, for another host or path, or without the token; returns whether it did."""
        host = (self.headers.get("Host") or "").rpartition(":")[0] or self.headers.get("Host") or ""
        brought, wanted = self.headers.get("Authorization") or "", f"Bearer {self.server.token}"
        if self.headers.get("Origin") is not None:
            self._refuse(403, "web pages may not ask")
        elif self.server.is_loopback and host and not is_loopback(host):
            self._refuse(403, "this server is asked as localhost or 127.0.0.1 alone")
        elif self.server.token and not hmac.compare_digest(brought.encode(), wanted.encode()):
            self._refuse(401, f"the token is missing or wrong: set {TOKEN_VARIABLE} as where the server was started")
        elif self.path != path:
            self._refuse(404, "no such path; there are GET /reward and POST /score")
        else:
            return False
        return True

    def _body(self, length: int) -> bytes:
        """Read the body; less of it if it does not arrive in time."""
        try:
            return self.rfile.read(length)
        except TimeoutError:
            return b""

    def _score(self, body: bytes) -> None:
        try:
            levels, prompts = read_request(body)
        except MALFORMED as error:
            self._refuse(400, f"no request ({one_line(error)})")
            return
        try:
            with self.server.turn:  # a model takes one batch at a time
                said = reply(self.server.reward.measure(levels.float() / 255, prompts))
        except Exception as error:  # noqa: BLE001 - whatever a model raises is reported to the client
            image = getattr(error, "image", None)
            # The client adds the reward's name and the picture's index among all of its pictures.
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
        """Do nothing: a line per request would hide everything else."""
