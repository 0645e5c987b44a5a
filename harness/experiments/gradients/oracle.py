"""The parts of an upper bound for choosing prompts: how far single updates would move the expected reward.

One update ahead, first order, of the plain gradient: for a pool of training prompts, each with several initial noises,
the inner product of the update's gradient with the reference direction, for every kind of advantage that training
knows. What may be concluded from it is computed in ``harness.experiments.upper_bound``, from the table alone.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.adagrpo import CapabilityTracker
from harness.config import ConfigError, RunConfig, compose
from harness.experiments.gradients.checkpoint import MeasuredCheckpoint, find_measured
from harness.experiments.gradients.chunks import Arrays, make_sampler, reference_direction, reference_sums
from harness.experiments.gradients.definition import VERSION, require_measurable
from harness.experiments.gradients.gradients import advantages_of, update_gradients
from harness.experiments.gradients.sampling import Sampler
from harness.foundation.files import write_atomically
from harness.prompts.lists import generator_for, read_prompts
from harness.rules.advantages import FUSIONS, Group, fuse
from harness.runs.directory import RUNS, environment, find_run

KINDS = ("local", "unbiased", *FUSIONS)
_ONE_PROMPT = (
    "seed=3100",  # no run's: it has trained on its draws
    "selection=random",
    "fusion.enabled=false",
    "rollout.prompts_per_iteration=1",
    "model.execution.text_encoders=keep",
)
"""Every rule and advantage is compared on the same updates, of one prompt each."""
_CHUNK = 8


@dataclass(frozen=True)
class Oracle:
    """A measurement, ready to be executed.

    Attributes:
        config: whose gradients are measured.
        checkpoint: where.
        references: R, training prompts of the reference direction; even ones are a half, odd ones the other.
        prompts: P, training prompts of the pool.
        noises: N, initial noises of each.
    """

    config: RunConfig
    checkpoint: MeasuredCheckpoint
    references: int
    prompts: int
    noises: int

    @cached_property
    def identity(self) -> str:
        """Names all that the numbers depend on."""
        size = [self.references, self.prompts, self.noises]
        settings = [VERSION, find_run(self.config).run_id, self.checkpoint.digest, self.config.fusion.weight, *size]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:10]

    @property
    def folder(self) -> Path:
        """Where parts are kept until all are there."""
        return RUNS / "oracle" / f"{self.checkpoint.label}-{self.identity}"


def load_oracle(
    profile: str, overrides: Sequence[str], checkpoint: str, references: int, prompts: int, noises: int
) -> Oracle:
    """Check a measurement; nothing heavy is loaded and nothing is written.

    Raises:
        ConfigError: one line that names the key or the option.
    """
    config = compose(profile, overrides=[*_ONE_PROMPT, *overrides])
    require_measurable(config, profile)
    there = len(read_prompts(config.prompts.train).prompts)
    if not config.rollout.candidates < prompts <= there:
        raise ConfigError(
            f"--prompts {prompts}: must be above rollout.candidates={config.rollout.candidates} and at most {there}, "
            f"all of {config.prompts.train}"
        )
    return Oracle(config, find_measured(checkpoint, config), references, prompts, noises)


def measure(oracle: Oracle, say: Callable[[str], object]) -> dict[str, Any]:
    """Compute what is missing, a file a part, and return the table.

    Keys: ``rewards`` ``[P, N]`` of deterministic samples; ``groups`` ``[P, N, K, G]``; by kind ``projections``
    ``[P, N, 2]``, inner products of an update's gradient with each half of the reference, and ``squares`` ``[P, N]``,
    its squared length; ``reference``: cosine of the halves, and the squared length of the expected gradient; settings.

    Raises:
        TrainingError: a picture is not finite.
        RewardError: the reward could not score.
    """
    config, seed = oracle.config, oracle.config.seed
    sampler = make_sampler(config, oracle.checkpoint)
    drawn = torch.randperm(len(sampler.prompts), generator=generator_for(seed, "pool"))[: oracle.prompts].tolist()
    parts = _Parts(oracle.folder, oracle.references + oracle.prompts * oracle.noises, say)
    halves = []
    for half in range(2):
        members = range(half, oracle.references, 2)
        cut = [members[start : start + _CHUNK] for start in range(0, len(members), _CHUNK)]
        sums = [parts.get(f"reference-{of[0]:05d}", len(of), partial(reference_sums, of, sampler)) for of in cut]
        halves.append(reference_direction(sums))
    directions = torch.stack(halves)
    noises = {
        prompt: [sampler.policy.noise(generator_for(seed, "pool", prompt, k)) for k in range(oracle.noises)]
        for prompt in drawn
    }

    def of_samples(prompt: int) -> Arrays:
        text = [sampler.prompts[prompt]] * oracle.noises
        return {"rewards": sampler.rewards_of(text, torch.cat(noises[prompt])).numpy()}

    rewards = np.stack([parts.get(f"rewards-{i:05d}", 0, partial(of_samples, i))["rewards"] for i in drawn])
    capability = CapabilityTracker()
    capability.update(torch.from_numpy(rewards).flatten())
    pool = [
        parts.get(f"pool-{i:05d}", oracle.noises, partial(_updates, i, noises[i], sampler, capability, directions))
        for i in drawn
    ]
    projections, squares = (np.stack([part[name] for part in pool]) for name in ("projections", "squares"))
    product, lengths = float(halves[0] @ halves[1]), [float(half.norm()) for half in halves]
    return {
        "identity": oracle.identity,
        "checkpoint": oracle.checkpoint.label,
        "candidates": config.rollout.candidates,
        "num_steps": config.model.num_steps,
        "capability": [capability.mean, capability.std],
        "reference": {
            "prompts": oracle.references,
            "cosine_of_halves": product / max(lengths[0] * lengths[1], 1e-300),
            "squared_length": product,
        },
        "prompts": [sampler.prompts[i] for i in drawn],
        "rewards": rewards.round(4).tolist(),
        "groups": np.stack([part["groups"] for part in pool]).round(4).tolist(),
        "projections": {kind: _short(projections[:, :, number]) for number, kind in enumerate(KINDS)},
        "squares": {kind: _short(squares[:, :, number]) for number, kind in enumerate(KINDS)},
        "config": config.model_dump(mode="json", exclude={"logging", "runtime", "evaluation", "iterations"}),
        "environment": environment(),
    }


def every_advantage(rewards: Tensor, mean: float, std: float, config: RunConfig) -> Mapping[str, Tensor]:
    """``{kind: [K, G]}`` for ``KINDS``, of rewards ``[K, G]`` and the capability; fusions with ``fusion.weight``."""
    made = advantages_of(rewards, mean, std, config.objective.advantage_clip)
    groups = [
        Group(local, group, mean, std, config.objective.advantage_clip)
        for local, group in zip(made["local"], rewards.double(), strict=True)
    ]
    fused = {kind: torch.stack([fuse(group, kind, config.fusion.weight) for group in groups]) for kind in FUSIONS}
    return {"local": made["local"], "unbiased": made["unbiased"], **fused}


def _updates(
    prompt: int, noises: Sequence[Tensor], sampler: Sampler, capability: CapabilityTracker, directions: Tensor
) -> Arrays:
    """A prompt's updates, one a noise: ``groups``, ``projections`` ``[N, kinds, 2]``, ``squares`` ``[N, kinds]``."""
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    for number, noise in enumerate(noises):
        key = (sampler.config.seed, "pool", prompt, number, "branches")
        sampled = sampler.of_prompt(sampler.prompts[prompt], noise, key)
        advantages = every_advantage(sampled.rewards, capability.mean, capability.std, sampler.config)
        gradients = update_gradients(sampled.scores, advantages)
        rows.append((sampled.rewards, gradients @ directions.T, gradients.square().sum(1)))
    named = zip(("groups", "projections", "squares"), zip(*rows, strict=True), strict=True)
    return {name: torch.stack(of).numpy() for name, of in named}


@dataclass
class _Parts:
    """Files of a measurement, and how far it is."""

    folder: Path
    total: int
    say: Callable[[str], object]
    done: int = 0
    computed: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.began = time.monotonic()

    def get(self, name: str, updates: int, make: Callable[[], Arrays]) -> Arrays:
        """A part, from its file if it is there, else made and written in one step; it counts as so many updates."""
        path = self.folder / f"{name}.npz"
        self.done += updates
        if not path.exists():
            buffer = BytesIO()
            np.savez(buffer, allow_pickle=False, **make())
            write_atomically(path, buffer.getvalue())
            self.computed += updates
            if updates:
                left = (time.monotonic() - self.began) / self.computed * (self.total - self.done)
                self.say(f"{name}: {self.done} of {self.total} updates, {left / 60:.0f} minutes left")
        return dict(np.load(path, allow_pickle=False))


def _short(values: np.ndarray) -> Any:
    """As nested lists of five digits."""
    return np.vectorize(lambda value: float(f"{value:.5g}"), otypes=[float])(values).tolist()
