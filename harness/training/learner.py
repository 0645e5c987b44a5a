"""Optimiser updates of an iteration: the terms of the loss, and the losses."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from harness.config import RunConfig
from harness.foundation.errors import TrainingError
from harness.models.pipelines.embedding import PromptEmbedding
from harness.models.pipelines.policy import Policy
from harness.objective import centred_log_ratio, ratio_stats, stays_close, surrogate_loss
from harness.rollout import Rollout, TrainStep
from harness.training.accounting import Counters
from harness.training.engine import Engine
from harness.training.forward_process import ForwardProcess, Matching, nft_loss
from harness.training.steps import Batch, split_updates
from harness.transitions import Kernel, Transition

_RATIOS = ("ratio_mean", "ratio_max_deviation", "approx_kl")

Logged = dict[str, list[float]]


@dataclass(frozen=True)
class Term:
    """Term of an update's loss: n siblings of a step, the prompt's embedding, advantages ``[n]`` and the weight."""

    step: TrainStep
    text: PromptEmbedding
    advantage: Tensor
    share: float
    old: Transition | None = None
    """Step of the old policy, recomputed in the batches and precision of the update; None if it is not recomputed."""


class Learner:
    """Updates a policy, whose weights the engine holds, from rollouts by the method's kernel and their advantages."""

    def __init__(self, config: RunConfig, policy: Policy, kernel: Kernel, engine: Engine) -> None:
        self.objective, self.policy, self.engine = config.objective, policy, engine
        self.kernel = ForwardProcess() if config.objective.is_forward else kernel
        self.sigmas = policy.sigmas(config.model.num_steps)
        self.max_batch = config.model.execution.max_train_batch or config.model.max_batch
        # float16 covers 6e-8 to 65504. Every update starts at the largest scale, so that a resumed run does the same.
        self.scales = (2.0**16, 2.0**12, 2.0**8, 1.0) if config.model.precision == "fp16" else (1.0,)

    def update(
        self, rollouts: Sequence[Rollout], advantages: Sequence[Tensor], iteration: int, spent: Counters
    ) -> Logged:
        """Make ``objective.updates_per_iteration`` optimiser steps.

        Args:
            rollouts: rollouts of this process, in the order of slots.
            advantages: advantages of each rollout, ``[groups, G]``.
            iteration: number of the iteration, from 1.
            spent: counters to which the forwards are added.

        Returns:
            Logged values by name: one value per term of a loss, and per update ``grad_norm`` and the values of
            ``Engine.rounding``.

        Raises:
            TrainingError: a loss or a gradient is not finite; the step of this update was not taken.
        """
        logged: Logged = defaultdict(list)
        updates = [self._terms(batch) for batch in split_updates(rollouts, advantages, self.objective)]
        if self.objective.old_log_prob == "recomputed" and not self.objective.is_on_policy:
            # Recompute all before the first update changes the weights; only once if updates share all samples.
            distinct = updates[:1] if self.objective.update_on == "all" else updates
            fresh = [self._with_old_steps(terms, spent) for terms in distinct]
            updates = fresh * (len(updates) // len(fresh))
        for number, terms in enumerate(updates, start=1):
            norm = self._step(terms, logged, spent, iteration)
            if not math.isfinite(norm):
                gradients = {f"gradient of {n}": p.grad for n, p in self.engine.parameters.items()}
                where = f"at iteration {iteration}: lower the learning rate"
                raise TrainingError(f"the gradient is not finite {where}", gradients)
            logged["grad_norm"].append(norm)
            for name, share in self.engine.rounding.items():
                logged[name].append(share)
            self.engine.move_averages((iteration - 1) * self.objective.updates_per_iteration + number)
        return logged

    def _step(self, terms: Sequence[Term], logged: Logged, spent: Counters, iteration: int) -> float:
        """Try the loss scales until the gradient is finite, take the optimiser step, and return the gradient's norm."""
        parts = [*self._parts(terms)]
        missing = self._missing(parts)
        for scale in self.scales:
            own: Logged = defaultdict(list)
            losses = [partial(self._loss, part, own, spent, iteration) for part in parts]
            losses += [partial(self._no_loss, parts[-1], iteration)] * missing
            norm = self.engine.update(losses, scale)
            if math.isfinite(norm):
                break
        for name, values in own.items():
            logged[name] += values
        return norm

    def _terms(self, batch: Batch) -> list[Term]:
        """Terms of an update's loss, which is the mean over all its transitions."""
        total = sum(len(step.x_next) for _, step, _ in batch)
        return [
            Term(piece, rollout.text, advantage[rows].to(piece.x.device), len(piece.x_next) / total)
            for rollout, step, advantage in batch
            for rows, piece in step.pieces(self.max_batch)
        ]

    def _parts(self, terms: Sequence[Term]) -> Iterator[list[Term]]:
        """Group consecutive terms into forwards of at most ``max_batch`` samples, but at least one term each."""
        part: list[Term] = []
        for term in terms:
            if part and sum(len(other.step.x) for other in [*part, term]) > self.max_batch:
                yield part
                part = []
            part.append(term)
        yield part

    def _missing(self, parts: Sequence[list[Term]]) -> int:
        """Number of parts that this process lacks beside the one with most, if all must keep in step; else 0."""
        if not self.engine.keeps_step:
            return 0
        return max(self.engine.processes.gather_objects(len(parts), "counting parts")) - len(parts)

    @torch.no_grad()
    def _with_old_steps(self, terms: Sequence[Term], spent: Counters) -> list[Term]:
        """The terms with ``old`` set: steps of the present policy, computed in the update's batches and precision."""
        recomputed = []
        parts = [*self._parts(terms)]
        missing = self._missing(parts)
        for part in parts:
            for term, transition in zip(part, self._transitions(part), strict=True):
                recomputed.append(replace(term, old=transition))
                spent.sample_forwards += len(term.step.x)
        for _ in range(missing):
            self._transitions(parts[-1])
        return recomputed

    def _loss(self, part: Sequence[Term], logged: Logged, spent: Counters, iteration: int) -> Tensor:
        """Loss of one part: the weighted sum of its terms. Raises TrainingError if it is not finite."""
        losses = self._losses(part, logged)
        count = sum(len(term.step.x) for term in part)
        spent.train_forwards += count
        spent.sample_forwards += count if self.objective.kl_beta else 0  # of the reference
        loss = torch.stack([term.share * loss for term, loss in zip(part, losses, strict=True)]).sum()
        if not math.isfinite(logged["loss"][-1]) or not loss.isfinite():
            shown = {f"x of term {i}": term.step.x for i, term in enumerate(part)}
            shown |= {f"advantage of term {i}": term.advantage for i, term in enumerate(part)}
            raise TrainingError(f"the loss is not finite at iteration {iteration}: lower the learning rate", shown)
        return loss

    def _no_loss(self, part: Sequence[Term], iteration: int) -> Tensor:
        """A loss of 0 with a forward and backward pass, to keep in step with other processes; not counted or logged."""
        return 0 * self._loss(part, defaultdict(list), Counters(), iteration)

    def _losses(self, terms: Sequence[Term], logged: Logged) -> list[Tensor]:
        """Loss of each term, by the objective, from one forward with gradient for all of them."""
        objective, transitions = self.objective, self._transitions(terms)
        references: Sequence[Transition | None] = [None] * len(terms)
        if objective.kl_beta:
            with self.policy.reference():
                references = self._transitions(terms)
        losses = []
        for term, transition, reference in zip(terms, transitions, references, strict=True):
            log_prob = transition.log_prob(term.step.x_next)
            from_rollout = ratio_stats(log_prob, term.step.old_log_prob)
            old_log_prob = term.step.old_log_prob if term.old is None else term.old.log_prob(term.step.x_next)
            if objective.is_on_policy:
                # The ratio is then exactly 1; the rollout's log-probabilities differ in the last digits.
                old_log_prob = log_prob.detach()
            advantage, clipped = term.advantage, dict[str, float]()
            if objective.kind in ("grpo_guard", "flow_dppo"):
                assert term.old is not None
                log_prob, old_log_prob, advantage, clipped = self._compared(term, term.old, transition)
            loss, stats = surrogate_loss(log_prob, old_log_prob, advantage, objective.clip_range)
            if objective.kind == "nft":
                assert term.old is not None
                assert isinstance(transition, Matching)
                loss = nft_loss(transition, term.old, term.step.x_next, advantage, objective.advantage_clip)
            kl = loss.new_zeros(()) if reference is None else transition.kl(reference).mean()
            losses.append(loss + objective.kl_beta * kl)
            # The ratio of an on-policy loss is 1 by construction; logged is how far sampling and training differ.
            ratios = vars(from_rollout if objective.is_on_policy else stats) | clipped
            if term.old is not None and not objective.is_forward:
                ratios = ratios | {f"rollout_{name}": vars(from_rollout)[name] for name in _RATIOS}
            for name, value in {"loss": losses[-1].item(), "kl": kl.item(), **ratios}.items():
                logged[name].append(value)
        return losses

    def _compared(
        self, term: Term, old: Transition, new: Transition
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, float]]:
        """New and old log-probabilities (GRPO-Guard: log-ratio and 0), advantages, and logged values to replace."""
        x_next, advantage = term.step.x_next, term.advantage
        if self.objective.kind == "grpo_guard":
            log_ratio = centred_log_ratio(new.mean, old.mean, new.std, x_next)
            return log_ratio, torch.zeros_like(log_ratio), advantage, {}
        log_prob, old_log_prob = new.log_prob(x_next), old.log_prob(x_next)
        limit = self.objective.divergence_limit
        kept = stays_close(log_prob - old_log_prob, advantage, new.mean, old.mean, new.std, limit)
        return log_prob, old_log_prob, advantage * kept, {"clip_fraction": 1 - kept.float().mean().item()}

    def _transitions(self, terms: Sequence[Term]) -> list[Transition]:
        """Stochastic step of each term under the present weights; siblings that share x need one forward."""
        sizes = [len(term.step.x) for term in terms]
        sigmas = torch.cat([self.sigmas[term.step.index].expand(n) for term, n in zip(terms, sizes, strict=True)])
        text = PromptEmbedding.cat([term.text.repeat(n) for term, n in zip(terms, sizes, strict=True)])
        velocity = self.policy.velocity(torch.cat([term.step.x for term in terms]), sigmas, text)
        return [
            self.kernel.step(
                term.step.x.expand_as(term.step.x_next),
                part.expand_as(term.step.x_next),
                *self.sigmas[term.step.index : term.step.index + 2].tolist(),
            )
            for term, part in zip(terms, velocity.split(sizes), strict=True)
        ]
