"""Execution of the checks in order, and their results as a JSON file and a page."""

import json
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from analysis.figures.short_page import short_page
from analysis.formats import WideTable
from harness.experiments.gpu_check.bench import Bench, Outcome
from harness.experiments.gpu_check.checks import CHECKS
from harness.foundation.errors import ConfigError
from harness.foundation.files import make_folder, write_atomically
from harness.runs.identity import environment


def run_checks(bench: Bench, output: Path, say: Callable[[str], None], only: str | None = None) -> bool:
    """Run all checks, or one, and write ``gpu-check.json`` and ``index.html``. Returns whether none failed.

    A check that raises has failed, and the next one runs. Raises ConfigError for an unknown check.
    """
    chosen = {name: check for name, check in CHECKS.items() if only in (None, name)}
    if not chosen:
        raise ConfigError(f"--only {only}: no such check; there are {', '.join(CHECKS)}")
    make_folder(output)
    results = []
    for number, (name, check) in enumerate(chosen.items(), start=1):
        began = time.monotonic()
        try:
            outcome = check(bench)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this check's
            outcome = Outcome(
                {"error": f"{type(error).__name__}: {error}", "where": traceback.format_exc(limit=-2)}, False
            )
        bench.free()
        seconds = time.monotonic() - began
        about = " ".join((check.__doc__ or "").split())
        results.append({"name": name, "about": about, "seconds": seconds, **vars(outcome)})
        shown = ", ".join(f"{key} {_short(value)}" for key, value in outcome.figures.items() if key != "where")
        say(f"{number:2} {_word(outcome.passed):8}{name}: {shown}  ({seconds:.1f} s)")
        content = {
            "device": torch.cuda.get_device_name() if bench.on_gpu else "CPU",
            "tiny": bench.is_tiny,
            "environment": environment(),
            "measured": bench.noted,
            "checks": results,
        }
        write_atomically(output / "gpu-check.json", json.dumps(content, indent=1) + "\n")
        write_atomically(output / "index.html", page(content))
    return all(result["passed"] is not False for result in results)


def page(content: Mapping[str, Any]) -> str:
    """HTML page of the results."""
    rows = [
        (
            f"{_word(check['passed'])}: {check['name']}",
            [
                check["about"],
                ", ".join(f"{name} {_short(value)}" for name, value in check["figures"].items()),
                f"{check['seconds']:.1f} s",
            ],
        )
        for check in content["checks"]
    ]
    sizes = "Tiny widths: its figures say nothing of a real model." if content["tiny"] else "Real widths, few blocks."
    title = f"GPU check: {content['device']}"
    table = WideTable("Checks", ["Check", "What it asks", "Found", "Took"], rows)
    return short_page(title, title, "gpu-check", [sizes], [], [table], [])


def _word(passed: bool | None) -> str:
    return "untold" if passed is None else "passed" if passed else "failed"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
