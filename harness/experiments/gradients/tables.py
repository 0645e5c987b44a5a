"""A finished measurement as small tables, for the analysis: nothing but these files is needed to draw and to judge it.

- ``about.json``: what was measured, where, and with how much work.
- ``units.parquet``: a row per prompt that some strategy chose: one update's groups, their rewards and advantages, and
  inner products of its gradients.
- ``blocks.parquet``: inner products of gradients added up over blocks of rounds, by strategy and by difficulty, and
  of blocks of the reference: what expected gradients and their variance are estimated from.
"""

import json
from collections.abc import Sequence
from io import BytesIO
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness.adagrpo import SELECTION_STRATEGIES
from harness.experiments.gradients.chunks import (
    DIFFICULTY_EDGES,
    SETS,
    STAGES,
    Arrays,
    difficulty_of,
    load,
    plan,
    reference_direction,
)
from harness.experiments.gradients.definition import Mechanism
from harness.experiments.gradients.gradients import KINDS
from harness.foundation.files import write_atomically
from harness.prompts.lists import draw_candidates, read_prompts
from harness.runs.directory import environment

REFERENCE = "reference"
"""Stands for the reference's blocks among ``SETS``, and for its gradient among ``KINDS``."""
FILES = ("units.parquet", "blocks.parquet", "about.json")


def is_written(mechanism: Mechanism, folder: Path) -> bool:
    """Whether the folder holds the tables of this very measurement."""
    if not all((folder / name).is_file() for name in FILES):
        return False
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    return about["identity"] == mechanism.identity and about["checkpoints"] == _checkpoints(mechanism)


