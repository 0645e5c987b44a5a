"""What a reward server and its clients say: JSON, pictures as their bytes in base64. No pickle, so no code travels.

``POST /score`` takes a request, and answers with a reply. ``GET /reward`` says which reward it is. An error is
``{"error": reason}``; that of a picture that cannot be scored also has ``image``, its number in the request if known.

It needs torch and the standard library alone, as ``server`` does: packages of old versions speak it, too.
"""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

LONGEST_REQUEST = 2**29
"""Bytes of a request: 128 pictures of 1024 x 1024."""


class WireError(Exception):
    """What came is no request or no reply: the other side speaks another protocol."""


def request(levels: Tensor, prompts: Sequence[str]) -> bytes:
    """What asks for scores of ``[b, 3, H, W]`` uint8 pictures."""
    pixels = base64.b64encode(levels.contiguous().numpy().tobytes()).decode()
    return json.dumps({"shape": list(levels.shape), "prompts": list(prompts), "pixels": pixels}).encode()


def read_request(body: bytes) -> tuple[Tensor, list[str]]:
    """Pictures and prompts of a request. Raises WireError if they do not fit together, or it is none."""
    with _believed("request"):
        said = json.loads(body)
        pixels, shape, prompts = base64.b64decode(said["pixels"], validate=True), said["shape"], said["prompts"]
        levels = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).reshape(shape)
        if levels.ndim != 4 or levels.shape[1] != 3:
            raise ValueError(f"pictures are [b, 3, H, W], not {shape}")
        if not isinstance(prompts, list) or len(prompts) != len(levels) or not all(isinstance(p, str) for p in prompts):
            raise ValueError(f"{len(levels)} pictures need as many prompts")
        return levels, prompts


def reply(measured: Mapping[str, Tensor]) -> dict[str, Any]:
    """What answers with metrics ``{name: [b]}``."""
    return {"metrics": {name: values.detach().cpu().float().tolist() for name, values in measured.items()}}


def read_reply(said: Mapping[str, Any], count: int) -> dict[str, Tensor]:
    """Metrics ``{name: [count] float32}`` of an answer. Raises WireError if it has none or not as many values."""
    with _believed("reply"):
        measured = {name: torch.tensor(values, dtype=torch.float32) for name, values in said["metrics"].items()}
        if not measured or any(values.shape != (count,) for values in measured.values()):
            raise ValueError(f"metrics of {count} pictures are missing")
        return measured


@contextmanager
def _believed(kind: str) -> Iterator[None]:
    """Within: whatever is wrong with what came is a WireError of one line."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise WireError(f"no {kind} ({type(error).__name__}: {' '.join(str(error).split())[:120]})") from None
