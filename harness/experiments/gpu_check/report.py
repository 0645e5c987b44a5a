"""Runs the checks in order, and writes what they found: one JSON file, and a page of it."""

import html
import json
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from harness.experiments.gpu_check import network, training
from harness.experiments.gpu_check.bench import Bench, Outcome
from harness.foundation.errors import ConfigError
from harness.foundation.files import read_text, write_atomically
from harness.runs.directory import environment

Check = Callable[[Bench], Outcome]

CHECKS: dict[str, Check] = {
    "environment": network.environment,
    "loading in the stored dtype": network.loading,
    "text": network.text,
    "sampling is the pipeline's": network.parity,
    "batch of one and of many": network.batches,
    "with gradient as without": network.gradient_mode,
    "ratio at the first update": training.on_policy,
    "recomputed ratio": training.recomputed,
    "adapters are sampled with": network.kept_change,
    "dtypes and kernels": network.dtypes,
    "copies under autocast": network.autocast_copies,
    "memory of a forward": network.activations,
    "speed of a forward": network.speed,
    "cost of adapters": network.adapters_cost,
    "gradients": training.gradients,
    "weights that move, and AdamW's memory": training.moved_weights,
    "gradients gone after an update": training.adamw_memory,
    "decoding": network.decoding,
    "HPS-v2": training.hpsv2,
    "HPS-v3": training.hpsv3,
    "pictures on the CPU": training.pictures,
    "FSDP2 on one device": training.sharded,
    "FSDP2 on two GPUs": training.two_processes,
    "checkpoint and resume": training.resume,
    "the same twice": training.determinism,
    "guidance of SD3.5": network.guidance,
    "SD3.5 within 24 GB": training.small_card,
    "phases of an iteration": training.phases,
    "graphs and waits": network.graphs,
}


def run_checks(bench: Bench, output: Path, say: Callable[[str], None], only: str | None = None) -> bool:
    """Run all checks, or one, and write ``gpu-check.json`` and ``index.html``; whether none failed.

    A check that raises has failed, and the next one runs.
    """
    chosen = {name: check for name, check in CHECKS.items() if only in (None, name)}
    if not chosen:
        raise ConfigError(f"--only {only}: no such check; there are {', '.join(CHECKS)}")
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
        results.append({"name": name, "about": about, "passed": outcome.passed, "seconds": seconds, **_plain(outcome)})
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


def read_measured(file: Path) -> dict[str, float]:
    """What a GPU's checks measured: ``flops`` per second, and ``activations`` over the doctor's estimate of them.

    Raises:
        ConfigError: the file is not one of ``adagrpo gpu-check``, or of tiny widths, which say nothing of a real model.
    """
    try:
        content = json.loads(read_text(file))
        measured: dict[str, float] = {name: float(value) for name, value in content["measured"].items()}
        is_tiny = content["tiny"]
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ConfigError(f"--measured {file}: was not written by adagrpo gpu-check") from None
    if is_tiny:
        raise ConfigError(
            f"--measured {file}: is of tiny widths, which say nothing of a real model; measure without --tiny"
        )
    if not measured.get("flops", 0) > 0:
        raise ConfigError(f"--measured {file}: has no speed of a forward; run that check")
    return measured


def page(content: Mapping[str, Any]) -> str:
    """The same as a page."""
    rows = [
        f"<tr class={_word(check['passed'])}><td>{_word(check['passed'])}<td>{html.escape(check['name'])}<td>"
        f"{html.escape(check['about'])}<td>"
        + "<br>".join(f"{html.escape(k)}: {html.escape(_short(v))}" for k, v in check["figures"].items())
        + f"<td>{check['seconds']:.1f} s"
        for check in content["checks"]
    ]
    sizes = "tiny widths: its figures say nothing of a real model" if content["tiny"] else "real widths, few blocks"
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<title>GPU check</title><style>body{font:15px system-ui;margin:1rem;max-width:70rem}table{border-collapse:"
        "collapse}td,th{padding:.3rem .6rem;vertical-align:top;text-align:left;border-top:1px solid #ddd;overflow-wrap:"
        "anywhere}.failed{background:#fdd}.untold{color:#666}</style>"
        f"<h1>GPU check: {html.escape(content['device'])}</h1><p>{sizes}.<table><tr><th><th>Check<th>What it asks"
        f"<th>Found<th>Took{''.join(rows)}</table>\n"
    )


def _plain(outcome: Outcome) -> dict[str, Any]:
    return {"figures": outcome.figures}


def _word(passed: bool | None) -> str:
    return "untold" if passed is None else "passed" if passed else "failed"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
