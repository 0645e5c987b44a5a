"""Measurements for an upper bound of choosing prompts: how far single updates would move the expected reward.

One update ahead, first order, of the plain gradient: for a pool of training prompts, each with several initial noises,
the inner product of the update's gradient with the reference direction, for every kind of advantage in training. The
conclusions are computed in ``harness.experiments.upper_bound``, from the table alone.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.adagrpo import CapabilityTracker
from harness.config import ConfigError, RunConfig, compose
from harness.config.selection import needs_of
from harness.experiments.gradients.checkpoint import (
    ONE_PROMPT,
    SEED,
    MeasuredCheckpoint,
    find_measured,
    require_measurable,
)
from harness.experiments.gradients.gradients import local_advantages, unbiased_advantages, update_gradients
from harness.experiments.gradients.sampling import (
    Sampled,
    Sampler,
    make_sampler,
    reference_direction,
    reference_sums,
)
from harness.experiments.parts import Arrays, Parts
from harness.prompts.lists import generator_for, read_prompts
from harness.rules.advantages import FUSIONS, Group, fuse, shrinkage
from harness.rules.ledger import Ridge, mean_and_spread
from harness.runs.directory import RUNS, find_run
from harness.runs.identity import environment
from harness.trained.loading import device_of

SAME_LENGTH = ", same length"
CONTROLLED = tuple(kind for kind in FUSIONS if kind not in ("rescaled", "ema_std"))
"""Fusions that are measured with a control of the same length. The others change only the length of local advantages,
so that they are their own control."""
KINDS = ("local", "unbiased", "prompt_mean", *FUSIONS, *(kind + SAME_LENGTH for kind in CONTROLLED))
BLOCKS = 16
_VERSION = 2


@dataclass(frozen=True)
class Oracle:
    """A measurement that is ready to be executed.

    Attributes:
        config: configuration whose gradients are measured.
        checkpoint: checkpoint at which they are measured.
        references: R, number of training prompts of the reference direction, in a first and a second half.
        prompts: P, number of training prompts in the pool.
        noises: N, number of initial noises per prompt.
    """

    config: RunConfig
    checkpoint: MeasuredCheckpoint
    references: int
    prompts: int
    noises: int

    @cached_property
    def identity(self) -> str:
        """Hash of everything that the numbers depend on."""
        size = [self.references, self.prompts, self.noises]
        settings = [_VERSION, find_run(self.config).run_id, self.checkpoint.digest, self.config.fusion.weight, *size]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:10]

    @property
    def name(self) -> str:
        """Name of the table: experiment and iteration, in which the tables of one folder differ."""
        return f"{self.config.experiment}-{self.checkpoint.iteration}"

    @property
    def folder(self) -> Path:
        """Folder in which the parts are kept."""
        return RUNS / "oracle" / f"{self.checkpoint.label}-{self.identity}"


def load_oracle(
    profile: str, overrides: Sequence[str], checkpoint: str, references: int, prompts: int, noises: int
) -> Oracle:
    """Check and prepare a measurement; nothing heavy is loaded and nothing is written.

    Raises:
        ConfigError: a key or an option is not valid, which one line names.
    """
    config = compose(profile, overrides=[SEED, *ONE_PROMPT, *overrides])
    require_measurable(config, profile)
    there = len(read_prompts(config.prompts.train).prompts)
    if not config.rollout.candidates < prompts <= there:
        raise ConfigError(
            f"--prompts {prompts}: must be above rollout.candidates={config.rollout.candidates} and at most {there}, "
            f"all of {config.prompts.train}"
        )
    return Oracle(config, find_measured(checkpoint, config), references, prompts, noises)


def measure(oracle: Oracle, say: Callable[[str], object]) -> dict[str, Any]:
    """Compute the missing parts, each in a file, and return the table.

    Keys: ``rewards`` ``[P, N]`` of deterministic samples, ``previews`` of samples with a quarter of the steps;
    ``groups`` ``[P, N, K, G]``; ``foretold``: each prompt's m and s as a ledger predicts them from the others' first
    updates; ``updates``, for local advantages and a ``larger`` group: ``projections`` ``[P, N, 2]``, inner products of
    an update's gradient with each half of the reference, and ``squares`` ``[P, N]``, its squared length; ``blocks``:
    inner products of sums of gradients, see ``_block_products``; settings.

    Raises:
        TrainingError: a picture is not finite.
        RewardError: the reward could not score.
    """
    config = oracle.config
    sampler = make_sampler(config, oracle.checkpoint, device_of(config.runtime.device))
    pool = Pool(oracle, sampler)
    parts = Parts(oracle.folder, oracle.references + oracle.prompts * oracle.noises, "updates", say)
    reference = [
        parts.get(f"reference-{number:02d}", len(of), partial(reference_sums, of, sampler))
        for number, of in enumerate(_blocks(oracle.references))
    ]
    middle = len(reference) // 2
    directions = torch.stack([reference_direction(reference[:middle]), reference_direction(reference[middle:])])
    samples = [parts.get(f"samples-{number:02d}", 0, partial(pool.samples, of)) for number, of in pool.blocks()]
    rewards, previews, text = (
        np.concatenate([part[key] for part in samples]) for key in ("rewards", "previews", "text")
    )
    pool.capability.update(torch.from_numpy(rewards).flatten())
    updates = [
        parts.get(f"pool-{number:02d}", len(of) * oracle.noises, partial(pool.updates, of, directions))
        for number, of in pool.blocks()
    ]
    groups, projections, squares = (
        np.concatenate([part[key] for part in updates]) for key in ("groups", "projections", "squares")
    )
    return {
        "identity": oracle.identity,
        "experiment": config.experiment,
        "iteration": oracle.checkpoint.iteration,
        "checkpoint": oracle.checkpoint.label,
        "candidates": config.rollout.candidates,
        "num_steps": config.model.num_steps,
        "group_size": config.rollout.group_size,
        "larger_group": larger_group(config),
        "fusion_weight": config.fusion.weight,
        "capability": [pool.capability.mean, pool.capability.std],
        "prompts": [sampler.prompts[i] for i in pool.drawn],
        "rewards": rewards.round(4).tolist(),
        "previews": previews.round(4).tolist(),
        "groups": groups.round(4).tolist(),
        "foretold": _foretold(torch.from_numpy(text), torch.from_numpy(groups[:, 0])),
        "updates": {
            kind: {"projections": _short(projections[:, :, number]), "squares": _short(squares[:, :, number])}
            for number, kind in enumerate(("local", "larger"))
        },
        "blocks": _block_products(reference, directions, updates, oracle.noises),
        "config": config.model_dump(mode="json", exclude={"logging", "runtime", "evaluation", "iterations"}),
        "environment": environment(),
    }


def larger_group(config: RunConfig) -> int:
    """Group size whose extra siblings cost what B candidates' samples cost, rounded down: what choosing must beat."""
    rollout, steps = config.rollout, config.model.num_steps
    branched = rollout.kind == "anchor_branch"
    of_sibling = sum(steps - 1 - index for index in rollout.branch_indices) if branched else steps
    return rollout.group_size + (rollout.candidates - 1) * steps // of_sibling


