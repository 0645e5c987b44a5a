"""The training algorithm. ``Trainer.iterate`` is one iteration, in the order of the paper's algorithm."""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from harness.adagrpo import CapabilityTracker
from harness.config import ConfigError, RunConfig, keeps_capability_per_rank
from harness.models.miniature.prompts import is_miniature
from harness.models.pipelines.embedding import PromptEmbedding
from harness.models.pipelines.policy import Policy
from harness.prompts.lists import generator_for
from harness.rewards import Reward
from harness.rollout import Rollout, Trajectory, anchor_branch, full_sde, in_batches, ode_trajectory
from harness.rules.plugins import kernel_of
from harness.training.accounting import (
    Counters,
    Slot,
    Stopwatch,
    joined,
    mean,
    mean_and_std,
    summary_of_updates,
)
from harness.training.advantages import Advantages
from harness.training.choosing import Choosing
from harness.training.forward_process import noised_again
from harness.training.learner import Learner
from harness.training.observation import group_spreads, reduced
from harness.training.processes import Processes
from harness.training.scoring import PendingScores, Scores, require_finite, start_scoring
from harness.training.sharded import build_engine
from harness.training.steps import stochastic_steps, trained_steps


class Trainer:
    """A policy in training, with all state that is carried from one iteration to the next."""

    def __init__(
        self, config: RunConfig, policy: Policy, reward: Reward, prompts: tuple[str, ...], accelerator: Accelerator
    ) -> None:
        self.config, self.policy, self.reward, self.prompts = config, policy, reward, prompts
        self.processes = Processes(accelerator, config.runtime.timeout_seconds)
        self._is_miniature = is_miniature(prompts)
        # Consecutive slots per process: gathered values are then in slot order for any number of processes.
        mine = config.rollout.prompts_per_iteration // self.processes.count
        self._slots = range(self.processes.index * mine, (self.processes.index + 1) * mine)
        self.kernel = kernel_of(config.method.kernel, config.source_of(config.method.kernel), config.method.eta)
        self.sigmas = policy.sigmas(config.model.num_steps)
        self._candidate_sigmas = policy.sigmas(config.candidate_steps)
        self.velocity = in_batches(policy.velocity, config.model.max_batch)
        self.tracker = CapabilityTracker(config.capability.decay)
        self.choosing_tracker = self.tracker
        self.choosing = Choosing(config, prompts, reward.resolution, self.processes)
        if config.objective.kl_beta:
            policy.keep_reference()
        self.engine = build_engine(config, policy, self.processes)
        self.parameters = self.engine.parameters
        self.learner = Learner(config, policy, self.kernel, self.engine)
        self.advantages = Advantages(config, reward, self.processes)
        self.totals = Counters()
        self.slots: list[Slot] = []
        self.iteration = 0

    # --- the algorithm ------------------------------------------------------------------------------------------------

    def iterate(self) -> dict[str, Any]:
        """Run one iteration: draw, score and choose prompts; roll out; estimate advantages; update.

        Returns:
            The iteration's record for metrics.jsonl, over all processes; the same on every process.
        """
        self.iteration += 1
        self.watch, self.spent = Stopwatch(), Counters()
        with self.processes.at(f"iteration {self.iteration}"):
            self.slots = slots = [self._draw(slot) for slot in self._slots]
            if self.config.scores_candidates:
                for slot in slots:
                    slot.samples = self._scores(slot.pending).grouped(len(slot.prompts)).total.T
                self._update_capability(slots)
            for slot in slots:
                with self.watch.phase("choice"):
                    slot.chosen = self.choosing.choose(self.iteration, slot, self.choosing_tracker)
                self._roll_out(slot)
            for slot in slots:
                slot.scores = self._scores(slot.pending).grouped(self.config.rollout.group_size)
            advantages = self.advantages.of([slot.scores for slot in slots], self.tracker)
            advantages = self.choosing.above_floor(slots, advantages)
            noted = self.choosing.record(self.iteration, slots)
            with self.watch.phase("update"):
                rollouts = [self._trained_on(slot) for slot in slots]
                logged = self.learner.update(rollouts, advantages, self.iteration, self.spent)
            return {**self._record(slots, advantages, logged, self._group_spreads(slots)), **noted}

    def _draw(self, number: int) -> Slot:
        """Draw B candidate prompts for a slot; sample and score them if the selection or the capability needs it."""
        slot, samples = self.choosing.draw(self.iteration, number), self.config.candidate_samples
        if samples or self.choosing.ledger is not None:
            slot.text = self.policy.encode(slot.prompts)
        if slot.text is not None and samples:
            numbered = [(candidate, sample) for sample in range(samples) for candidate in range(len(slot.prompts))]
            noise = torch.cat([self._candidate_noise(number, *which) for which in numbered])
            with self.watch.phase("candidates"), self.policy.sampling():
                paths = self._ode(noise, PromptEmbedding.cat([slot.text] * samples), self._candidate_sigmas)
            slot.pending = self._start_scoring(paths.final, slot.prompts * samples)
            slot.trajectories = paths if len(self._candidate_sigmas) == len(self.sigmas) else None
        return slot

    def _update_capability(self, slots: Sequence[Slot]) -> None:
        rewards = torch.cat([slot.samples.flatten() for slot in slots if slot.samples is not None])
        if self.config.capability.sync == "shared":
            rewards = self.processes.gather(rewards, "gathering the candidates' rewards")
        if self.config.capability.anchor == "before" and not self.tracker.is_empty:
            self.choosing_tracker = copy(self.tracker)
        self.tracker.update(rewards)

    def _roll_out(self, slot: Slot) -> None:
        """Sample the groups of a slot's chosen prompt and start scoring them; a remote reward scores in parallel."""
        settings, seed = self.config.rollout, self.config.seed
        text = self.policy.encode([slot.prompt])
        indices = stochastic_steps(settings, seed, self.iteration, slot.number)
        generator = generator_for(seed, self.iteration, slot.number, "branches")
        noise = torch.stack([self.policy.noise(generator, settings.group_size) for _ in indices])
        schedule = (text, self.sigmas, indices, noise)
        with self.watch.phase("rollout"), self.policy.sampling():
            if settings.kind == "full_sde":
                count = 1 if settings.shared_noise else settings.group_size
                start = self.policy.noise(generator, count).expand_as(noise[0])
                trained = trained_steps(settings, indices, seed, self.iteration, slot.number)
                slot.rollout = full_sde(self.velocity, self.kernel, start, *schedule, trained)
            else:
                slot.rollout = anchor_branch(self.velocity, self.kernel, self._anchor(slot, text), *schedule)
        self.spent.sample_forwards += slot.rollout.sample_forwards
        slot.pending = self._start_scoring(slot.rollout.finals, [slot.prompt] * len(slot.rollout.finals))

    def _trained_on(self, slot: Slot) -> Rollout:
        if not self.config.objective.is_forward:
            return slot.rollout
        generator = generator_for(self.config.seed, self.iteration, slot.number, "forward process")
        return noised_again(slot.rollout, self.sigmas, self.config.rollout.group_size, generator)

    def _anchor(self, slot: Slot, text: PromptEmbedding) -> Trajectory:
        """ODE path of the chosen candidate; sampled here unless ``_draw`` sampled it with all steps."""
        if slot.trajectories is not None:
            return slot.trajectories.select(slot.chosen)
        return self._ode(self._candidate_noise(slot.number, slot.chosen), text, self.sigmas)

    # --- pieces -------------------------------------------------------------------------------------------------------

    def _candidate_noise(self, slot: int, candidate: int, sample: int = 0) -> Tensor:
        further = (sample,) if sample else ()  # the first sample's noise does not depend on the number of samples
        return self.policy.noise(generator_for(self.config.seed, self.iteration, slot, candidate, *further, "anchor"))

    def _ode(self, noise: Tensor, text: PromptEmbedding, sigmas: Tensor) -> Trajectory:
        self.spent.sample_forwards += len(noise) * (len(sigmas) - 1)
        return ode_trajectory(self.velocity, noise, text, sigmas)

    def _start_scoring(self, latents: Tensor, prompts: Sequence[str]) -> PendingScores:
        self.spent.reward_calls += len(prompts)
        with self.watch.phase("reward"):
            return start_scoring(self.reward, self._decode, latents, prompts, self.config.model.max_batch)

    def _decode(self, latents: Tensor) -> Tensor:
        images = self.policy.decode(latents)
        require_finite(images, "pictures", f"at iteration {self.iteration}")
        require_finite(latents, "latents", f"at iteration {self.iteration}")
        return images

    def _scores(self, pending: PendingScores) -> Scores:
        with self.watch.phase("reward"):
            return pending.wait()

    def _group_spreads(self, slots: Sequence[Slot]) -> list[dict[str, float]]:
        """Diversity within each slot's groups, see ``group_spreads``; empty unless a validation is due."""
        if self.iteration % self.config.evaluation.interval:
            return []
        spreads = []
        for slot in slots:
            parts = slot.rollout.finals.split(self.config.model.max_batch)
            images = torch.cat([reduced(self._decode(part)) for part in parts])
            spreads.append(group_spreads(images, slot.prompt, self.config.rollout.group_size, self._is_miniature))
        return spreads

    def _record(
        self,
        slots: Sequence[Slot],
        advantages: Sequence[Tensor],
        logged: Mapping[str, Sequence[float]],
        spreads: Sequence[Mapping[str, float]],
    ) -> dict[str, Any]:
        """Record of the iteration for metrics.jsonl, over all processes; the same on every process."""
        scores, scored = [slot.scores for slot in slots], [slot.rewards for slot in slots if slot.rewards is not None]
        parts = [name for name in self.reward.weights if name != self.reward.name]
        own = {
            "prompts": [slot.prompt for slot in slots],
            "ranks": [slot.rank(self.reward.resolution) for slot in slots],
            "candidates": torch.cat(scored).tolist() if scored else [],
            "chosen": [slot.rewards[slot.chosen].item() for slot in slots if slot.rewards is not None],
            "rewards": torch.cat([s.total for s in scores]).flatten().tolist(),
            "group_means": [slot.mean for slot in slots],
            "within_group_std": [slot.spread for slot in slots],
            "components": {name: torch.cat([s.components[name] for s in scores]).flatten().tolist() for name in parts},
            "advantages": torch.cat(list(advantages)).abs().flatten().tolist(),
            "equal_groups": [float(not group.any()) for slot in advantages for group in slot],
            # All values instead of each process's means: processes differ in the number of terms; one is a maximum.
            "updates": logged,
            "group": {name: [spread[name] for spread in spreads] for name in (spreads[0] if spreads else ())},
            "seconds": {phase: [seconds] for phase, seconds in self.watch.seconds.items()},
            "spent": {name: [count] for name, count in vars(self.spent).items()},
        }
        values = joined(self.processes.gather_objects(own, "gathering what is logged"))
        counts = {name: sum(each) for name, each in values["spent"].items()}
        self.totals = Counters(**{name: total + counts[name] for name, total in vars(self.totals).items()})
        group, seconds = (
            {name: sum(each) / len(each) for name, each in values[part].items()} for part in ("group", "seconds")
        )
        return {
            "iteration": self.iteration,
            **mean_and_std("reward", values["rewards"]),
            "within_group_std": mean(values["within_group_std"]),
            "components": {name: mean_and_std("reward", each) for name, each in values["components"].items()},
            **mean_and_std("candidate_reward", values["candidates"]),
            "chosen_reward_mean": mean(values["chosen"]),
            "capability_mean": self.tracker.mean if scored else None,
            "capability_std": self.tracker.std if scored else None,
            "prompts": values["prompts"],
            "group_means": values["group_means"],
            "group_stds": values["within_group_std"],
            "ranks": values["ranks"] if scored else None,
            "advantage_abs_mean": mean(values["advantages"]),
            "zero_std_share": mean(values["equal_groups"]),
            "learning_rate": self.config.optimizer.learning_rate,
            **({"group": group} if group else {}),
            **summary_of_updates(values["updates"]),
            **counts,
            **{f"total_{name}": count for name, count in vars(self.totals).items()},
            "seconds": seconds,
        }

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """State needed to resume training. Collective: every process must call it.

        It holds no random generator, because all draws are functions of seed and iteration. Raises TrainingError if the
        weights of two processes differ.
        """
        self.engine.require_alike(self.iteration)
        return {
            "iteration": self.iteration,
            **self.engine.state_dict(),
            "ledger": None if self.choosing.ledger is None else self.choosing.ledger.state_dict(),
            "trackers": self.processes.gather_objects(self.tracker.state_dict(), "gathering capabilities"),
            "totals": vars(self.totals),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from ``state_dict``, bit for bit on a CPU. The engine's own part must be loaded already.

        Raises:
            ConfigError: capability is kept per rank, and the state was saved with another number of processes.
        """
        trackers, world = state["trackers"], self.processes.count
        if keeps_capability_per_rank(self.config) and len(trackers) != world:
            raise ConfigError(
                f"capability.sync=per_rank: {len(trackers)} processes made the checkpoint, {world} run now"
            )
        saved = trackers[self.processes.index % len(trackers)]
        # Where the decay counts, a run with another one is another run; where it does not, it may have changed.
        self.tracker.load_state_dict({**saved, "decay": self.tracker.decay})
        if self.choosing.ledger is not None:
            self.choosing.ledger.load_state_dict(state["ledger"])
        self.totals = Counters(**state["totals"])
        self.iteration = state["iteration"]
