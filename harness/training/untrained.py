"""Cache of the untrained model's evaluation, written by the first run of an experiment and shared by all of them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.config import NUMERICS_VERSION, RunConfig
from harness.foundation.files import write_atomically
from harness.foundation.plugins import find
from harness.models.pipelines.files import model_fingerprint
from harness.models.pipelines.locate import find_pipeline
from harness.prompts.lists import read_prompts
from harness.rewards import Reward
from harness.runs.identity import environment
from harness.training.observation import VERSION as OBSERVATION


def digest(config: RunConfig, judges: Sequence[Reward], split: str, num_prompts: int, num_noises: int) -> str:
    """Hash of everything that an evaluation of the untrained model on the first prompts of a list depends on."""
    model, settings = config.model, config.evaluation
    content = [
        NUMERICS_VERSION,
        environment()["code_sha256"],
        OBSERVATION,
        model_fingerprint(find_pipeline(model.path)),
        model.model_dump(mode="json", exclude={"path", "execution"}),
        None if model.adapter is None else find(model.adapter).sha256,
        {judge.name: judge.fingerprint() for judge in judges},
        read_prompts(getattr(config.prompts, split)).sha256,
        num_prompts,
        num_noises,
        [settings.num_steps, settings.height, settings.width],
    ]
    return _sha256(content)[:16]


def read(path: Path) -> dict[str, list[float]] | None:
    """Values stored in a file; None if the file is missing or damaged, so that they are measured again."""
    try:
        content = json.loads(path.read_bytes())
        measured: dict[str, list[float]] = content["measured"]
        return measured if content["sha256"] == _sha256(measured) else None
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return None


def write(path: Path, measured: Mapping[str, Sequence[float]]) -> None:
    """Store an evaluation with its checksum."""
    write_atomically(path, json.dumps({"sha256": _sha256(measured), "measured": measured}))


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