def every_advantage(
    rewards: Tensor, mean: float, std: float, prompt_mean: float, config: RunConfig
) -> Mapping[str, Tensor]:
    """``{kind: [K, G]}`` for ``KINDS``, from rewards ``[K, G]`` and the capability; fusions with ``fusion.weight``.

    ``prompt_mean`` is (R - the prompt's mean in its other updates) / s, as if the prompt's level were known exactly.
    """
    clip, weight = config.objective.advantage_clip, config.fusion.weight
    local, rewards = local_advantages(rewards, clip), rewards.double()
    groups = [Group(*of_group, mean, std, clip) for of_group in zip(local, rewards, strict=True)]
    known = [shrinkage(replace(group, mean=prompt_mean, std=0.0), 1.0) for group in groups]
    fused = {
        kind + (SAME_LENGTH if same else ""): torch.stack([fuse(group, kind, weight, same) for group in groups])
        for same, kinds in ((False, FUSIONS), (True, CONTROLLED))
        for kind in kinds
    }
    return {"local": local, "unbiased": unbiased_advantages(rewards), "prompt_mean": torch.stack(known), **fused}


@dataclass
class Pool:
    """Prompts to choose from, each with several noises; ``capability`` is that of all their samples."""

    oracle: Oracle
    sampler: Sampler
    capability: CapabilityTracker = field(default_factory=CapabilityTracker)

    @cached_property
    def drawn(self) -> list[int]:
        """The prompts, as indices into the training list."""
        order = torch.randperm(len(self.sampler.prompts), generator=generator_for(self.oracle.config.seed, "pool"))
        return order[: self.oracle.prompts].tolist()

    def sampled(self, prompt: int, number: int, group_size: int | None = None) -> Sampled:
        """Groups of a prompt, sampled from one of its noises."""
        key, text = (self.oracle.config.seed, "pool", prompt, number, "branches"), self.sampler.prompts[prompt]
        return self.sampler.of_prompt(text, self._noise(prompt, number), key, group_size)

    def blocks(self) -> Iterable[tuple[int, list[int]]]:
        """Numbered parts of the pool, as indices into the training list."""
        return ((number, [self.drawn[i] for i in of]) for number, of in enumerate(_blocks(len(self.drawn))))

    def samples(self, prompts: Sequence[int]) -> Arrays:
        """Rewards of each prompt's samples and of their previews, and its text embedding."""
        noises, steps = self.oracle.noises, self.oracle.config.model.num_steps
        few = max(1, int(steps * needs_of("preview").step_share))
        text = [self.sampler.prompts[prompt] for prompt in prompts for _ in range(noises)]
        noise = torch.cat([self._noise(prompt, number) for prompt in prompts for number in range(noises)])
        rewards, previews = (self.sampler.rewards_of(text, noise, of).reshape(-1, noises) for of in (steps, few))
        embedded = self.sampler.policy.encode(text[::noises]).summary.cpu()
        return {"rewards": rewards.numpy(), "previews": previews.numpy(), "text": embedded.numpy()}

    def updates(self, prompts: Sequence[int], directions: Tensor) -> Arrays:
        """Updates of local advantages and of a larger group, and sums of all ``KINDS``, from the same siblings.

        ``groups`` ``[P, N, K, G]``; ``projections`` ``[P, N, 2, 2]`` and ``squares`` ``[P, N, 2]`` of the two;
        ``sums`` ``[kinds, parameters]`` and ``sum_squares`` ``[kinds]`` over all updates.
        """
        config, rows = self.oracle.config, []
        size, sums, sum_squares = config.rollout.group_size, torch.zeros(()), torch.zeros(())
        for prompt in prompts:
            sampled = [self.sampled(prompt, n, larger_group(config)) for n in range(self.oracle.noises)]
            means = torch.stack([of.rewards[:, :size].mean() for of in sampled])
            elsewhere = (means.sum() - means) / (len(means) - 1)
            for of, prompt_mean in zip(sampled, elsewhere.tolist(), strict=True):
                few = of.rewards[:, :size]
                made = every_advantage(few, self.capability.mean, self.capability.std, prompt_mean, config)
                larger = local_advantages(of.rewards, config.objective.advantage_clip)
                spare, scale = larger.shape[1] - size, larger.shape[1] / size
                padded = [pad(values * scale, (0, spare)) for values in made.values()]
                gradients = update_gradients(of.scores, *padded, larger)
                lengths = gradients.square().sum(1)
                sums, sum_squares = sums + gradients[:-1].float(), sum_squares + lengths[:-1]
                told = [0, -1]
                rows.append((few, gradients[told] @ directions.T, lengths[told]))
        named = zip(("groups", "projections", "squares"), zip(*rows, strict=True), strict=True)
        shaped = {name: torch.stack(of).unflatten(0, (len(prompts), self.oracle.noises)).numpy() for name, of in named}
        return {**shaped, "sums": sums.numpy(), "sum_squares": sum_squares.numpy()}

    def _noise(self, prompt: int, number: int) -> Tensor:
        return self.sampler.policy.noise(generator_for(self.oracle.config.seed, "pool", prompt, number))


