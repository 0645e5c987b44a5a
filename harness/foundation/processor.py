"""Name and features of this machine's processor."""

import platform
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


@cache
def _described() -> dict[str, str]:
    """Fields of the first core in /proc/cpuinfo; empty on other systems than Linux."""
    lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines() if _CPUINFO.exists() else []
    fields = [line.partition(":") for line in lines]
    return {key.strip(): value.strip() for key, _, value in reversed(fields)}


def name() -> str:
    """Model name of the processor, as its manufacturer gives it."""
    return _described().get("model name") or platform.processor() or platform.machine()


def with_capability() -> str:
    """Name of the processor and the vector units that torch uses, which with it decide a run's rounding."""
    import torch

    return f"{name()} ({torch.backends.cpu.get_cpu_capability()})"


def has_bf16() -> bool:
    """Whether the processor multiplies matrices in bfloat16 (AVX-512 or AMX), twice as fast as float32 or more."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(_described().get("flags", "").split())
