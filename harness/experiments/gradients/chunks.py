"""The parts of a measurement: what each computes, and its file."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from harness.adagrpo import SELECTION_STRATEGIES
from harness.config import RunConfig
from harness.experiments.gradients.checkpoint import MeasuredCheckpoint
from harness.experiments.gradients.definition import Mechanism
from harness.experiments.gradients.gradients import KINDS, advantages_of, update_gradients
from harness.experiments.gradients.sampling import Sampler, select_all
from harness.experiments.jobs.job import Job
from harness.foundation.files import write_atomically
from harness.prompts.lists import read_prompts
from harness.rewards import build_weighted
from harness.trained.loading import device_of

Stage = Literal["reference", "candidates", "groups"]
STAGES: tuple[Stage, ...] = get_args(Stage)
Arrays = Mapping[str, np.ndarray]

DIFFICULTY_EDGES = (0.2, 0.4, 0.6, 0.8)
"""Edges of five bins of a candidate's reward, which strategies choose by, the hardest first."""
SETS = (*SELECTION_STRATEGIES, *(f"difficulty-{number}" for number in range(len(DIFFICULTY_EDGES) + 1)))
"""What gradients are added up over: the updates of a strategy, and the different prompts of a bin."""


@dataclass(kw_only=True, eq=False)
class Chunk(Job):
    """A part of a measurement. It is done once its file is there; its size is about how many pictures it scores.

    Attributes:
        checkpoint: where.
        stage: what.
        members: numbers of reference prompts, from 0, or of rounds, from 1.
    """

    checkpoint: MeasuredCheckpoint
    stage: Stage
    members: range


def plan(mechanism: Mechanism) -> list[Chunk]:
    """All chunks in the order of work. Groups need the reference and all candidates of their checkpoint."""
    file, rollout = mechanism.file, mechanism.config.rollout
    per_prompt = len(rollout.branch_indices) * rollout.group_size
    first, last = 1 + file.warm_up_rounds, file.warm_up_rounds + file.rounds
    stages: list[tuple[Stage, range, int]] = [
        ("reference", range(file.reference_prompts), per_prompt),
        ("candidates", range(1, last + 1), rollout.candidates),
        ("groups", range(first, last + 1), per_prompt * min(len(SELECTION_STRATEGIES), rollout.candidates)),
    ]
    chunks: list[Chunk] = []
    for checkpoint in mechanism.checkpoints:
        folder, before = mechanism.folder(checkpoint), len(chunks)
        for stage, members, each in stages:
            needs = [chunk.done for chunk in chunks[before:]] if stage == "groups" else []
            for number, start in enumerate(range(0, len(members), file.chunk)):
                part, done = members[start : start + file.chunk], folder / f"{stage}-{number:03d}.npz"
                chunks.append(
                    Chunk(
                        id=f"{checkpoint.label}:{done.stem}",
                        call=partial(compute, mechanism, checkpoint, stage, part, done),
                        done=done,
                        log=folder / "log.txt",
                        config=mechanism.config,
                        needs=needs,
                        size=each * len(part),
                        checkpoint=checkpoint,
                        stage=stage,
                        members=part,
                    )
                )
    return chunks


def load(chunks: Sequence[Chunk], checkpoint: MeasuredCheckpoint, stage: Stage) -> list[Arrays]:
    """The arrays of the files of a checkpoint's stage, in order."""
    paths = [chunk.done for chunk in chunks if chunk.checkpoint == checkpoint and chunk.stage == stage]
    return [dict(np.load(path, allow_pickle=False)) for path in paths]


def compute(mechanism: Mechanism, checkpoint: MeasuredCheckpoint, stage: Stage, members: range, path: Path) -> None:
    """Compute a chunk and write its file, in one step, so that a kill leaves all of it or nothing.

    Raises:
        TrainingError: a picture is not finite.
        RewardError: the reward could not score.
        ConfigError: the checkpoint does not fit, or a prompt cannot be drawn.
    """
    sampler = sampler_at(mechanism, checkpoint)
    began = time.process_time()
    if stage == "reference":
        arrays = reference_sums(members, sampler)
    elif stage == "candidates":
        arrays = {"rewards": torch.stack([sampler.candidate_rewards(number) for number in members]).numpy()}
    else:
        chunks = plan(mechanism)
        reference = reference_direction(load(chunks, checkpoint, "reference"))
        candidates = np.concatenate([part["rewards"] for part in load(chunks, checkpoint, "candidates")])
        arrays = _groups(members, sampler, reference, torch.from_numpy(candidates))
    buffer = BytesIO()
    np.savez(buffer, allow_pickle=False, seconds=np.array(time.process_time() - began), **arrays)
    write_atomically(path, buffer.getvalue())


