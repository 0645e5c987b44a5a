"""``make test-processors``: the tests marked ``golden`` as this processor and as older ones compute.

A committed number is read on other processors than the one that made it, where rounding differs. Each library chooses
its kernels by what the processor can do, when it is loaded, and can be told to do with less.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

ROOT = Path(__file__).resolve().parent.parent
_VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "OPENBLAS_CORETYPE")
_SETS = {
    "AVX2": ("avx2", "AVX2", "AVX2", "Haswell"),
    "no AVX": ("default", "SSE41", "SSE4_2", "Nehalem"),
}
"""Values of ``_VARIABLES``; a processor that has no more than a set computes as ever."""
_KEPT_BY_NUMPY = {"AVX2": {"X86_V3", "AVX2", "FMA3", "F16C"}, "no AVX": set()}


def environment_of(name: str) -> dict[str, str]:
    """Variables that make torch, oneDNN, MKL, OpenBLAS and numpy compute with a set of ``_SETS``."""
    # numpy refuses names that its build does not know and warns of those that the processor lacks.
    dropped = [f for f in __cpu_dispatch__ if __cpu_features__.get(f) and f not in _KEPT_BY_NUMPY[name]]
    return dict(zip(_VARIABLES, _SETS[name], strict=True)) | {"NPY_DISABLE_CPU_FEATURES": " ".join(dropped)}


def marked_files() -> list[Path]:
    """Test files that compare with committed numbers: to collect all others takes longer than to run these."""
    return [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.golden" in path.read_text("utf-8")]


def main(arguments: Sequence[str]) -> int:
    """Run the marked tests, or what ``arguments`` of pytest say, with each set; 1 if any run fails."""
    chosen = list(arguments) or ["-m", "golden", *map(str, marked_files())]
    failed = []
    for name in ("this processor", *_SETS):
        print(f"== {name}", flush=True)
        changed = environment_of(name) if name in _SETS else {}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
        if subprocess.run(command, cwd=ROOT, env=os.environ | changed, check=False).returncode:
            failed.append(name)
    print(f"failed with {', '.join(failed)}" if failed else "the same with each")
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
