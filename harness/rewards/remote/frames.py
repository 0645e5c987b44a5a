"""Messages between processes: a JSON header and raw bytes, both length-prefixed. No pickle, so no code travels.

A frame is four magic bytes, the length of the header (4 bytes) and of the body (8 bytes), big-endian, then the two.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import torch
from torch import Tensor

_MAGIC = b"AGR1"
_LENGTHS = struct.Struct("!IQ")
_LONGEST_HEADER, _LONGEST_BODY = 2**22, 2**32
_LONGEST_SIDE = 2**14  # pixels
LONGEST_REQUEST = 2**29
"""Bytes of a frame that a reward server takes: 170 pictures of 1024 x 1024."""


class FrameError(Exception):
    """What came is no frame: the other side ended, or speaks another protocol."""


def write_frame(stream: BinaryIO, header: Mapping[str, Any], body: bytes | memoryview = b"") -> None:
    """Write a frame and flush it."""
    stream.write(pack(header, body))
    stream.flush()


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """Read a whole frame.

    Raises:
        FrameError: the stream ends before it does, or it is none.
    """
    start = _read(stream, len(_MAGIC) + _LENGTHS.size)
    if start[: len(_MAGIC)] != _MAGIC:
        raise FrameError(f"expected a frame, got {start[:16]!r}")
    header_length, body_length = _LENGTHS.unpack(start[len(_MAGIC) :])
    if header_length > _LONGEST_HEADER or body_length > _LONGEST_BODY:
        raise FrameError(f"a frame of {header_length} + {body_length} bytes is too long")
    try:
        header = parse_json(_read(stream, header_length))
    except ValueError as error:
        raise FrameError(f"a frame's header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise FrameError("a frame's header must be a JSON object")
    return header, _read(stream, body_length)


def parse_json(text: bytes) -> Any:
    """JSON from elsewhere. Raises ValueError if it is none, or nested deeper than the parser goes."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def pack(header: Mapping[str, Any], body: bytes | memoryview = b"") -> bytes:
    """The bytes of a frame."""
    encoded = json.dumps(header).encode()
    return b"".join((_MAGIC, _LENGTHS.pack(len(encoded), len(body)), encoded, body))


def _read(stream: BinaryIO, count: int) -> bytes:
    parts = []
    while count:
        part = stream.read(min(count, 2**20))
        if not part:
            raise FrameError("the stream ended")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


# --- what is said ---------------------------------------------------------------------------------------------------


def request(levels: Tensor, prompts: Sequence[str]) -> tuple[dict[str, Any], bytes]:
    """Header and body that ask for scores of ``[b, 3, H, W]`` uint8 pictures."""
    return {"shape": list(levels.shape), "prompts": list(prompts)}, levels.contiguous().numpy().tobytes()


def read_request(header: Mapping[str, Any], body: bytes) -> tuple[Tensor, list[str]]:
    """Pictures and prompts of a request. Raises FrameError if they do not fit together."""
    shape, prompts = header.get("shape"), header.get("prompts")
    if not isinstance(shape, list) or len(shape) != 4 or not all(type(n) is int and n > 0 for n in shape):
        raise FrameError(f"a request's shape must be [b, 3, H, W], not {str(shape)[:80]}")
    if shape[1] != 3 or len(body) != shape[0] * shape[1] * shape[2] * shape[3]:
        raise FrameError(f"a request of shape {shape} cannot have {len(body)} bytes of pictures")
    if max(shape[2:]) > _LONGEST_SIDE:
        raise FrameError(f"pictures may have {_LONGEST_SIDE} pixels a side, not {shape[2:]}")
    if not isinstance(prompts, list) or len(prompts) != shape[0] or not all(isinstance(p, str) for p in prompts):
        raise FrameError(f"a request for {shape[0]} pictures needs as many prompts")
    return torch.frombuffer(bytearray(body), dtype=torch.uint8).reshape(shape), prompts


def reply(measured: Mapping[str, Tensor]) -> tuple[dict[str, Any], bytes]:
    """Header and body that answer with metrics ``{name: [b]}``."""
    values = torch.stack([value.detach().cpu().float() for value in measured.values()])
    return {"metrics": list(measured)}, values.contiguous().numpy().tobytes()


def read_reply(header: Mapping[str, Any], body: bytes, count: int) -> dict[str, Tensor]:
    """Metrics of an answer about ``count`` pictures. Raises FrameError if it has none or not as many."""
    metrics = header.get("metrics")
    is_named = isinstance(metrics, list) and all(isinstance(name, str) for name in metrics)
    if not metrics or not is_named or len(set(metrics)) != len(metrics):
        raise FrameError(f"an answer needs metrics of different names, not {str(metrics)[:80]}")
    if len(body) != 4 * count * len(metrics):
        raise FrameError(f"an answer for {count} pictures has {len(body)} bytes of metrics {str(metrics)[:80]}")
    values = torch.frombuffer(bytearray(body), dtype=torch.float32).reshape(len(metrics), count)
    return dict(zip(metrics, values, strict=True))
