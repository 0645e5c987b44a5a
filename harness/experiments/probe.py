"""Samples of an untrained model, drawn as in training, which show whether choosing its prompts can matter."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.probing.summary import summary
from analysis.probing.verdict import judge
from harness.adagrpo import CapabilityTracker
from harness.config import ConfigError, RunConfig, compose
from harness.experiments.choices import Compared, choices, compared_with
from harness.experiments.gradients.oracle import larger_group
from harness.experiments.gradients.sampling import Sampler
from harness.experiments.parts import Arrays, Parts
from harness.foundation.files import read_text
from harness.prompts.lists import generator_for, read_prompts
from harness.rewards import Reward, build_rewards
from harness.rollout import full_sde
from harness.runs.directory import RUNS, find_run
from harness.runs.identity import environment
from harness.trained.checkpoints import Checkpoint
from harness.trained.loading import load_policy
from harness.training.accounting import expected_cost
from harness.training.evaluation import sample_images
from harness.training.scoring import start_scoring
from harness.training.steps import stochastic_steps

_PROMPTS_OF_A_PART = 8
_SHOWN = ("predicted", "preview", "curriculum", "screened")
"""Rules of different cost."""
STREAM = 60
"""Number of iterations for which the capability is simulated."""


@dataclass(frozen=True)
class Probe:
    """A measurement that is ready to be executed.

    Attributes:
        config: configuration of the run that would be trained.
        profile, overrides: profile and overrides that it was composed of.
        name: name of the model.
        prompts: prompts to draw, from the validation list, since a run would learn from the training list.
        prompts_sha256: sha256 of their list.
        noises: number of deterministic samples per prompt.
    """

    config: RunConfig
    profile: str
    overrides: Sequence[str]
    name: str
    prompts: tuple[str, ...]
    prompts_sha256: str
    noises: int

    @property
    def num_pictures(self) -> int:
        """Number of pictures to draw."""
        rollout = self.config.rollout
        groups = 1 if rollout.kind == "full_sde" else len(stochastic_steps(rollout, self.config.seed, 1, 0))
        return len(self.prompts) * (self.noises + groups * rollout.group_size)

    @property
    def folder(self) -> Path:
        """Folder in which parts are kept."""
        judges = self.config.evaluation.judges
        settings = [find_run(self.config).run_id, judges, self.prompts_sha256, len(self.prompts), self.noises]
        return RUNS / "probe" / f"{self.name}-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:10]}"


def load_probe(profile: str, overrides: Sequence[str], model: str | None, num_prompts: int, noises: int) -> Probe:
    """Check and prepare a measurement; nothing heavy is loaded and nothing is written.

    Raises:
        ConfigError: a key or an option is not valid, which one line names.
    """
    config = compose(profile, overrides=overrides, model=model)
    found = read_prompts(config.prompts.validation)
    if len(found.prompts) < num_prompts:
        raise ConfigError(f"--prompts {num_prompts}: {config.prompts.validation} has {len(found.prompts)} prompts")
    name = model or Path(config.model.path).name
    return Probe(config, profile, overrides, name, found.prompts[:num_prompts], found.sha256, noises)


def measure(probe: Probe, device: torch.device, say: Callable[[str], object]) -> dict[str, Any]:
    """Draw and score every prompt with several noises, and one rollout of each; compute only missing parts.

    Returns:
        Content of a JSON file and a page: ``rewards`` ``[prompts, noises]``, ``groups`` ``[prompts, groups, G]``,
        ``stream`` ``[iterations, 3]`` of candidates' means and the capability, ``cost``, ``summary`` with the verdict.

    Raises:
        ConfigError: the model or a reward is not on this machine, or does not fit the prompts.
    """
    config, prompts, sampling = probe.config, probe.prompts, _Sampling(probe, device)
    parts = Parts(probe.folder, probe.num_pictures, "pictures", say)
    pictures = [
        parts.get(f"noise-{number:02d}", len(prompts), partial(sampling.noise, number))
        for number in range(probe.noises)
    ]
    each = (probe.num_pictures - len(prompts) * probe.noises) // len(prompts)
    blocks = [prompts[start : start + _PROMPTS_OF_A_PART] for start in range(0, len(prompts), _PROMPTS_OF_A_PART)]
    grouped = [
        parts.get(f"groups-{number:02d}", each * len(of), partial(sampling.groups, of))
        for number, of in enumerate(blocks)
    ]
    rewards = np.stack([part["reward"] for part in pictures], axis=1)
    groups = np.concatenate([part["groups"] for part in grouped])
    judged = {
        name.removeprefix("judge "): np.stack([part[name] for part in pictures], axis=1)
        for name in pictures[0]
        if name.startswith("judge ")
    }
    return {
        "profile": probe.profile,
        "overrides": list(probe.overrides),
        "model": config.model.path,
        "pictures": probe.num_pictures,
        "seconds": round(sum(float(part["seconds"]) for part in (*pictures, *grouped)), 1),
        "prompts_sha256": probe.prompts_sha256,
        "summary": _summary(config, rewards, groups, judged),
        "cost": _cost(config),
        "environment": environment(),
        "prompts": list(prompts),
        "rewards": rewards.round(4).tolist(),
        "groups": groups.round(4).tolist(),
        "stream": capability_stream(rewards, config).round(4).tolist(),
    }


def gradients_kept(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The gradients in an earlier file of the same measurement, which takes hours and must not be lost; else {}."""
    earlier = json.loads(read_text(path)) if path.is_file() else {}
    is_same = all(earlier.get(key) == content[key] for key in ("profile", "overrides", "model"))
    return {"gradients": earlier["gradients"]} if is_same and "gradients" in earlier else {}