def _blocks(count: int) -> list[range]:
    """Numbers below ``count`` in ``BLOCKS`` parts of about the same size, which are resampled for intervals."""
    bounds = np.linspace(0, count, min(BLOCKS, count) + 1).astype(int).tolist()
    return [range(start, end) for start, end in pairwise(bounds)]


def _block_products(
    reference: Sequence[Arrays], halves: Tensor, updates: Sequence[Arrays], noises: int
) -> dict[str, Any]:
    """Inner products of different blocks' sums of gradients, from which bias and variance are estimated.

    ``reference``: ``counts`` of its blocks and their ``products`` ``[blocks, blocks]``, its ``length`` and the
    ``cosine_of_halves``; ``counts`` of the pool's blocks; by kind ``products`` ``[blocks, blocks]``, ``with_reference``
    ``[blocks, reference blocks]``, ``squares`` ``[blocks]``. Products of a set of blocks with itself are given only
    above the diagonal.
    """
    directions = np.stack([part["sum"] for part in reference]).astype(np.float64)
    kinds = {}
    for number, kind in enumerate(KINDS):
        sums = np.stack([part["sums"][number] for part in updates]).astype(np.float64)
        kinds[kind] = {
            "products": _short(np.triu(sums @ sums.T, 1)),
            "with_reference": _short(sums @ directions.T),
            "squares": _short(np.array([part["sum_squares"][number] for part in updates])),
        }
    return {
        "counts": [len(part["groups"]) * noises for part in updates],
        "reference": {
            "counts": [int(part["count"]) for part in reference],
            "products": _short(np.triu(directions @ directions.T, 1)),
            "length": reference_direction(reference).norm().item(),
            "cosine_of_halves": torch.cosine_similarity(halves[0], halves[1], dim=0).item(),
        },
        "kinds": kinds,
    }


def _foretold(text: Tensor, groups: Tensor) -> dict[str, Any]:
    """Mean and std ``[P]`` of a ledger's predictions of each prompt's m and s, after one update on all others."""
    outcomes = torch.tensor([mean_and_spread(of) for of in groups], dtype=torch.float64)
    found: dict[str, dict[str, list[float]]] = {name: {"mean": [], "std": []} for name in ("m", "s")}
    for number in range(len(text)):
        others = torch.arange(len(text)) != number
        ridge = Ridge(text[others], torch.ones(len(text) - 1))
        for name, targets in zip(found, outcomes[others].T, strict=True):
            prediction = ridge.predict(targets, text[number : number + 1])
            found[name]["mean"].append(round(prediction.mean.item(), 5))
            found[name]["std"].append(round(prediction.std.item(), 5))
    return {**found, "outcomes": outcomes.numpy().round(5).tolist()}


def _short(values: np.ndarray) -> Any:
    """Nested lists of the values, rounded to five significant digits."""
    return np.vectorize(lambda value: float(f"{value:.5g}"), otypes=[float])(values).tolist()
