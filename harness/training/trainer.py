"""The training algorithm: one iteration in ``Trainer.iterate``, which reads like the paper's."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from harness.adagrpo import (
    CapabilityTracker,
    fuse_advantages,
    global_advantage,
    local_advantage,
    rescale_advantages,
    select_prompt,
)
from harness.config import ConfigError, RunConfig
from harness.errors import HarnessError
from harness.models.pipelines.embedding import PromptEmbedding
from harness.models.pipelines.policy import Policy
from harness.objective import batch_normalised_advantage, ratio_stats, surrogate_loss
from harness.prompts.lists import draw_candidates, generator_for
from harness.rewards import Reward
from harness.rollout import Rollout, TrainStep, Trajectory, anchor_branch, full_sde, in_batches, ode_trajectory
from harness.training.accounting import Counters, Stopwatch, across_processes, mean_and_std, summary_of_updates
from harness.training.engines import build_engine
from harness.training.observation import group_spreads, reduced
from harness.training.processes import Processes
from harness.training.scoring import PendingScores, Scores, start_scoring
from harness.training.steps import Batch, deal, stochastic_steps, trained_steps
from harness.transitions import KERNELS, Kernel


class TrainingError(HarnessError, RuntimeError):
    """Training cannot go on: what happened, at which iteration."""


def require_finite(images: Tensor, where: str) -> None:
    """Raise TrainingError unless all pictures are finite: it shows there when a policy has diverged."""
    if not images.isfinite().all():
        raise TrainingError(f"pictures are not finite {where}: lower the learning rate")


@dataclass
class Candidates:
    """B scored candidates of one slot, and the one that was chosen."""

    prompts: list[str]
    pending: PendingScores | None
    """Scores of their ODE samples, under way; None if no reward is needed to choose."""
    trajectories: Trajectory | None
    """Their ODE paths; None if they were not sampled."""
    rewards: Tensor | None = None
    """``[B]`` once the scores are there."""
    chosen: int = 0

    def rank(self, resolution: float) -> int | None:
        """How many candidates have a reward lower than the chosen one's by more than ``resolution``."""
        return None if self.rewards is None else int((self.rewards < self.rewards[self.chosen] - resolution).sum())


@dataclass(frozen=True)
class Job:
    """A term of an update's loss: siblings of a step, their prompt and advantages ``[G]``, and the term's weight."""

    step: TrainStep
    text: PromptEmbedding
    advantage: Tensor
    share: float
    recomputed: Tensor | None = None
    """``[G]`` old log-probabilities by the arithmetic of the update, where they take the place of the rollout's."""


_RATIOS = ("ratio_mean", "ratio_max_deviation", "approx_kl")


