"""Finished runs that several tests read: short, and of a learning rate that changes pictures visibly."""

from pathlib import Path

import pytest
import torch

from harness.config import ROOT, compose
from harness.runs import RunDirectory, prepare_run
from harness.session import Session

SHORT = [
    "iterations=1",
    "reward={colour: 1}",
    "rollout.candidates=1",
    "rollout.group_size=2",
    "rollout.branch_indices=[1]",
    "evaluation.judges=[colour]",
    "evaluation.validation_prompts=2",
    "evaluation.gallery=0",
]


def _finished(folder: Path, *overrides: str) -> RunDirectory:
    torch.set_num_threads(1)
    lines = (ROOT / "harness/models/miniature/data/test.txt").read_text().splitlines()[:4]
    prompts = folder / "test-prompts.txt"
    prompts.write_text("\n".join(lines) + "\n")
    run = prepare_run(compose("miniature", overrides=[*SHORT, f"prompts.test={prompts}", *overrides]), folder)
    Session(run, say=lambda line: None).execute()
    return run


@pytest.fixture(scope="session")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished run of LoRA, alpha twice the rank; not to be written to."""
    return _finished(tmp_path_factory.mktemp("lora"), "optimizer.learning_rate=0.02", "evaluation.base_test=true")


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished run of full fine-tuning; not to be written to."""
    return _finished(tmp_path_factory.mktemp("full"), "optimizer.tuning=full", "optimizer.learning_rate=1e-3")
