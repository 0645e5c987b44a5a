"""``python -m harness.rewards.remote.workers SETTINGS``: load a package's model and serve it on this machine.

The first line of standard output is JSON with the port, or with the reason why the model cannot be served.
"""

import importlib
import json
import os
import sys
import threading
from typing import Any

import torch

from harness.rewards.remote.server import RewardServer, one_line
from harness.rewards.remote.wire import TOKEN_VARIABLE


def main(settings: dict[str, Any]) -> None:
    """Serve until the parent process ends."""
    # Redirect what packages print to standard error.
    outgoing = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.Thread(target=_end_with_input, daemon=True).start()
    torch.set_num_threads(settings["num_threads"])
    try:
        measure = importlib.import_module(f"harness.rewards.remote.workers.{settings['name']}_package").load(settings)
    except Exception as error:  # noqa: BLE001 - whatever a package raises is reported to the parent process
        print(json.dumps({"error": one_line(error)}), file=outgoing, flush=True)
        return
    about, token = {"name": settings["name"]}, os.environ.get(TOKEN_VARIABLE)
    with RewardServer(torch.no_grad()(measure), about, "127.0.0.1", token=token) as server:
        print(json.dumps({"port": server.server_port}), file=outgoing, flush=True)
        server.serve_forever()


def _end_with_input() -> None:
    """End this process when the parent has ended, even while a package scores."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
