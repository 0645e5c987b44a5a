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
_LONGEST_HEADER, _LONGEST_BODY = 2**24, 2**32


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
        header = json.loads(_read(stream, header_length))
    except ValueError as error:
        raise FrameError(f"a frame's header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise FrameError("a frame's header must be a JSON object")
    return header, _read(stream, body_length)


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
    if not isinstance(shape, list) or len(shape) != 4 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise FrameError(f"a request's shape must be [b, 3, H, W], not {shape}")
    if shape[1] != 3 or len(body) != shape[0] * shape[1] * shape[2] * shape[3]:
        raise FrameError(f"a request of shape {shape} cannot have {len(body)} bytes of pictures")
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
    if not isinstance(metrics, list) or not metrics or len(body) != 4 * count * len(metrics):
        raise FrameError(f"an answer for {count} pictures has {len(body)} bytes of metrics {metrics}")
    values = torch.frombuffer(bytearray(body), dtype=torch.float32).reshape(len(metrics), count)
    return dict(zip(metrics, values, strict=True))
