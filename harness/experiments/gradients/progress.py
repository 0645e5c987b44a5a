"""What one real optimiser step on a prompt does to held-out reward: the oracle's question without its first order.

Every update begins at the checkpoint, with the optimiser's own moments, and is judged on the same validation prompts
and noises, of which it has two halves: what is told by one half is judged by the other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from harness.experiments.gradients.gradients import advantages_of, update_gradients
from harness.experiments.gradients.oracle import Oracle, Pool, short
from harness.experiments.gradients.sampling import Sampler, make_sampler
from harness.experiments.parts import Arrays, Parts
from harness.prompts.lists import generator_for, read_prompts
from harness.runs.directory import environment
from harness.training.checkpointing import load_state
from harness.training.engine import Engine
from harness.training.processes import Processes
from harness.training.sharded import build_engine


def measure_progress(oracle: Oracle, pictures: int, say: Callable[[str], object]) -> dict[str, Any]:
    """Compute what is missing, a file a part, and return the table.

    Keys: ``gains`` ``[P, N, 2]`` of mean held-out reward by either half; ``noise``: standard error of one of them, from
    its pictures; ``rewards`` ``[P, N]`` of deterministic samples; settings.

    Args:
        oracle: prompts and noises of the pool; its references are not read.
        pictures: held-out ones of a half.
        say: receives lines of progress.
    """
    config, sampler = oracle.config, make_sampler(oracle.config, oracle.checkpoint)
    processes = Processes(Accelerator(cpu=sampler.policy.device.type == "cpu"), config.runtime.timeout_seconds)
    engine = build_engine(config, sampler.policy, processes)
    if oracle.checkpoint.run is not None:
        load_state(oracle.checkpoint.run, engine, processes)
    pool, stepping = Pool(oracle, sampler), _Stepping(sampler, engine, pictures)
    parts = Parts(oracle.folder / f"progress-{pictures}", oracle.prompts * oracle.noises, "updates", say)
    before = parts.get("before", 0, lambda: {"rewards": stepping.held_out()})["rewards"]
    rows = [
        parts.get(f"{prompt:05d}-{number}", 1, partial(stepping.update, pool, prompt, number))
        for prompt in pool.drawn
        for number in range(oracle.noises)
    ]
    samples = parts.get("samples", 0, partial(pool.samples, pool.drawn))
    change = np.stack([row["rewards"] for row in rows]).reshape(oracle.prompts, oracle.noises, 2, pictures) - before
    gains = change.mean(axis=3)
    return {
        "identity": oracle.identity,
        "experiment": config.experiment,
        "iteration": oracle.checkpoint.iteration,
        "candidates": config.rollout.candidates,
        "pictures": pictures,
        "before": round(float(before.mean()), 4),
        "noise": float(np.sqrt((change.var(axis=3, ddof=1) / pictures).mean())),
        "rewards": samples["rewards"].round(4).tolist(),
        "gains": short(gains),
        "environment": environment(),
    }


@dataclass
class _Stepping:
    """Takes a step, judges it, and takes it back."""

    sampler: Sampler
    engine: Engine
    pictures: int

    def held_out(self) -> np.ndarray:
        """``[2, pictures]``: rewards of the validation prompts in turn, each time with another noise."""
        config, count = self.sampler.config, 2 * self.pictures
        prompts = read_prompts(config.prompts.validation).prompts[: config.evaluation.validation_prompts]
        text = [prompts[i % len(prompts)] for i in range(count)]
        rewards = []
        for start in range(0, count, config.model.max_batch):
            part = range(start, min(start + config.model.max_batch, count))
            noise = torch.cat([self.sampler.policy.noise(generator_for(config.seed, "held out", i)) for i in part])
            rewards.append(self.sampler.rewards_of([text[i] for i in part], noise))
        # Halves share prompts where pictures are a multiple of them, and no noise.
        return torch.cat(rewards).reshape(2, self.pictures).numpy()

    def update(self, pool: Pool, prompt: int, number: int) -> Arrays:
        """Held-out rewards after one update of local advantages, from the checkpoint."""
        sampled = pool.sampled(prompt, number)
        advantages = advantages_of(sampled.rewards, self.sampler.config.objective.advantage_clip)
        [gradient] = update_gradients(sampled.scores, {"local": advantages["local"]})
        kept = {path: tensor.detach().clone() for path, tensor in self.engine.tensors().items()}
        parameters = self.engine.parameters.values()
        parts = gradient.split([parameter.numel() for parameter in parameters])
        along = [(p, part.to(p).reshape(p.shape)) for p, part in zip(parameters, parts, strict=True)]
        self.engine.update([lambda: -torch.stack([(p * part).sum() for p, part in along]).sum()])
        rewards = self.held_out()
        with torch.no_grad():
            for path, tensor in self.engine.tensors().items():
                tensor.copy_(kept[path])
        return {"rewards": rewards}