def capability_stream(rewards: np.ndarray, config: RunConfig) -> np.ndarray:
    """``[STREAM, 3]``: mean reward of an iteration's candidates, drawn from ``[prompts, noises]``, mu and sigma."""
    random, tracker = np.random.default_rng(0), CapabilityTracker(config.capability.decay)
    size, rows = config.rollout.candidates * config.rollout.prompts_per_iteration, []
    for _ in range(STREAM):
        drawn = random.choice(len(rewards), size=size, replace=size > len(rewards))
        seen = torch.from_numpy(rewards[drawn, random.integers(rewards.shape[1], size=size)])
        tracker.update(seen)
        rows.append((seen.mean().item(), tracker.mean, tracker.std))
    return np.array(rows)


def _cost(config: RunConfig) -> dict[str, Any]:
    """Cost of training on a random prompt, and of candidates, in forward passes; see ``expected_cost``."""
    at_random = config.model_copy(
        update={"selection": "random", "fusion": config.fusion.model_copy(update={"enabled": False})}
    )
    rollout, larger = config.rollout, larger_group(config)
    rules = {rule: Compared(rule).forwards(rollout.candidates, config.model.num_steps) for rule in _SHOWN}
    # The group that candidates would pay for is rounded down to whole siblings.
    with_more = at_random.model_copy(update={"rollout": rollout.model_copy(update={"group_size": larger})})
    more = expected_cost(with_more).sample_forwards - expected_cost(at_random).sample_forwards
    return {
        "candidates": rollout.candidates,
        "group_size": rollout.group_size,
        "larger_group": larger,
        "rules": {**rules, f"random, groups of {larger}": more // rollout.prompts_per_iteration},
        "forwards": expected_cost(at_random).forwards // rollout.prompts_per_iteration,
        "candidate_forwards": (rollout.candidates - 1) * config.model.num_steps,
    }


def _summary(
    config: RunConfig, rewards: np.ndarray, groups: np.ndarray, judged: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    found, candidates = summary(rewards, groups, judged), config.rollout.candidates
    chosen = {}
    if len(rewards) >= candidates:
        rules = compared_with(config)
        told = choices(torch.from_numpy(rewards), torch.from_numpy(groups), candidates, config.model.num_steps, rules)
        chosen = {rule: one._asdict() for rule, one in told.items()}
    gain = math.sqrt(larger_group(config) / config.rollout.group_size) - 1
    found |= {"choices": chosen, "siblings_gain": gain}
    return found | {"verdict": judge(found)._asdict()}


@dataclass(frozen=True)
class _Sampling:
    """Sampling of the parts; model and rewards are loaded when the first missing part is drawn."""

    probe: Probe
    device: torch.device

    @cached_property
    def _sampler(self) -> Sampler:
        config = self.probe.config
        torch.set_num_threads(config.runtime.threads)
        policy = load_policy(Checkpoint("base", config), self.device, self.probe.prompts)
        return Sampler(config, policy, self._rewards[0], self.probe.prompts)

    @cached_property
    def _rewards(self) -> tuple[Reward, Sequence[Reward]]:
        config = self.probe.config
        try:
            found = build_rewards(config.reward, config.evaluation.judges, config.rewards, config.runtime.threads)
            for judge_ in found[1]:
                judge_.check_ready()
                for prompt in self.probe.prompts:
                    judge_.check_prompt(prompt)
        except ValueError as error:
            raise ConfigError(f"reward or evaluation.judges: {error}") from None
        return found

    def noise(self, number: int) -> Arrays:
        """Scores ``[prompts]`` of one deterministic sample per prompt, by the reward and by its judges."""
        (reward, judges), policy, prompts = self._rewards, self._sampler.policy, self.probe.prompts
        began = time.monotonic()
        images = sample_images(policy, prompts, number)
        scores = start_scoring(reward, lambda part: part, images, prompts, len(prompts)).wait().total
        seconds = np.array(time.monotonic() - began)
        judged = {f"judge {one.name}": one.score(images, prompts).double().numpy() for one in judges[1:]}
        return {"reward": scores.numpy(), **judged, "seconds": seconds}

    @torch.no_grad()
    def groups(self, prompts: Sequence[str]) -> Arrays:
        """Rewards ``[prompts, groups, G]`` of one rollout per prompt, drawn as in training."""
        sampler, began = self._sampler, time.monotonic()
        groups = torch.stack([_groups(sampler, prompt) for prompt in prompts])
        return {"groups": groups.numpy(), "seconds": np.array(time.monotonic() - began)}


def _groups(sampler: Sampler, prompt: str) -> torch.Tensor:
    """Rewards ``[groups, G]`` of one rollout of a prompt."""
    rollout, policy, seed = sampler.config.rollout, sampler.policy, sampler.config.seed
    indices = stochastic_steps(rollout, seed, 1, 0)
    generator = generator_for(seed, "probe", prompt)
    noise = torch.stack([policy.noise(generator, rollout.group_size) for _ in indices])
    if rollout.kind == "full_sde":
        count = 1 if rollout.shared_noise else rollout.group_size
        start, text = policy.noise(generator, count).expand_as(noise[0]), policy.encode([prompt])
        with policy.sampling():
            drawn = full_sde(sampler.velocity, sampler.kernel, start, text, sampler.sigmas, indices, noise)
    else:
        drawn = sampler.branch(prompt, policy.noise(generator), indices, noise)
    return sampler.group_rewards(prompt, drawn, rollout.group_size)
