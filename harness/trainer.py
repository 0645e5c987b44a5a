"""The training algorithm: one iteration in ``Trainer.iterate``, which reads like the paper's."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from harness.accounting import Counters, Stopwatch, across_processes, mean_and_std
from harness.adagrpo import CapabilityTracker, fuse_advantages, global_advantage, local_advantage, select_prompt
from harness.config import ConfigError, RunConfig
from harness.models.flux import FluxPolicy
from harness.objective import SurrogateStats, batch_normalised_advantage, surrogate_loss
from harness.prompts import draw_candidates, generator_for
from harness.rewards import Reward
from harness.rollout import Rollout, TrainStep, Trajectory, anchor_branch, full_sde, in_batches, ode_trajectory
from harness.transitions import KERNELS, Kernel


class TrainingError(RuntimeError):
    """Training cannot go on: what happened, at which iteration."""


@dataclass
class Candidates:
    """B scored candidates of one slot, and the one that was chosen."""

    prompts: list[str]
    rewards: Tensor | None
    """``[B]`` of their ODE samples; None if no reward is needed to choose."""
    trajectories: Trajectory | None
    """Their ODE paths; None if they were not sampled."""
    chosen: int = 0

    @property
    def rank(self) -> int | None:
        """How many candidates have a lower reward than the chosen one."""
        return None if self.rewards is None else int((self.rewards < self.rewards[self.chosen]).sum())


class Trainer:
    """A policy in training, and all state that training carries from one iteration to the next.

    Args:
        config: the run.
        policy: what is trained.
        reward: what it is trained on.
        prompts: the training list.
        accelerator: this process's place among all.
    """

    def __init__(
        self,
        config: RunConfig,
        policy: FluxPolicy,
        reward: Reward,
        prompts: tuple[str, ...],
        accelerator: Accelerator,
    ) -> None:
        self.config, self.policy, self.reward, self.prompts = config, policy, reward, prompts
        self.accelerator = accelerator
        slots, world = config.rollout.prompts_per_update, accelerator.num_processes
        # Consecutive slots, so that what processes gather is in the order of slots, however many processes there are.
        mine = slots // world
        self._slots = range(accelerator.process_index * mine, (accelerator.process_index + 1) * mine)
        self.kernel: Kernel = KERNELS[config.method.kernel](eta=config.method.eta)
        self.sigmas = policy.sigmas(config.model.num_steps)
        self.velocity = in_batches(policy.velocity, config.model.max_batch)
        self.tracker = CapabilityTracker(config.capability.decay)
        self.parameters = policy.trainable()
        settings = config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
        )
        self.averages: dict[str, Tensor] = {}
        if settings.weight_ema is not None:
            self.averages = {name: p.detach().clone() for name, p in self.parameters.items()}
        if config.objective.kl_beta:
            policy.keep_reference()
        self.totals = Counters()
        self.iteration = 0

    # --- the algorithm ------------------------------------------------------------------------------------------------

    def iterate(self) -> dict[str, Any]:
        """One iteration: draw, score and choose prompts; roll out; estimate advantages; update."""
        self.iteration += 1
        watch, spent = Stopwatch(), Counters()
        slots = [self._draw(slot, watch, spent) for slot in self._slots]
        if self.config.scores_candidates:
            self._update_capability(slots)
        for slot, candidates in zip(self._slots, slots, strict=True):
            candidates.chosen = self._choose(slot, candidates)
        rollouts = [self._roll_out(s, c, watch, spent) for s, c in zip(self._slots, slots, strict=True)]
        rewards = [self._score_rollout(r, c, watch, spent) for r, c in zip(rollouts, slots, strict=True)]
        advantages = self._advantages(rewards)
        with watch.phase("update"):
            update = self._update(rollouts, advantages, spent)
        return self._record(slots, rewards, advantages, update, watch, spent)

    def _draw(self, slot: int, watch: Stopwatch, spent: Counters) -> Candidates:
        """B candidate prompts of a slot; with their ODE samples and rewards if anything needs them."""
        rollout = self.config.rollout
        drawn = draw_candidates(
            self.prompts, rollout.prompts_per_update, rollout.candidates, self.config.seed, self.iteration
        )
        prompts = drawn[slot]
        if not self.config.scores_candidates:
            return Candidates(prompts, None, None)
        noise = torch.cat([self._anchor_noise(slot, candidate) for candidate in range(len(prompts))])
        with watch.phase("candidates"), self.policy.sampling():
            trajectories = ode_trajectory(self.velocity, noise, self.policy.encode(prompts), self.sigmas)
        spent.sample_forwards += len(prompts) * self.config.model.num_steps
        return Candidates(prompts, self._score(trajectories.final, prompts, watch, spent), trajectories)

    def _anchor_noise(self, slot: int, candidate: int) -> Tensor:
        return self.policy.noise(generator_for(self.config.seed, self.iteration, slot, candidate, "anchor"))

    def _update_capability(self, slots: Sequence[Candidates]) -> None:
        rewards = torch.cat([c.rewards for c in slots if c.rewards is not None])
        if self.config.capability.sync == "shared":
            rewards = self._gather(rewards)
        self.tracker.update(rewards)

    def _choose(self, slot: int, candidates: Candidates) -> int:
        generator = generator_for(self.config.seed, self.iteration, slot, "selection")
        # Random selection reads no reward, so that random with and without fusion choose alike.
        rewards = torch.zeros(len(candidates.prompts)) if candidates.rewards is None else candidates.rewards
        return select_prompt(rewards, self.config.selection, self.tracker, generator)

    def _roll_out(self, slot: int, candidates: Candidates, watch: Stopwatch, spent: Counters) -> Rollout:
        settings = self.config.rollout
        text = self.policy.encode([candidates.prompts[candidates.chosen]])
        generator = generator_for(self.config.seed, self.iteration, slot, "branches")
        draws = [self.policy.noise(generator, settings.group_size) for _ in settings.branch_indices]
        noise = torch.stack(draws)
        with watch.phase("rollout"), self.policy.sampling():
            if settings.kind == "full_sde":
                count = 1 if settings.shared_noise else settings.group_size
                start = self.policy.noise(generator, count).expand(settings.group_size, -1, -1)
                rollout = full_sde(self.velocity, self.kernel, start, text, self.sigmas, settings.branch_indices, noise)
            else:
                if candidates.trajectories is None:
                    anchor_noise = self._anchor_noise(slot, candidates.chosen)
                    anchor = ode_trajectory(self.velocity, anchor_noise, text, self.sigmas)
                    spent.sample_forwards += self.config.model.num_steps
                else:
                    anchor = candidates.trajectories.select(candidates.chosen)
                rollout = anchor_branch(
                    self.velocity, self.kernel, anchor, text, self.sigmas, settings.branch_indices, noise
                )
        spent.sample_forwards += rollout.sample_forwards
        return rollout

    def _score_rollout(self, rollout: Rollout, candidates: Candidates, watch: Stopwatch, spent: Counters) -> Tensor:
        """Rewards of a slot's groups, ``[groups, G]`` float64; the paths of a full-SDE rollout are one group."""
        prompts = [candidates.prompts[candidates.chosen]] * len(rollout.finals)
        rewards = self._score(rollout.finals, prompts, watch, spent)
        return rewards.reshape(-1, self.config.rollout.group_size)

    def _advantages(self, rewards: Sequence[Tensor]) -> list[Tensor]:
        """Fused advantages of each slot's groups, ``[groups, G]``."""
        objective, fusion = self.config.objective, self.config.fusion
        clip = objective.advantage_clip
        if objective.normalisation == "batch_std":
            own = torch.cat(list(rewards))
            everyone = self._gather(own)
            normalised = batch_normalised_advantage(everyone, clip=clip)
            start = self.accelerator.process_index * len(own)
            local = list(normalised[start : start + len(own)].split([len(r) for r in rewards]))
        else:
            local = [torch.stack([local_advantage(group, clip) for group in groups]) for groups in rewards]
        if not fusion.enabled:
            return local
        mean, std = self.tracker.mean, self.tracker.std
        return [
            torch.stack(
                [
                    fuse_advantages(own, global_advantage(group, mean, std, clip), fusion.weight)
                    for own, group in zip(locals_, groups, strict=True)
                ]
            )
            for locals_, groups in zip(local, rewards, strict=True)
        ]

    def _update(self, rollouts: Sequence[Rollout], advantages: Sequence[Tensor], spent: Counters) -> dict[str, float]:
        """``updates_per_iteration`` optimiser steps on the same rollouts; returns means over updates and steps."""
        logged: dict[str, list[float]] = defaultdict(list)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        for _ in range(self.config.objective.updates_per_iteration):
            self.optimizer.zero_grad(set_to_none=True)
            for rollout, slot_advantages in zip(rollouts, advantages, strict=True):
                # Anchor-branch has a group a step; a full-SDE path shares one reward over all its steps.
                per_step = slot_advantages.expand(len(rollout.steps), -1)
                for step, advantage in zip(rollout.steps, per_step, strict=True):
                    loss, stats, kl = self._step_loss(step, rollout, advantage)
                    (loss / (len(rollout.steps) * len(rollouts))).backward()
                    spent.train_forwards += len(step.x)
                    logged["loss"].append(loss.item())
                    logged["kl"].append(kl)
                    for name, value in vars(stats).items():
                        logged[name].append(value)
            norm = self._synchronised_gradient_norm()
            if not math.isfinite(norm):
                raise TrainingError(
                    f"the gradient is not finite at iteration {self.iteration}: lower the learning rate"
                )
            logged["grad_norm"].append(norm)
            self.optimizer.step()
        self._average_weights()
        means = {name: sum(values) / len(values) for name, values in logged.items()}
        return means | {"ratio_max_deviation": max(logged["ratio_max_deviation"])}

    def _step_loss(self, step: TrainStep, rollout: Rollout, advantage: Tensor) -> tuple[Tensor, SurrogateStats, float]:
        """The surrogate loss of a step's siblings; one forward with gradient if they share x."""
        objective = self.config.objective
        on_policy = objective.clip_range is None and objective.updates_per_iteration == 1
        transition = self._transition(step, rollout)
        log_prob = transition.log_prob(step.x_next)
        # The same arithmetic on both sides makes the ratio exactly 1; the rollout's own differs in the last digits.
        old_log_prob = log_prob.detach() if on_policy else step.old_log_prob
        advantage = advantage.to(log_prob.device)
        loss, stats = surrogate_loss(log_prob, old_log_prob, advantage, objective.clip_range)
        if not objective.kl_beta:
            return loss, stats, 0.0
        with self.policy.reference():
            reference = self._transition(step, rollout)
        kl = transition.kl(reference).mean()
        return loss + objective.kl_beta * kl, stats, kl.item()

    def _transition(self, step: TrainStep, rollout: Rollout) -> Any:
        sigma, sigma_next = self.sigmas[step.index].item(), self.sigmas[step.index + 1].item()
        velocity = self.policy.velocity(step.x, sigma, rollout.text.repeat(len(step.x)))
        return self.kernel.step(step.x.expand_as(step.x_next), velocity.expand_as(step.x_next), sigma, sigma_next)

    # --- pieces -------------------------------------------------------------------------------------------------------

    def _score(self, latents: Tensor, prompts: Sequence[str], watch: Stopwatch, spent: Counters) -> Tensor:
        """Training rewards, ``[n]`` float64: in float32 a group of equal rewards has advantages made of rounding."""
        with watch.phase("reward"):
            rewards = self.reward.score(self.policy.decode(latents), prompts).double()
        spent.reward_calls += len(prompts)
        if not rewards.isfinite().all():
            raise TrainingError(f"reward {self.reward.name!r} is not finite at iteration {self.iteration}")
        return rewards

    def _gather(self, values: Tensor) -> Tensor:
        """All processes' values, along the first dimension, on the CPU."""
        return self.accelerator.gather(values.to(self.accelerator.device)).cpu()

    def _learning_rate(self) -> float:
        settings = self.config.optimizer
        return settings.learning_rate * min(1.0, self.iteration / max(1, settings.warmup_iterations))

    def _synchronised_gradient_norm(self) -> float:
        """Average gradients over processes, clip them to ``max_grad_norm``; the norm before clipping."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        if self.accelerator.num_processes > 1:
            flat = self.accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "mean")
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))
        return float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.optimizer.max_grad_norm))

    def _average_weights(self) -> None:
        for name, average in self.averages.items():
            average.lerp_(self.parameters[name].detach(), 1 - (self.config.optimizer.weight_ema or 0))

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within: the policy has the averaged weights, if the run keeps any."""
        kept = {name: self.parameters[name].data for name in self.averages}
        for name, average in self.averages.items():
            self.parameters[name].data = average
        try:
            yield
        finally:
            for name, data in kept.items():
                self.parameters[name].data = data

    def _record(
        self,
        slots: Sequence[Candidates],
        rewards: Sequence[Tensor],
        advantages: Sequence[Tensor],
        update: dict[str, float],
        watch: Stopwatch,
        spent: Counters,
    ) -> dict[str, Any]:
        """The iteration's line of metrics.jsonl, over all processes; equal on every process."""
        scored = [c.rewards for c in slots if c.rewards is not None]
        values, averages, counts = across_processes(
            {
                "prompts": [c.prompts[c.chosen] for c in slots],
                "ranks": [c.rank for c in slots],
                "candidates": torch.cat(scored).tolist() if scored else [],
                "rewards": torch.cat(list(rewards)).flatten().tolist(),
                "within_group_std": [r.std(dim=1, correction=1).mean().item() for r in rewards],
                "advantages": torch.cat(list(advantages)).abs().flatten().tolist(),
            },
            {"update": update, "seconds": watch.seconds},
            spent,
        )
        self.totals.add(counts)
        return {
            "iteration": self.iteration,
            **mean_and_std("reward", values["rewards"]),
            "within_group_std": mean_and_std("", values["within_group_std"])["_mean"],
            **mean_and_std("candidate_reward", values["candidates"]),
            "capability_mean": self.tracker.mean if scored else None,
            "capability_std": self.tracker.std if scored else None,
            "prompts": values["prompts"],
            "ranks": values["ranks"] if scored else None,
            "advantage_abs_mean": mean_and_std("", values["advantages"])["_mean"],
            "learning_rate": self._learning_rate(),
            **averages["update"],
            **counts,
            **{f"total_{name}": count for name, count in vars(self.totals).items()},
            "seconds": averages["seconds"],
        }

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that a continued run needs, from every process: call it on all of them.

        Random draws are functions of seed and iteration, so there is no generator in it.
        """
        return {
            "iteration": self.iteration,
            "parameters": {name: p.detach() for name, p in self.parameters.items()},
            "averages": self.averages,
            "optimizer": self.optimizer.state_dict(),
            "trackers": gather_object([self.tracker.state_dict()]),
            "totals": vars(self.totals),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``, bit for bit.

        Raises:
            ConfigError: capability is kept per rank, and another number of processes made the state.
        """
        trackers, world = state["trackers"], self.accelerator.num_processes
        if self.config.capability.sync == "per_rank" and len(trackers) != world:
            raise ConfigError(
                f"capability.sync=per_rank: {len(trackers)} processes made the checkpoint, {world} run now"
            )
        for name, parameter in self.parameters.items():
            parameter.data.copy_(state["parameters"][name])
        for name, average in self.averages.items():
            average.copy_(state["averages"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.tracker.load_state_dict(trackers[self.accelerator.process_index % len(trackers)])
        self.totals = Counters(**state["totals"])
        self.iteration = state["iteration"]
