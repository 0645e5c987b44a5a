"""``python -m harness.rewards.remote.workers SETTINGS PIPE``: load a package's model and score with it.

PIPE is the file descriptor of a connection to the parent process. It is sent ``{}``, or ``{"error": reason}`` if the
model cannot be loaded, and then the reply of ``wire`` to each request.
"""

import importlib
import json
import os
import queue
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

import torch
from PIL import Image

from harness.rewards.remote.wire import one_line, read_request, reply
from harness.rewards.remote.workers.shims import allow_torchvision


def main(settings: dict[str, Any], pipe: Connection) -> None:
    """Answer requests until the parent process closes its end of the pipe."""
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, requests), daemon=True).start()
    torch.set_num_threads(settings["num_threads"])
    if settings["device"] == "auto":
        settings["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    allow_torchvision()
    try:
        measure = importlib.import_module(f"harness.rewards.remote.workers.{settings['name']}_package").load(settings)
    except Exception as error:  # noqa: BLE001 - whatever a package raises is reported to the parent process
        _send(pipe, {"error": one_line(error)})
        return
    _send(pipe, {})
    while True:
        try:
            levels, prompts = read_request(requests.get())
            pictures = [Image.fromarray(picture) for picture in levels.permute(0, 2, 3, 1).contiguous().numpy()]
            with torch.no_grad():
                _send(pipe, reply(measure(pictures, prompts)))
        except Exception as error:  # noqa: BLE001 - as above
            _send(pipe, {"error": one_line(error)})


def _send(pipe: Connection, answer: dict[str, Any]) -> None:
    pipe.send_bytes(json.dumps(answer).encode())


def _receive(pipe: Connection, requests: "queue.SimpleQueue[bytes]") -> None:
    """Queue requests; end this process when the parent has ended, even while a package loads or scores."""
    try:
        while True:
            requests.put(pipe.recv_bytes())
    except (EOFError, OSError):
        os._exit(1)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Connection(int(sys.argv[2])))
