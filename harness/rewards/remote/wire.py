"""Protocol between a reward and another process that computes it: JSON with pictures as base64 bytes.

There is no pickle, which could carry code.

``POST /score`` takes a request and returns a reply; ``GET /reward`` describes the reward. An error is
``{"error": reason}``; if scoring failed it also has ``image``, the picture's index in the request, or null. A package's
worker is sent the same requests through a pipe.

It needs only torch and the standard library, because it also runs beside old versions of packages.
"""

import base64
import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

TOKEN_VARIABLE = "ADAGRPO_REWARD_TOKEN"
"""Environment variable with the token that a server requires and its clients send."""
LONGEST_REPLY = 2**26
"""Largest reply in bytes."""
LONGEST_REQUEST = 2**29
"""Largest request in bytes: 128 pictures of 1024 x 1024."""
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RuntimeError, OverflowError)
"""Exceptions of ``read_request`` and ``read_reply`` for malformed input, such as of another protocol."""


def request(levels: Tensor, prompts: Sequence[str]) -> bytes:
    """Encode a request for scores of pictures ``[b, 3, H, W]`` uint8 and b prompts."""
    pixels = base64.b64encode(levels.contiguous().numpy().tobytes()).decode()
    return json.dumps({"shape": list(levels.shape), "prompts": list(prompts), "pixels": pixels}).encode()


def read_request(body: bytes) -> tuple[Tensor, list[str]]:
    """Decode the pictures and prompts of a request. Raises ``MALFORMED``."""
    said = json.loads(body)
    pixels, prompts = base64.b64decode(said["pixels"], validate=True), said["prompts"]
    levels = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).reshape(said["shape"])
    if levels.ndim != 4 or levels.shape[1] != 3:
        raise ValueError(f"pictures are [b, 3, H, W], not {list(levels.shape)}")
    if not isinstance(prompts, list) or len(prompts) != len(levels) or not all(isinstance(p, str) for p in prompts):
        raise ValueError(f"{len(levels)} pictures need as many prompts")
    return levels, prompts


def reply(measured: Mapping[str, Tensor]) -> dict[str, Any]:
    """Encode a reply with metrics ``{name: [b]}``."""
    return {"metrics": {name: values.detach().cpu().float().tolist() for name, values in measured.items()}}


def read_reply(said: Mapping[str, Any], name: str, count: int) -> dict[str, Tensor]:
    """Decode a reply to metrics ``{name: [count] float32}``, which include the score. Raises ``MALFORMED``."""
    measured = {key: torch.tensor(values, dtype=torch.float32) for key, values in said["metrics"].items()}
    if name not in measured or any(values.shape != (count,) for values in measured.values()):
        raise ValueError(f"it has no {count} scores of {name!r}")
    return measured


def one_line(error: BaseException) -> str:
    """Class and message of an exception, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def is_loopback(host: str) -> bool:
    """Whether a host name is a loopback address; does not ask a name server, which may not be trustworthy."""
    if host in ("localhost", "::1", "[::1]"):
        return True
    try:
        return socket.inet_aton(host)[0] == 127  # also written as 127.1
    except OSError:
        return False