def write_tables(mechanism: Mechanism, folder: Path) -> None:
    """Write the tables of a measurement all of whose chunks are there; about.json last, which says that all are.

    Raises:
        RuntimeError: a chunk is missing.
    """
    chunks = plan(mechanism)
    if missing := [chunk.done.name for chunk in chunks if not chunk.done.exists()]:
        raise RuntimeError(f"{len(missing)} chunks are missing, such as {missing[0]}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "about.json").unlink(missing_ok=True)
    units, blocks, seconds, lengths = [], [], [], []
    for checkpoint in mechanism.checkpoints:
        parts = {stage: load(chunks, checkpoint, stage) for stage in STAGES}
        units += [_units(mechanism, checkpoint.label, block, part) for block, part in enumerate(parts["groups"])]
        blocks.append(_blocks(checkpoint.label, parts["groups"], parts["reference"]))
        # Of the processor.
        seconds.append({stage: round(sum(float(part["seconds"]) for part in of), 1) for stage, of in parts.items()})
        lengths.append(float(reference_direction(parts["reference"]).norm()))
    _write(pa.concat_tables(units), folder / "units.parquet")
    _write(pa.concat_tables(blocks), folder / "blocks.parquet")
    about = _about(mechanism) | {
        "reference_counts": [int(part["count"]) for part in parts["reference"]],
        "reference_lengths": lengths,
        "parameters": parts["reference"][0]["sum"].shape[0],
        "seconds": seconds,
        "environment": environment(),
    }
    write_atomically(folder / "about.json", json.dumps(about, indent=1) + "\n")


def _about(mechanism: Mechanism) -> dict[str, Any]:
    config = mechanism.config
    return {
        "identity": mechanism.identity,
        "checkpoints": _checkpoints(mechanism),
        "rounds": mechanism.file.rounds,
        "reference_prompts": mechanism.file.reference_prompts,
        "groups_per_unit": len(config.rollout.branch_indices),
        "kinds": KINDS,
        "strategies": SELECTION_STRATEGIES,
        "difficulty_edges": DIFFICULTY_EDGES,
        "config": config.model_dump(mode="json", exclude={"logging", "runtime", "evaluation", "iterations"}),
    }


def _checkpoints(mechanism: Mechanism) -> list[dict[str, Any]]:
    return [{"label": one.label, "iteration": one.iteration, "weights": one.digest} for one in mechanism.checkpoints]


def _units(mechanism: Mechanism, label: str, block: int, part: Arrays) -> pa.Table:
    """Rows of one chunk of groups. Rewards and advantages are lists: all siblings of a branch index, then the next."""
    rollout, seed, count = mechanism.config.rollout, mechanism.config.seed, len(part["round"])
    prompts = read_prompts(mechanism.config.prompts.train).prompts
    drawn = {n: draw_candidates(prompts, 1, rollout.candidates, seed, n)[0] for n in set(part["round"].tolist())}
    chosen = zip(part["round"].tolist(), part["candidate"].tolist(), strict=True)
    columns: dict[str, Any] = {
        "checkpoint": [label] * count,
        "block": np.full(count, block, np.int16),
        "round": part["round"].astype(np.int32),
        "prompt": [drawn[number][candidate] for number, candidate in chosen],
        "anchor_reward": part["anchor_reward"].astype(np.float32),
        "difficulty": np.array([difficulty_of(reward) for reward in part["anchor_reward"]], np.int8),
        "capability_mean": part["mean"].astype(np.float32),
        "capability_std": part["std"].astype(np.float32),
    }
    columns |= {name: part["chosen"][:, number] for number, name in enumerate(SELECTION_STRATEGIES)}
    columns |= {name: list(part[name].reshape(count, -1).astype(np.float32)) for name in ("rewards", "local", "global")}
    columns |= {f"{kind}|{REFERENCE}": part["reference"][:, k].astype(np.float32) for k, kind in enumerate(KINDS)}
    for (a, first), (b, second) in combinations_with_replacement(enumerate(KINDS), 2):
        columns[f"{first}|{second}"] = part["gram"][:, a, b].astype(np.float32)
    return pa.table(columns)


def _blocks(label: str, groups: Sequence[Arrays], reference: Sequence[Arrays]) -> pa.Table:
    """Inner products of blocks' sums: of different blocks of a set, and with the reference's blocks.

    Products of a block with itself are left out: what is estimated needs independent gradients on both sides.
    """
    of_reference = np.stack([part["sum"] for part in reference]).astype(np.float64)
    parts = [_within(REFERENCE, REFERENCE, REFERENCE, of_reference, of_reference)]
    for number, name in enumerate(SETS):
        sums = np.stack([part["sums"][number] for part in groups]).astype(np.float64)
        of_kind = {kind: sums[:, k] for k, kind in enumerate(KINDS)}
        for (first, ours), (second, theirs) in combinations_with_replacement(of_kind.items(), 2):
            parts.append(_within(name, first, second, ours, theirs))
        for kind, ours in of_kind.items():
            products = ours @ of_reference.T
            parts.append(_products(name, kind, REFERENCE, np.indices(products.shape).reshape(2, -1), products.ravel()))
    table = pa.concat_tables(parts)
    return table.add_column(0, "checkpoint", pa.array([label] * len(table)))


def _within(name: str, kind: str, other_kind: str, ours: np.ndarray, theirs: np.ndarray) -> pa.Table:
    """Products of each pair of blocks, once: of two kinds, the mean of both ways, since sums need no more."""
    products = ours @ theirs.T
    pairs = np.array(np.triu_indices(len(ours), k=1))
    return _products(name, kind, other_kind, pairs, ((products + products.T) / 2)[tuple(pairs)])


def _products(name: str, kind: str, other_kind: str, blocks: np.ndarray, values: np.ndarray) -> pa.Table:
    return pa.table(
        {
            "set": [name] * len(values),
            "kind": [kind] * len(values),
            "other_kind": [other_kind] * len(values),
            "block": blocks[0].astype(np.int16),
            "other_block": blocks[1].astype(np.int16),
            "value": values.astype(np.float32),
        }
    )


def _write(table: pa.Table, path: Path) -> None:
    """Write a small file: no two floating-point numbers are alike, but their leading bytes are."""
    floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    others, buffer = [name for name in table.column_names if name not in floats], BytesIO()
    packed = {"compression": "zstd", "compression_level": 19}
    pq.write_table(table, buffer, use_dictionary=others, use_byte_stream_split=floats, **packed)
    write_atomically(path, buffer.getvalue())
