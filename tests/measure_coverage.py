"""``make coverage``: which lines of harness/ the tests and the dry run execute, written to build/coverage.md.

Worker processes count too: coverage starts in each of them.
"""

import os
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

from coverage import Coverage

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "build" / "coverage.md"
GOAL = 90.0
"""Percent of the lines of harness/."""

_EXPERIMENT = "paper-dry-coverage"
_RUNS = ROOT / "results" / "runs" / _EXPERIMENT
_DATA = ROOT / ".cache" / "coverage"
_CONFIG = ROOT / "pyproject.toml"
_HEAD = """\
# Coverage

Written by `make coverage`: lines of `harness/` that the tests and the dry run (`PROFILE=paper-dry`) execute
on a machine without a GPU, in all processes that they start. What runs in a reward package's environment
(`harness/rewards/remote/workers/`) is executed by `make check-reward-parity`.

"""


def main() -> int:
    """Run tests and dry run, write the page; 1 if either fails or less than ``GOAL`` is covered."""
    shutil.rmtree(_DATA, ignore_errors=True)
    shutil.rmtree(_RUNS, ignore_errors=True)
    _DATA.mkdir(parents=True)
    commands = [
        ["-m", "pytest", "-q", "-n", "2"],
        ["-m", "harness.cli", "grid", "paper-dry", f"experiment={_EXPERIMENT}"],
        ["-m", "harness.cli", "report", f"--runs={_RUNS}", f"--output={_DATA / 'report'}"],
    ]
    codes = [_measured(command) for command in commands]
    shutil.rmtree(_RUNS, ignore_errors=True)
    measured, table = Coverage(data_file=str(_DATA / "data"), config_file=str(_CONFIG)), StringIO()
    measured.combine([str(_DATA)])
    total = measured.report(file=table, output_format="markdown", show_missing=True, include=["harness/*"])
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(_HEAD + table.getvalue(), encoding="utf-8")
    print(f"{total:.1f} % of harness/, by file in {PAGE}")
    return 1 if any(codes) or total < GOAL else 0


def _measured(command: list[str]) -> int:
    environment = os.environ | {"COVERAGE_FILE": str(_DATA / "data"), "OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-m", "coverage", "run", f"--rcfile={_CONFIG}"]
    return subprocess.run([*start, *command], cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