@lru_cache(maxsize=1)
def sampler_at(mechanism: Mechanism, checkpoint: MeasuredCheckpoint) -> Sampler:
    """What draws at a checkpoint; the latest is kept for the next chunk."""
    return make_sampler(mechanism.config, checkpoint)


def make_sampler(config: RunConfig, checkpoint: MeasuredCheckpoint) -> Sampler:
    """What draws at a checkpoint."""
    torch.set_num_threads(config.runtime.threads)
    policy, prompts = (
        checkpoint.load(config, device_of(config.runtime.device)),
        read_prompts(config.prompts.train).prompts,
    )
    policy.check_prompts(prompts)
    return Sampler(config, policy, build_weighted(config.reward, config.runtime.threads, config.rewards), prompts)


def reference_direction(parts: Sequence[Arrays]) -> Tensor:
    """The reference gradient, ``[parameters]`` float64: the mean over the reference prompts of all its chunks."""
    total = sum(part["sum"].astype(np.float64) for part in parts)
    return torch.from_numpy(total / sum(int(part["count"]) for part in parts))


def difficulty_of(anchor_reward: float) -> int:
    """Number of the bin that a candidate's reward is in, 0 for the hardest."""
    return int(np.searchsorted(DIFFICULTY_EDGES, anchor_reward, side="right"))


def reference_sums(members: range, sampler: Sampler) -> Arrays:
    """Sum of the unbiased gradients of prompts, and of their squared lengths."""
    total, squares = torch.zeros((), dtype=torch.float64), 0.0
    for number in members:
        sampled = sampler.of_reference(number)
        # The capability plays no part in this kind.
        advantages = advantages_of(sampled.rewards, 0.0, 1.0, sampler.config.objective.advantage_clip)
        [gradient] = update_gradients(sampled.scores, {"unbiased": advantages["unbiased"]})
        total = total + gradient
        squares += float(gradient @ gradient)
    count = np.array(len(members))
    return {"sum": total.float().numpy(), "squares": np.array(squares), "count": count}


def _groups(members: range, sampler: Sampler, reference: Tensor, rewards: Tensor) -> Arrays:
    """Every chosen prompt's groups as rows, and sums of gradients over each of ``SETS``.

    ``rewards`` are the candidates' of all rounds, ``[warm-up and rounds, B]``.

    Arrays, for n different prompts: ``round``, ``candidate`` ``[n]``; ``anchor_reward``, ``mean``, ``std`` ``[n]``;
    ``chosen`` ``[n, strategies]`` bool; ``rewards``, ``local``, ``global`` ``[n, K, G]``; ``gram``
    ``[n, kinds, kinds]`` and ``reference`` ``[n, kinds]``: inner products of the update's gradients with each other and
    with the reference; ``sums`` ``[sets, kinds, parameters]`` float32.
    """
    clip = sampler.config.objective.advantage_clip
    selections = select_all(rewards, 1, sampler.config)
    sums = torch.zeros(len(SETS), len(KINDS), len(reference), dtype=torch.float32)
    rows: list[dict[str, object]] = []
    for number in members:
        selection = selections[number - 1]
        for candidate in sorted(set(selection.chosen.values())):
            strategies = [strategy for strategy, chosen in selection.chosen.items() if chosen == candidate]
            anchor_reward = float(rewards[number - 1, candidate])
            sampled = sampler.of_candidate(number, candidate)
            advantages = advantages_of(sampled.rewards, selection.mean, selection.std, clip)
            gradients = update_gradients(sampled.scores, advantages)
            for name in (*strategies, f"difficulty-{difficulty_of(anchor_reward)}"):
                sums[SETS.index(name)] += gradients
            rows.append(
                {
                    "round": number,
                    "candidate": candidate,
                    "anchor_reward": anchor_reward,
                    "mean": selection.mean,
                    "std": selection.std,
                    "chosen": [strategy in strategies for strategy in SELECTION_STRATEGIES],
                    "rewards": sampled.rewards.numpy(),
                    "local": advantages["local"].numpy(),
                    "global": advantages["global"].numpy(),
                    "gram": (gradients @ gradients.T).numpy(),
                    "reference": (gradients @ reference).numpy(),
                }
            )
    return {name: np.array([row[name] for row in rows]) for name in rows[0]} | {"sums": sums.numpy()}
