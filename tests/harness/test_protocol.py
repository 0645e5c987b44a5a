"""A run records how its results will be judged, and which of its settings are its own."""

import hashlib
import json

import torch

from harness.config import ROOT
from harness.runs.directory import RunDirectory


def test_a_run_records_the_protocol_and_what_its_numbers_depend_on(lora_run: RunDirectory) -> None:
    recorded = json.loads((lora_run.folder / "environment.json").read_text())
    assert (
        recorded["protocol_sha256"]
        == hashlib.sha256((ROOT / "analysis" / "verdicts" / "planned.py").read_bytes()).hexdigest()
    )
    # Seconds are only compared between runs where this is the same.
    assert recorded["processor"].endswith(f"({torch.backends.cpu.get_cpu_capability()})")
    settings = recorded["settings"]
    assert settings["rollout"] == {"candidates": 1, "group_size": 2, "branch_indices": [1]}
    assert settings["optimizer"] == {"learning_rate": 0.02}
    assert settings["reward"] == {"colour": 1.0}
    assert {"runtime", "experiment", "prompts", "logging"}.isdisjoint(settings)
