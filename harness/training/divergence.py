"""Dump of an iteration that failed, for diagnosis: its prompts, the keys of its draws, and statistics of tensors."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.foundation.errors import TrainingError
from harness.foundation.files import write_atomically
from harness.training.trainer import Trainer


def statistics(values: Tensor) -> dict[str, Any]:
    """Statistics of a tensor: shape, number of finite values, index of the first other one, range, mean and std."""
    values = values.detach()
    if hasattr(values, "to_local"):  # of sharded weights this process's share
        values = values.to_local()
    values = values.float().cpu()
    is_finite = values.isfinite()
    finite, others = values[is_finite].double(), (~is_finite).nonzero()
    numbers = {"min": finite.min(), "max": finite.max(), "mean": finite.mean()} if len(finite) else {}
    return {
        "shape": list(values.shape),
        "finite": f"{int(is_finite.sum())} of {values.numel()}",
        "first that is not": others[0].tolist() if len(others) else None,
        **{name: float(value) for name, value in numbers.items()},
        "std": float(finite.std()) if len(finite) > 1 else None,
    }


def dump(folder: Path, trainer: Trainer, error: Exception) -> Path:
    """Describe the trainer's iteration, and the tensors of a TrainingError that ended it, in a file of the folder.

    It is ``failure-ITERATION.json``; processes other than the main one add their rank to the name. Returns its path.
    """
    iteration, rank, slots = trainer.iteration, trainer.processes.index, trainer.slots
    tensors = dict(error.tensors) if isinstance(error, TrainingError) else {}
    for slot in slots:
        rollout, scores = getattr(slot, "rollout", None), getattr(slot, "scores", None)
        kept = {"rewards of candidates": slot.samples, "latents at the end": rollout and rollout.finals}
        kept["rewards"] = scores and scores.total
        tensors |= {f"slot {slot.number}: {name}": values for name, values in kept.items()}
    content = {
        "iteration": iteration,
        "reason": " ".join(str(error).split()),
        "slots": [
            # All random draws of a slot are functions of these three.
            {"seed, iteration, slot": [trainer.config.seed, iteration, slot.number]}
            | {"candidates": slot.prompts, "chosen": slot.prompt}
            for slot in slots
        ],
        "tensors": {name: statistics(values) for name, values in tensors.items() if isinstance(values, Tensor)},
    }
    path = folder / f"failure-{iteration:07d}{f'-rank{rank}' if rank else ''}.json"
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path
