"""``python -m harness.rewards.remote.workers NAME``: load a model, then answer requests until the input ends."""

import importlib
import os
import sys
import threading
import time
from typing import BinaryIO

import torch

from harness.rewards.remote.frames import FrameError, read_frame, read_request, reply, write_frame


def main(name: str) -> None:
    """Serve a package over standard input and output.

    The first frame has the settings; the answer says that the model is ready, or why not. Then each request is answered
    with metrics or with an error.
    """
    incoming, outgoing = sys.stdin.buffer, _private_output()
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    settings, _ = read_frame(incoming)
    torch.set_num_threads(settings["num_threads"])
    try:
        scorer = importlib.import_module(f"harness.rewards.remote.workers.{name}_package").load(settings)
    except Exception as error:  # noqa: BLE001 - whatever a package raises is told to whoever waits for it
        write_frame(outgoing, {"error": _one_line(error)})
        return
    write_frame(outgoing, {"ready": True})
    while True:
        try:
            header, body = read_frame(incoming)
        except FrameError:
            return
        try:
            levels, prompts = read_request(header, body)
            with torch.no_grad():
                answer, data = reply(scorer(levels, prompts))
        except Exception as error:  # noqa: BLE001 - as above
            answer, data = {"error": _one_line(error)}, b""
        write_frame(outgoing, answer, data)


def _private_output() -> BinaryIO:
    """Standard output for frames alone: what packages print goes to standard error."""
    private = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return private


def _end_with(parent: int) -> None:
    """End this process when the one that started it has ended: while a package scores, nobody reads the input."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


if __name__ == "__main__":
    main(sys.argv[1])
