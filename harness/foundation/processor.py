"""What this machine's processor is."""

import platform
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


@cache
def _described() -> dict[str, str]:
    """Fields of the first core, as Linux names them; empty elsewhere."""
    lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines() if _CPUINFO.exists() else []
    fields = [line.partition(":") for line in lines]
    return {key.strip(): value.strip() for key, _, value in reversed(fields)}


def name() -> str:
    """As its maker calls it."""
    return _described().get("model name") or platform.processor() or platform.machine()


def has_bf16() -> bool:
    """Whether it multiplies matrices in bfloat16, by AVX-512 or AMX: about twice as fast as in float32, or more."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(_described().get("flags", "").split())
