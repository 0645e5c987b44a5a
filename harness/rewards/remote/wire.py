"""What a reward server and its clients say: JSON, pictures as their bytes in base64. No pickle, so no code travels.

``POST /score`` takes a request, and answers with a reply. ``GET /reward`` says which reward it is. An error is
``{"error": reason}``; that of a picture that cannot be scored also has ``image``, its number in the request if known.

It needs torch and the standard library alone, as ``server`` does: packages of old versions speak it, too.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

TOKEN_VARIABLE = "ADAGRPO_REWARD_TOKEN"
"""Environment variable with the word that a server asks for, and its clients send."""
LONGEST_REPLY = 2**26
"""Bytes of a reply."""
LONGEST_REQUEST = 2**29
"""Bytes of a request: 128 pictures of 1024 x 1024."""
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RuntimeError, OverflowError)
"""What ``read_request`` and ``read_reply`` raise of what is neither: the other side speaks another protocol."""


def request(levels: Tensor, prompts: Sequence[str]) -> bytes:
    """What asks for scores of ``[b, 3, H, W]`` uint8 pictures."""
    pixels = base64.b64encode(levels.contiguous().numpy().tobytes()).decode()
    return json.dumps({"shape": list(levels.shape), "prompts": list(prompts), "pixels": pixels}).encode()


def read_request(body: bytes) -> tuple[Tensor, list[str]]:
    """Pictures and prompts of a request. Raises ``MALFORMED``."""
    said = json.loads(body)
    pixels, prompts = base64.b64decode(said["pixels"], validate=True), said["prompts"]
    levels = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).reshape(said["shape"])
    if levels.ndim != 4 or levels.shape[1] != 3:
        raise ValueError(f"pictures are [b, 3, H, W], not {list(levels.shape)}")
    if not isinstance(prompts, list) or len(prompts) != len(levels) or not all(isinstance(p, str) for p in prompts):
        raise ValueError(f"{len(levels)} pictures need as many prompts")
    return levels, prompts


def reply(measured: Mapping[str, Tensor]) -> dict[str, Any]:
    """What answers with metrics ``{name: [b]}``."""
    return {"metrics": {name: values.detach().cpu().float().tolist() for name, values in measured.items()}}


def read_reply(said: Mapping[str, Any], name: str, count: int) -> dict[str, Tensor]:
    """Metrics ``{name: [count] float32}`` of an answer about a reward, its score among them. Raises ``MALFORMED``."""
    measured = {key: torch.tensor(values, dtype=torch.float32) for key, values in said["metrics"].items()}
    if name not in measured or any(values.shape != (count,) for values in measured.values()):
        raise ValueError(f"it has no {count} scores of {name!r}")
    return measured