def _split(jobs: Sequence[Job], max_batch: int) -> Iterator[list[Job]]:
    """Consecutive jobs, as many at a time as need at most ``max_batch`` samples in a forward, but at least one."""
    part: list[Job] = []
    for job in jobs:
        if part and sum(len(other.step.x) for other in [*part, job]) > max_batch:
            yield part
            part = []
        part.append(job)
    yield part


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
        policy: Policy,
        reward: Reward,
        prompts: tuple[str, ...],
        accelerator: Accelerator,
    ) -> None:
        self.config, self.policy, self.reward, self.prompts = config, policy, reward, prompts
        self.processes = Processes(accelerator, config.runtime.timeout_seconds)
        # Consecutive slots, so that what processes gather is in the order of slots, however many processes there are.
        mine = config.rollout.prompts_per_update // self.processes.count
        self._slots = range(self.processes.index * mine, (self.processes.index + 1) * mine)
        self.kernel: Kernel = KERNELS[config.method.kernel](eta=config.method.eta)
        self.sigmas = policy.sigmas(config.model.num_steps)
        self.velocity = in_batches(policy.velocity, config.model.max_batch)
        self._max_train_batch = config.model.execution.max_train_batch or config.model.max_batch
        self._latent_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[config.rollout.latent_precision]
        self.tracker = CapabilityTracker(config.capability.decay)
        self.anchor = self.tracker
        if config.objective.kl_beta:
            policy.keep_reference()
        self.engine = build_engine(config, policy, self.processes)
        self.parameters = self.engine.parameters
        self.totals = Counters()
        self.iteration = 0

    # --- the algorithm ------------------------------------------------------------------------------------------------

    def iterate(self) -> dict[str, Any]:
        """One iteration: draw, score and choose prompts; roll out; estimate advantages; update."""
        self.iteration += 1
        with self.processes.at(f"iteration {self.iteration}"):
            return self._iterate()

    def _iterate(self) -> dict[str, Any]:
        watch, spent = Stopwatch(), Counters()
        slots = [self._draw(slot, watch, spent) for slot in self._slots]
        for candidates in slots:
            if candidates.pending is not None:
                candidates.rewards = self._scores(candidates.pending, watch).total
        if self.config.scores_candidates:
            self._update_capability(slots)
        for slot, candidates in zip(self._slots, slots, strict=True):
            candidates.chosen = self._choose(slot, candidates)
        rollouts, pending = [], []
        for slot, candidates in zip(self._slots, slots, strict=True):
            rollouts.append(self._roll_out(slot, candidates, watch, spent))
            # A reward that is computed elsewhere scores this slot while the next is sampled.
            pending.append(self._score_rollout(rollouts[-1], candidates, watch, spent))
        scores = [self._scores(p, watch).grouped(self.config.rollout.group_size) for p in pending]
        rewards = [slot.total for slot in scores]
        advantages = self._advantages(rewards, [slot.components for slot in scores])
        with watch.phase("update"):
            logged = self._update(rollouts, advantages, spent)
        spreads = self._group_spreads(slots, rollouts)
        return self._record(slots, scores, advantages, logged, spreads, watch, spent)

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
            trajectories = ode_trajectory(
                self.velocity, noise, self.policy.encode(prompts), self.sigmas, self._latent_dtype
            )
        spent.sample_forwards += len(prompts) * self.config.model.num_steps
        return Candidates(prompts, self._start_scoring(trajectories.final, prompts, watch, spent), trajectories)

    def _anchor_noise(self, slot: int, candidate: int) -> Tensor:
        return self.policy.noise(generator_for(self.config.seed, self.iteration, slot, candidate, "anchor"))

    def _update_capability(self, slots: Sequence[Candidates]) -> None:
        rewards = torch.cat([c.rewards for c in slots if c.rewards is not None])
        if self.config.capability.sync == "shared":
            rewards = self.processes.gather(rewards, "gathering the candidates' rewards")
        if self.config.capability.anchor == "before" and not self.tracker.is_empty:
            self.anchor = copy(self.tracker)
        self.tracker.update(rewards)

    def _choose(self, slot: int, candidates: Candidates) -> int:
        generator = generator_for(self.config.seed, self.iteration, slot, "selection")
        # Random selection reads no reward, so that random with and without fusion choose alike.
        rewards = torch.zeros(len(candidates.prompts)) if candidates.rewards is None else candidates.rewards
        return select_prompt(rewards, self.config.selection, self.anchor, generator, self.reward.resolution)

    def _roll_out(self, slot: int, candidates: Candidates, watch: Stopwatch, spent: Counters) -> Rollout:
        settings, seed, kernel = self.config.rollout, self.config.seed, self.kernel
        text = self.policy.encode([candidates.prompts[candidates.chosen]])
        indices = stochastic_steps(settings, seed, self.iteration, slot)
        generator = generator_for(seed, self.iteration, slot, "branches")
        noise = torch.stack([self.policy.noise(generator, settings.group_size) for _ in indices])
        schedule = (text, self.sigmas, indices, noise)
        with watch.phase("rollout"), self.policy.sampling():
            if settings.kind == "full_sde":
                count = 1 if settings.shared_noise else settings.group_size
                start = self.policy.noise(generator, count).expand_as(noise[0])
                trained = trained_steps(settings, indices, seed, self.iteration, slot)
                rollout = full_sde(self.velocity, kernel, start, *schedule, trained, self._latent_dtype)
            else:
                anchor = self._anchor(slot, candidates, text, spent)
                rollout = anchor_branch(self.velocity, kernel, anchor, *schedule, self._latent_dtype)
        spent.sample_forwards += rollout.sample_forwards
        return rollout

    def _anchor(self, slot: int, candidates: Candidates, text: PromptEmbedding, spent: Counters) -> Trajectory:
        """The chosen candidate's ODE path; sampled now, if choosing needed none."""
        if candidates.trajectories is not None:
            return candidates.trajectories.select(candidates.chosen)
        spent.sample_forwards += self.config.model.num_steps
        noise = self._anchor_noise(slot, candidates.chosen)
        return ode_trajectory(self.velocity, noise, text, self.sigmas, self._latent_dtype)

    def _score_rollout(
        self, rollout: Rollout, candidates: Candidates, watch: Stopwatch, spent: Counters
    ) -> PendingScores:
        prompts = [candidates.prompts[candidates.chosen]] * len(rollout.finals)
        return self._start_scoring(rollout.finals, prompts, watch, spent)

    def _advantages(
        self, rewards: Sequence[Tensor], components: Sequence[dict[str, Tensor]] | None = None
    ) -> list[Tensor]:
        """Fused advantages of each slot's groups, ``[groups, G]``; the paths of a full-SDE rollout are one group.

        In a group whose scores differ by no more than the reward can tell apart they are 0.
        """
        local = self._local_advantages(rewards, self.reward.resolution)
        if components is not None and self.config.objective.combine == "advantages":
            resolutions = {part.name: part.resolution for part in self.reward.parts}
            each = {
                name: self._local_advantages([slot[name] for slot in components], resolutions[name])
                for name in self.reward.weights
            }
            local = [
                torch.stack([weight * each[name][slot] for name, weight in self.reward.weights.items()]).sum(0)
                for slot in range(len(rewards))
            ]
        if not self.config.fusion.enabled:
            return local
        return [
            torch.stack([self._fused(own, group) for own, group in zip(locals_, groups, strict=True)])
            for locals_, groups in zip(local, rewards, strict=True)
        ]

    def _fused(self, local: Tensor, rewards: Tensor) -> Tensor:
        """A group's local advantages ``[G]`` fused with the global ones of its rewards, or rescaled as a control."""
        fusion, capability = self.config.fusion, self.tracker
        if fusion.kind == "rescaled":
            return rescale_advantages(local, rewards, capability.std, fusion.weight)
        if fusion.kind != "fused":
            raise ConfigError(f"fusion.kind: {fusion.kind} has no arithmetic")
        clip = self.config.objective.advantage_clip
        against_capability = global_advantage(rewards, capability.mean, capability.std, clip, self.reward.resolution)
        return fuse_advantages(local, against_capability, fusion.weight)

    def _local_advantages(self, rewards: Sequence[Tensor], resolution: float) -> list[Tensor]:
        """Local advantages of each slot's groups, ``[groups, G]``, of one reward and its resolution."""
        clip = self.config.objective.advantage_clip
        if self.config.objective.normalisation == "group":
            return [torch.stack([local_advantage(group, clip, resolution) for group in groups]) for groups in rewards]
        own = torch.cat(list(rewards))
        everyone = self.processes.gather(own, "gathering rewards")
        normalised = batch_normalised_advantage(everyone, clip=clip, resolution=resolution)
        start = self.processes.index * len(own)
        return list(normalised[start : start + len(own)].split([len(r) for r in rewards]))

    def _update(
        self, rollouts: Sequence[Rollout], advantages: Sequence[Tensor], spent: Counters
    ) -> dict[str, list[float]]:
        """``updates_per_iteration`` optimiser steps on the rollouts; returns what they logged, update by update."""
        objective = self.config.objective
        logged: dict[str, list[float]] = defaultdict(list)
        self.engine.set_learning_rate(self._learning_rate())
        dealt = [self._jobs(batch) for batch in deal(rollouts, advantages, objective)]
        if objective.old_log_prob == "recomputed" and not objective.is_on_policy:
            # All of them before the first update; where updates share all samples, once.
            distinct = dealt[:1] if objective.update_on == "all" else dealt
            fresh = [self._with_recomputed_log_probs(jobs, spent) for jobs in distinct]
            dealt = fresh * (len(dealt) // len(fresh))
        for number, jobs in enumerate(dealt, start=1):
            parts = [*_split(jobs, self._max_train_batch)]
            missing = self._missing(parts, self.engine.exchanges_backward)
            losses = [partial(self._loss, part, logged, spent) for part in parts]
            losses += [partial(self._no_loss, parts[-1])] * missing
            norm = self.engine.update(losses)
            if not math.isfinite(norm):
                raise TrainingError(
                    f"the gradient is not finite at iteration {self.iteration}: lower the learning rate"
                )
            logged["grad_norm"].append(norm)
            self.engine.move_averages((self.iteration - 1) * objective.updates_per_iteration + number)
        return logged

    def _jobs(self, batch: Batch) -> list[Job]:
        """The terms of an update's loss, which is the mean over all its transitions."""
        total = sum(len(step.x_next) for _, step, _ in batch)
        return [
            Job(
                piece,
                rollout.text,
                advantage[rows].to(piece.x.device),
                len(piece.x_next) / total,
            )
            for rollout, step, advantage in batch
            for rows, piece in step.pieces(self._max_train_batch)
        ]

    def _with_recomputed_log_probs(self, jobs: Sequence[Job], spent: Counters) -> list[Job]:
        """The jobs with old log-probabilities by the arithmetic of the update: batches, adapters, precision."""
        recomputed = []
        with torch.no_grad():
            parts = [*_split(jobs, self._max_train_batch)]
            missing = self._missing(parts, self.engine.exchanges_forward)
            for part in parts:
                for job, transition in zip(part, self._transitions(part), strict=True):
                    recomputed.append(replace(job, recomputed=transition.log_prob(job.step.x_next)))
                    spent.sample_forwards += len(job.step.x)
            for _ in range(missing):
                self._transitions(parts[-1])
        return recomputed

    def _missing(self, parts: Sequence[Any], in_step: bool) -> int:
        """How many parts this process has fewer than another one, if all must keep in step."""
        return max(self.processes.gather_objects(len(parts), "counting parts")) - len(parts) if in_step else 0

    def _no_loss(self, part: Sequence[Job]) -> Tensor:
        """What a process computes to keep in step with others: nothing is learnt, and nothing counts."""
        return 0 * self._loss(part, defaultdict(list), Counters())

    def _loss(self, part: Sequence[Job], logged: dict[str, list[float]], spent: Counters) -> Tensor:
        """A part of an update's loss."""
        losses = self._losses(part, logged)
        count = sum(len(job.step.x) for job in part)
        spent.train_forwards += count
        spent.sample_forwards += count if self.config.objective.kl_beta else 0  # of the reference
        return torch.stack([job.share * loss for job, loss in zip(part, losses, strict=True)]).sum()

    def _losses(self, jobs: Sequence[Job], logged: dict[str, list[float]]) -> list[Tensor]:
        """The surrogate loss of each job's siblings, from one forward with gradient for all of them."""
        objective = self.config.objective
        transitions = self._transitions(jobs)
        references: list[Any] = [None] * len(jobs)
        if objective.kl_beta:
            with self.policy.reference():
                references = self._transitions(jobs)
        losses = []
        for job, transition, reference in zip(jobs, transitions, references, strict=True):
            log_prob = transition.log_prob(job.step.x_next)
            from_rollout = ratio_stats(log_prob, job.step.old_log_prob)
            old_log_prob = job.step.old_log_prob if job.recomputed is None else job.recomputed
            if objective.is_on_policy:
                # The same arithmetic on both sides makes the ratio exactly 1; the rollout's differs in the last digits.
                old_log_prob = log_prob.detach()
            loss, stats = surrogate_loss(log_prob, old_log_prob, job.advantage, objective.clip_range)
            kl = loss.new_zeros(()) if reference is None else transition.kl(reference).mean()
            losses.append(loss + objective.kl_beta * kl)
            # By construction the ratio of an on-policy loss says nothing: what is logged is how far sampling was off.
            ratios = vars(from_rollout if objective.is_on_policy else stats)
            if job.recomputed is not None:
                ratios = ratios | {f"rollout_{name}": vars(from_rollout)[name] for name in _RATIOS}
            for name, value in {"loss": losses[-1].item(), "kl": kl.item(), **ratios}.items():
                logged[name].append(value)
        return losses

    def _transitions(self, jobs: Sequence[Job]) -> list[Any]:
        """Each job's stochastic step under the present weights; siblings that share x need one forward."""
        sizes = [len(job.step.x) for job in jobs]
        sigmas = torch.cat([self.sigmas[job.step.index].expand(size) for job, size in zip(jobs, sizes, strict=True)])
        text = PromptEmbedding.cat([job.text.repeat(size) for job, size in zip(jobs, sizes, strict=True)])
        velocity = self.policy.velocity(torch.cat([job.step.x for job in jobs]), sigmas, text)
        return [
            self.kernel.step(
                job.step.x.expand_as(job.step.x_next),
                part.expand_as(job.step.x_next),
                *self.sigmas[job.step.index : job.step.index + 2].tolist(),
            )
            for job, part in zip(jobs, velocity.split(sizes), strict=True)
        ]

    # --- pieces -------------------------------------------------------------------------------------------------------

    def _start_scoring(
        self, latents: Tensor, prompts: Sequence[str], watch: Stopwatch, spent: Counters
    ) -> PendingScores:
        spent.reward_calls += len(prompts)
        with watch.phase("reward"):
            return start_scoring(self.reward, self._decode, latents, prompts, self.config.model.max_batch)

    def _decode(self, latents: Tensor) -> Tensor:
        images = self.policy.decode(latents)
        require_finite(images, f"at iteration {self.iteration}")
        return images

    def _scores(self, pending: PendingScores, watch: Stopwatch) -> Scores:
        with watch.phase("reward"):
            return pending.wait()

    def _group_spreads(self, slots: Sequence[Candidates], rollouts: Sequence[Rollout]) -> dict[str, float]:
        """How far a group's pictures are apart, mean over slots; looked at when a validation is due, else empty."""
        if self.iteration % self.config.evaluation.interval:
            return {}
        spreads = []
        for candidates, rollout in zip(slots, rollouts, strict=True):
            parts = rollout.finals.split(self.config.model.max_batch)
            images = torch.cat([reduced(self._decode(part)) for part in parts])
            spreads.append(group_spreads(images, candidates.prompts[candidates.chosen], self.config.rollout.group_size))
        return {name: sum(spread[name] for spread in spreads) / len(spreads) for name in spreads[0]}

    def _learning_rate(self) -> float:
        settings = self.config.optimizer
        return settings.learning_rate * min(1.0, self.iteration / max(1, settings.warmup_iterations))

    def _record(
        self,
        slots: Sequence[Candidates],
        scores: Sequence[Scores],
        advantages: Sequence[Tensor],
        logged: dict[str, list[float]],
        spreads: dict[str, float],
        watch: Stopwatch,
        spent: Counters,
    ) -> dict[str, Any]:
        """The iteration's line of metrics.jsonl, over all processes; equal on every process."""
        scored = [c.rewards for c in slots if c.rewards is not None]
        parts = [name for name in self.reward.weights if name != self.reward.name]
        values, averages, counts = across_processes(
            {
                "prompts": [c.prompts[c.chosen] for c in slots],
                "ranks": [c.rank(self.reward.resolution) for c in slots],
                "candidates": torch.cat(scored).tolist() if scored else [],
                "chosen": [c.rewards[c.chosen].item() for c in slots if c.rewards is not None],
                "rewards": torch.cat([s.total for s in scores]).flatten().tolist(),
                "within_group_std": [s.total.std(dim=1, correction=1).mean().item() for s in scores],
                **{f"component {n}": [x for s in scores for x in s.components[n].flatten().tolist()] for n in parts},
                "advantages": torch.cat(list(advantages)).abs().flatten().tolist(),
                "equal_groups": [float(not group.any()) for slot in advantages for group in slot],
                # Not each process's means: one may have more terms than another, and a maximum is none.
                **{f"update {name}": values for name, values in logged.items()},
            },
            {"group": spreads, "seconds": watch.seconds},
            spent,
            self.processes,
        )
        self.totals.add(counts)
        return {
            "iteration": self.iteration,
            **mean_and_std("reward", values["rewards"]),
            "within_group_std": mean_and_std("", values["within_group_std"])["_mean"],
            "components": {name: mean_and_std("reward", values[f"component {name}"]) for name in parts},
            **mean_and_std("candidate_reward", values["candidates"]),
            "chosen_reward_mean": mean_and_std("", values["chosen"])["_mean"],
            "capability_mean": self.tracker.mean if scored else None,
            "capability_std": self.tracker.std if scored else None,
            "prompts": values["prompts"],
            "ranks": values["ranks"] if scored else None,
            "advantage_abs_mean": mean_and_std("", values["advantages"])["_mean"],
            "zero_std_share": mean_and_std("", values["equal_groups"])["_mean"],
            "learning_rate": self._learning_rate(),
            **({"group": averages["group"]} if averages["group"] else {}),
            **summary_of_updates({name: values[f"update {name}"] for name in logged}),
            **counts,
            **{f"total_{name}": count for name, count in vars(self.totals).items()},
            "seconds": averages["seconds"],
        }

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that a continued run needs, from every process: an exchange.

        Random draws are functions of seed and iteration, so there is no generator in it.
        """
        return {
            "iteration": self.iteration,
            **self.engine.state_dict(),
            "trackers": self.processes.gather_objects(self.tracker.state_dict(), "gathering capabilities"),
            "totals": vars(self.totals),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``, bit for bit, when the engine has what is its own.

        Raises:
            ConfigError: capability is kept per rank, and another number of processes made the state.
        """
        trackers, world = state["trackers"], self.processes.count
        if self.config.capability.sync == "per_rank" and len(trackers) != world:
            raise ConfigError(
                f"capability.sync=per_rank: {len(trackers)} processes made the checkpoint, {world} run now"
            )
        self.tracker.load_state_dict(trackers[self.processes.index % len(trackers)])
        self.totals = Counters(**state["totals"])
        self.iteration = state["iteration"]
