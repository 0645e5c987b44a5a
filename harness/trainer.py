"""The training loop: AdaGRPO's algorithm, one iteration in ``Trainer._iterate``."""

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from harness.adagrpo import CapabilityTracker, fuse_advantages, global_advantage, local_advantage, select_prompt
from harness.config import ROOT, ConfigError, RunConfig
from harness.evaluation import evaluate, save_gallery
from harness.mirror import Mirror
from harness.models.flux import FluxPolicy
from harness.objective import SurrogateStats, batch_normalised_advantage, surrogate_loss
from harness.prompts import draw_candidates, generator_for, read_prompts
from harness.rewards import build_reward, build_weighted
from harness.rollout import Rollout, Trajectory, TrainStep, anchor_branch, full_sde, in_batches, ode_trajectory
from harness.runs import RunDirectory, environment
from harness.transitions import KERNELS, Kernel


class TrainingError(RuntimeError):
    """Training cannot go on: what happened, at which iteration."""


@dataclass
class Counters:
    """Compute spent, over all processes. A trained sample costs a forward and a backward: three forwards' worth."""

    sample_forwards: int = 0
    train_forwards: int = 0
    reward_calls: int = 0


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


@dataclass
class Stopwatch:
    """Seconds by phase of one iteration."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent within to a phase."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - began


class Trainer:
    """Trains one run from its directory, from the start or from its checkpoint.

    Args:
        run: a prepared run directory.
        say: receives a line of progress now and then.

    Raises:
        ConfigError: the world size is not the one asked for, or a prompt cannot be drawn by the model.
    """

    def __init__(self, run: RunDirectory, say: Any = print) -> None:
        self.run_directory, self.config, self._say = run, run.config, say
        config = self.config
        torch.set_num_threads(config.runtime.threads)
        use_cuda = config.runtime.device == "cuda" or (config.runtime.device == "auto" and torch.cuda.is_available())
        self.accelerator = Accelerator(cpu=not use_cuda)
        world = self.accelerator.num_processes
        if world != config.runtime.processes:
            raise ConfigError(f"runtime.processes={config.runtime.processes} was asked for, but {world} are running")
        self._slots = range(self.accelerator.process_index, config.rollout.prompts_per_update, world)
        self.policy = FluxPolicy(config.model, config.optimizer, self.accelerator.device, seed=config.seed)
        self.kernel: Kernel = KERNELS[config.method.kernel](eta=config.method.eta)
        self.sigmas = self.policy.sigmas(config.model.num_steps)
        self.velocity = in_batches(self.policy.velocity, config.model.max_batch)
        self.reward = build_weighted(config.reward, config.runtime.threads)
        judges = [build_reward(name, config.runtime.threads) for name in config.evaluation.judges]
        self.judges = [self.reward, *(judge for judge in judges if judge.name != self.reward.name)]
        self.prompts = {s: read_prompts(getattr(config.prompts, s)).prompts for s in ("train", "validation", "test")}
        for prompts in self.prompts.values():
            self.policy.check_prompts(prompts)
        self.tracker = CapabilityTracker(config.capability.decay)
        self.parameters = self.policy.trainable()
        settings = config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
        )
        self.averages = (
            {name: p.detach().clone() for name, p in self.parameters.items()}
            if settings.weight_ema is not None
            else None
        )
        if config.objective.kl_beta:
            self.policy.keep_reference()
        self.totals = Counters()
        self.iteration = 0

    # --- the algorithm ------------------------------------------------------------------------------------------------

    def _iterate(self) -> dict[str, Any]:
        """One iteration: draw, score and choose prompts; roll out; estimate advantages; update."""
        watch, spent = Stopwatch(), Counters()
        slots = [self._draw(slot, watch, spent) for slot in self._slots]
        if self._needs_candidate_rewards:
            self._update_capability(slots)
        for slot, candidates in zip(self._slots, slots, strict=True):
            candidates.chosen = self._choose(slot, candidates)
        rollouts = [self._roll_out(s, c, watch, spent) for s, c in zip(self._slots, slots, strict=True)]
        rewards = [self._score_rollout(r, c, watch, spent) for r, c in zip(rollouts, slots, strict=True)]
        advantages = self._advantages(rewards)
        with watch.phase("update"):
            update = self._update(rollouts, advantages, spent)
        return self._record(slots, rewards, advantages, update, watch, spent)

    @property
    def _needs_candidate_rewards(self) -> bool:
        return self.config.selection != "random" or self.config.fusion.enabled

    def _draw(self, slot: int, watch: Stopwatch, spent: Counters) -> Candidates:
        """B candidate prompts of a slot; with their ODE samples and rewards if anything needs them."""
        rollout = self.config.rollout
        drawn = draw_candidates(
            self.prompts["train"], rollout.prompts_per_update, rollout.candidates, self.config.seed, self.iteration
        )
        prompts = drawn[slot]
        if not self._needs_candidate_rewards:
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
        """The surrogate loss of one step's siblings; one forward with gradient, whatever their number, if they share x."""
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
        if self.averages is not None and self.config.optimizer.weight_ema is not None:
            for name, parameter in self.parameters.items():
                self.averages[name].lerp_(parameter.detach(), 1 - self.config.optimizer.weight_ema)

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """Within: the policy has the averaged weights, if there are any."""
        if self.averages is None:
            yield
            return
        kept = {name: p.data for name, p in self.parameters.items()}
        for name, parameter in self.parameters.items():
            parameter.data = self.averages[name]
        try:
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = kept[name]

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
        mine = {
            "update": update,
            "seconds": dict(watch.seconds),
            "spent": vars(spent),
            "prompts": [c.prompts[c.chosen] for c in slots],
            "ranks": [c.rank for c in slots],
            "candidates": [] if slots[0].rewards is None else torch.cat([c.rewards for c in slots]).tolist(),  # type: ignore[misc]
            "rewards": torch.cat(list(rewards)).flatten().tolist(),
            "within_group_std": [r.std(dim=1, correction=1).mean().item() for r in rewards],
            "advantages": torch.cat(list(advantages)).flatten().tolist(),
        }
        everyone: list[dict[str, Any]] = gather_object([mine])

        def together(key: str) -> Tensor:
            return torch.tensor([value for one in everyone for value in one[key]], dtype=torch.float64)

        def mean_of(section: str) -> dict[str, float]:
            return {key: sum(one[section][key] for one in everyone) / len(everyone) for key in mine[section]}  # type: ignore[attr-defined]

        candidate_rewards = together("candidates")
        totals = {key: sum(one["spent"][key] for one in everyone) for key in vars(spent)}
        for key, value in totals.items():
            setattr(self.totals, key, getattr(self.totals, key) + value)
        scored = self._needs_candidate_rewards
        return {
            "iteration": self.iteration,
            "reward_mean": together("rewards").mean().item(),
            "reward_std": together("rewards").std(correction=0).item(),
            "within_group_std": together("within_group_std").mean().item(),
            "candidate_reward_mean": candidate_rewards.mean().item() if scored else None,
            "candidate_reward_std": candidate_rewards.std(correction=0).item() if scored else None,
            "capability_mean": self.tracker.mean if scored else None,
            "capability_std": self.tracker.std if scored else None,
            "prompts": [prompt for one in everyone for prompt in one["prompts"]],
            "ranks": [rank for one in everyone for rank in one["ranks"]] if scored else None,
            "advantage_abs_mean": together("advantages").abs().mean().item(),
            "learning_rate": self._learning_rate(),
            **mean_of("update"),
            **totals,
            **{f"total_{key}": value for key, value in vars(self.totals).items()},
            "seconds": mean_of("seconds"),
        }

    # --- the run ------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Run to the end: validations at the interval, checkpoints, and one test when training is over."""
        run, config, main = self.run_directory, self.config, self.accelerator.is_main_process
        self._resume()
        if main:
            run.set_status("running", self.iteration, config.iterations)
        with Mirror(run, config.logging, enabled=main) as mirror:
            if self.iteration == 0:
                self._evaluate("validation", mirror)
                if config.evaluation.base_test:
                    self._evaluate("test", mirror)
            began, first = time.monotonic(), self.iteration
            while self.iteration < config.iterations:
                self.iteration += 1
                start = time.perf_counter()
                record = self._iterate()
                record["seconds"]["iteration"] = time.perf_counter() - start
                if main:
                    run.append("metrics.jsonl", record)
                    mirror.log(record, step=self.iteration)
                last = self.iteration == config.iterations
                if last or self.iteration % config.evaluation.interval == 0:
                    self._evaluate("validation", mirror)
                if last:
                    self._evaluate("test", mirror)
                if main and (last or self.iteration % config.runtime.checkpoint_interval == 0):
                    run.save_checkpoint(self._state())
                    run.set_status("running", self.iteration, config.iterations)
                if main and (last or self.iteration % 5 == 0):
                    left = (time.monotonic() - began) / (self.iteration - first) * (config.iterations - self.iteration)
                    self._say(
                        f"{self.iteration}/{config.iterations}  reward {record['reward_mean']:.3f}  "
                        f"{record['seconds']['iteration']:.2f} s an iteration, {left:.0f} s left"
                    )
        if main:
            with self._averaged_weights():
                self.policy.save(run.folder / "checkpoints" / "final")
            run.set_status("finished", self.iteration, config.iterations)

    def _resume(self) -> None:
        state = self.run_directory.load_checkpoint()
        main = self.accelerator.is_main_process
        if main:
            self.run_directory.forget_after(state["iteration"] if state else -1)
            (self.run_directory.folder / "environment.json").write_text(_json(environment()))
        if state is None:
            return
        for name, parameter in self.parameters.items():
            parameter.data.copy_(state["parameters"][name])
        for name, average in (self.averages or {}).items():
            average.copy_(state["averages"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.tracker.load_state_dict(state["tracker"])
        self.totals = Counters(**state["totals"])
        self.iteration = state["iteration"]
        if main:
            self._say(f"continuing at iteration {self.iteration}")

    def _state(self) -> dict[str, Any]:
        return {
            "iteration": self.iteration,
            "parameters": {name: p.detach() for name, p in self.parameters.items()},
            "averages": self.averages,
            "optimizer": self.optimizer.state_dict(),
            "tracker": self.tracker.state_dict(),
            "totals": vars(self.totals),
        }

    def _evaluate(self, split: str, mirror: Mirror) -> None:
        """Measure every judge on a list, shared among processes, and append it to eval.jsonl."""
        settings, began = self.config.evaluation, time.perf_counter()
        is_test = split == "test"
        prompts = self.prompts[split] if is_test else self.prompts[split][: settings.validation_prompts]
        noises = settings.test_noises if is_test else 1
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        with self._averaged_weights():
            measured, images = evaluate(self.policy, prompts[rank::world], self.judges, noises)
            gallery = [] if is_test else prompts[: settings.gallery]
            pictures = evaluate(self.policy, gallery, [], 1)[1] if world > 1 and gallery else images[: len(gallery)]
        shares: list[dict[str, list[float]]] = gather_object([measured])
        if not self.accelerator.is_main_process:
            return
        per_prompt = {
            metric: [shares[i % world][metric][i // world] for i in range(len(prompts))] for metric in measured
        }
        metrics = {metric: sum(values) / len(values) for metric, values in per_prompt.items()}
        self.run_directory.append(
            "eval.jsonl",
            {
                "iteration": self.iteration,
                "split": split,
                "num_prompts": len(prompts),
                "num_noises": noises,
                "seconds": time.perf_counter() - began,
                "metrics": metrics,
                "per_prompt": {k: [round(value, 6) for value in values] for k, values in per_prompt.items()},
            },
        )
        mirror.log({f"{split}/{metric}": value for metric, value in metrics.items()}, step=self.iteration)
        if gallery:
            name = f"{split}-{self.iteration:05d}"
            save_gallery(pictures, gallery, self.run_directory.folder / "images", name)
            mirror.image(split, self.run_directory.folder / "images" / f"{name}.png", step=self.iteration)
        self._say(f"{split} at {self.iteration}: " + "  ".join(f"{k} {v:.3f}" for k, v in metrics.items()))


def _json(content: dict[str, Any]) -> str:
    import json

    return json.dumps(content, indent=1) + "\n"
