"""A worker's standard streams."""

import signal
import subprocess
import sys
from pathlib import Path

from harness.config import ROOT


def test_each_log_holds_all_that_is_printed_meanwhile_by_children_too(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from harness.experiments.jobs.streams import output_to\n"
        "print('before')\n"
        "for name in 'ab':\n"
        "    with output_to(Path(sys.argv[1]) / name):\n"
        "        print(name); print(f'error {name}', file=sys.stderr); os.system(f'echo child {name}')\n"
        "print('after')\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert (result.stdout, result.stderr) == ("before\nafter\n", "")
    for name in "ab":
        assert sorted((tmp_path / name).read_text().splitlines()) == [name, f"child {name}", f"error {name}"]


def test_a_worker_ends_when_the_launcher_does() -> None:
    script = (
        "import signal; from harness.experiments.jobs.streams import end_with_input; end_with_input(); signal.pause()"
    )
    worker = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, cwd=ROOT)
    assert worker.stdin is not None
    worker.stdin.close()
    assert worker.wait() == -signal.SIGTERM
