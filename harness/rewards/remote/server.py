"""A server that holds a reward (``adagrpo serve-reward``); its client and what they say are in ``served``.

Whoever reaches it may ask, so nothing that comes is trusted: connections, what they may send and how long they may
take to send it are bounded, and what is no request is refused in one line.
"""

import contextlib
import io
import json
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from harness.rewards.base import Reward
from harness.rewards.remote.frames import LONGEST_REQUEST, FrameError, pack, read_frame, read_request, reply

_MOST_CONNECTIONS = 64
_MOST_BYTES = 4 * LONGEST_REQUEST
"""Of all requests that are being read or scored."""
_SECONDS_TO_SEND = 60.0
"""A connection may take to send a request, and to take the answer."""
_BUSY = b'{"error": "too many connections at a time"}'


class RewardServer(ThreadingHTTPServer):
    """A server that holds a reward; call its ``serve_forever``.

    Args:
        reward: to be served.
        host: address to listen at.
        port: 0 takes a free one, see ``server_port``.
        seconds_to_send: that a connection may take to send a request.

    Raises:
        OSError: the address cannot be used.
        RewardError: the reward's model is not on this machine.
    """

    daemon_threads = True
    request_queue_size = _MOST_CONNECTIONS

    def __init__(self, reward: Reward, host: str, port: int, seconds_to_send: float = _SECONDS_TO_SEND) -> None:
        self.reward, self.fingerprint = reward, reward.fingerprint()
        self.seconds_to_send = seconds_to_send
        self.turn = threading.Lock()
        self._places = threading.Semaphore(_MOST_CONNECTIONS)
        self._bytes_left, self._counting = _MOST_BYTES, threading.Lock()
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, if there is a place."""
        if not self._places.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.settimeout(0.1)
                request.sendall(
                    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
                    b"Content-Length: %d\r\n\r\n%s" % (len(_BUSY), _BUSY)
                )
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started
            self._places.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing is said of a connection that was lost, and one line of what nobody thought of."""
        error = sys.exception()
        if not isinstance(error, OSError):
            print(f"serve-reward: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)

    def reserve(self, count: int) -> bool:
        """Room for a request of so many bytes, if there is; to be given back by ``reserve(-count)``."""
        with self._counting:
            if count > self._bytes_left:
                return False
            self._bytes_left -= count
            return True


class _Incoming(socket.SocketIO):
    """What a connection sends, all of which must have come by a deadline: of silence alone a slow drip has none."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        super().__init__(connection, "r")
        self._connection, self.deadline = connection, deadline

    def readinto(self, buffer: Any) -> int | None:
        self._connection.settimeout(max(self.deadline - time.monotonic(), 1e-3))
        return super().readinto(buffer)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RewardServer

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._incoming = _Incoming(self.connection, time.monotonic() + self.server.seconds_to_send)
        self.rfile = io.BufferedReader(self._incoming)

    def handle_one_request(self) -> None:
        self._incoming.deadline = time.monotonic() + self.server.seconds_to_send
        super().handle_one_request()

    def do_GET(self) -> None:
        if self.path != "/reward":
            self._refuse(404, "no such path; there are GET /reward and POST /score")
            return
        reward = self.server.reward
        said = {"name": reward.name, "fingerprint": self.server.fingerprint, "resolution": reward.resolution}
        self._answer_json(200, said)

    def do_POST(self) -> None:
        if self.path != "/score":
            self._refuse(404, "no such path; there are GET /reward and POST /score")
            return
        said = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not (said.isascii() and said.isdigit()):
            self._refuse(411, "a request must say its length, as Content-Length")
            return
        # Of a number with more digits than int() takes, too.
        length = int(said) if len(said) < 20 else LONGEST_REQUEST + 1
        if length > LONGEST_REQUEST:
            self._refuse(413, f"a request may have {LONGEST_REQUEST} bytes; send fewer pictures at a time (batch_size)")
            return
        if not self.server.reserve(length):
            self._refuse(503, "too many pictures at a time")
            return
        try:
            self._score(length)
        finally:
            self.server.reserve(-length)

    def _score(self, length: int) -> None:
        try:
            sent = io.BytesIO(self.rfile.read(length))
        except TimeoutError:
            self._refuse(408, f"the request did not come within {self.server.seconds_to_send:g} s")
            return
        try:
            levels, prompts = read_request(*read_frame(sent))
            if sent.read(1):
                raise FrameError("more than a frame was sent")
        except FrameError as error:
            self._refuse(400, str(error))
            return
        reward = self.server.reward
        try:
            # A model takes one batch at a time; others wait.
            with self.server.turn:
                measured = reward.measure(levels.float() / 255, prompts)
            header, body = reply(measured)
        except (ValueError, RuntimeError) as error:
            image = getattr(error, "image", None)
            # Whoever asked says which reward, and which image it is among all of its own.
            reason = str(error).removeprefix(f"reward {reward.name!r}: image {image}: ")
            self._answer_json(422, {"error": reason, "image": image})
            return
        except Exception as error:  # noqa: BLE001 - whatever a model raises is told to whoever waits for its scores
            self._answer_json(422, {"error": f"{type(error).__name__}: {' '.join(str(error).split())}", "image": None})
            return
        header["fingerprint"] = self.server.fingerprint
        self._answer(200, "application/octet-stream", pack(header, body))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What ``http.server`` refuses by itself: a line that is no request, headers too long, other methods."""
        self.request_version = "HTTP/1.1"  # a line without a version would get an answer without a head
        self._refuse(405 if code == 501 else code, message or "no request")

    def _refuse(self, code: int, reason: str) -> None:
        # What else the connection sends is not read, so it cannot be used on.
        self.close_connection = True
        self._answer_json(code, {"error": reason})

    def _answer_json(self, code: int, content: dict[str, Any]) -> None:
        self._answer(code, "application/json", json.dumps(content).encode())

    def _answer(self, code: int, kind: str, body: bytes) -> None:
        self.connection.settimeout(self.server.seconds_to_send)
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def finish(self) -> None:
        """Read what a refused client still sends, for a moment: a reset would take its answer away from it."""
        with contextlib.suppress(OSError, ValueError):
            self.connection.shutdown(socket.SHUT_WR)
            self._incoming.deadline = time.monotonic() + min(2.0, self.server.seconds_to_send)
            while self._incoming.read(2**16):
                pass
        super().finish()

    def log_message(self, *_: object) -> None:
        """Nothing: a line a request would bury the rest."""
