"""Prompt lists on disk, and the stateless draw of candidates."""

import hashlib
from dataclasses import dataclass

import torch

from harness.config import ROOT, ConfigError, RunConfig


@dataclass(frozen=True)
class PromptList:
    """Prompts of a file, in its order, and the sha256 of its bytes."""

    prompts: tuple[str, ...]
    sha256: str


def read_prompts(path: str) -> PromptList:
    """Read a text file with one prompt a line; blank lines are skipped.

    Raises:
        ConfigError: the file is missing, empty, or repeats a prompt.
    """
    file = ROOT / path
    if not file.is_file():
        raise ConfigError(f"prompt list {file}: no such file; set prompts.train, prompts.validation and prompts.test")
    content = file.read_bytes()
    prompts = tuple(line.strip() for line in content.decode().splitlines() if line.strip())
    if not prompts:
        raise ConfigError(f"prompt list {file}: has no prompts")
    if len(set(prompts)) != len(prompts):
        repeated = next(prompt for prompt in prompts if prompts.count(prompt) > 1)
        raise ConfigError(f"prompt list {file}: {repeated!r} is there twice; remove one")
    return PromptList(prompts, hashlib.sha256(content).hexdigest())


def generator_for(*key: int | str) -> torch.Generator:
    """A CPU generator that is a function of its key alone, such as (seed, iteration, slot, "noise").

    Random state is never carried from one iteration to the next: a resumed run, another number of processes, and
    another cell with the same seed all see the same draws.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


def draw_candidates(
    prompts: tuple[str, ...], slots: int, candidates: int, seed: int, iteration: int
) -> list[list[str]]:
    """P disjoint batches of B prompts, drawn without replacement: the same for every cell of a seed.

    Args:
        prompts: the training list.
        slots: P, over all processes.
        candidates: B.
        seed: of the run.
        iteration: 1 and up.

    Raises:
        ConfigError: the list holds fewer than P * B prompts.
    """
    needed = slots * candidates
    if needed > len(prompts):
        raise ConfigError(f"the training list holds {len(prompts)} prompts, but an iteration draws {needed}")
    order = torch.randperm(len(prompts), generator=generator_for(seed, iteration, "prompts"))[:needed].tolist()
    drawn = [prompts[i] for i in order]
    return [drawn[slot * candidates : (slot + 1) * candidates] for slot in range(slots)]


def drawn_prompts(prompts: tuple[str, ...], config: RunConfig) -> list[str]:
    """Every training prompt that a run draws as a candidate, once, in the order of the draws.

    Raises:
        ConfigError: as ``draw_candidates``.
    """
    rollout = config.rollout
    drawn: dict[str, None] = {}
    for iteration in range(1, config.iterations + 1):
        for slot in draw_candidates(prompts, rollout.prompts_per_update, rollout.candidates, config.seed, iteration):
            drawn |= dict.fromkeys(slot)
    return list(drawn)
