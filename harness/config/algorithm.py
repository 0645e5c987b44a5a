"""Settings of the algorithm: prompt selection, stochastic steps, rollouts, advantages, the loss."""

from typing import Annotated, Literal

from pydantic import AliasChoices, Field

from harness.config.section import Count, Positive, Section, Share, one_of
from harness.foundation.names import FUSIONS, METHODS, NORMALISATIONS, SELECTIONS

Selection = Annotated[str, one_of(SELECTIONS, or_plugin=True)]


class MethodConfig(Section):
    """Stochastic step of the sampler."""

    kernel: Annotated[str, one_of(METHODS, or_plugin=True)]
    """Transition kernel that draws a step: that of Flow-GRPO, DanceGRPO or Flow-CPS, or a plug-in."""
    eta: Positive
    """Scale of the noise, as the kernel's published release defines it."""


class ChoiceConfig(Section):
    """Parameters of the rules of ``selection``, and the groups that are trained on: see docs/selection.md."""

    level: float | None = None
    """Parameter of the rule. quantile: q in [0, 1]; fixed: r, in the reward's unit; anchored: k, in standard deviations
    of the capability; replay: share of slots that train on an earlier prompt, in [0, 1]. None for all others."""
    ledger: bool = False
    """Keep a ledger even if the selection does not read it: metrics then report how well it would have predicted."""
    explore: Share = 0.1
    """Share of choices that a rule which learns from the ledger makes at random."""
    forgetting: Share = 0.98
    """Factor by which the weight of an outcome in the ledger decays per iteration."""
    floor: Share = 0.0
    """Quantile of reward spreads, over the latest 256 prompts. A prompt whose groups have a lower spread gets
    advantages of 0, so that nothing is learned from it. 0 trains on all prompts."""


class FusionConfig(Section):
    """Cross-level advantage fusion."""

    enabled: bool = False
    """Correct local advantages by the capability (AdaGRPO)."""
    weight: float = Field(1.0, ge=0)
    """Weight of the global advantage relative to the local one (AdaGRPO: 1)."""
    kind: Annotated[str, one_of(FUSIONS, or_plugin=True)] = "fused"
    """The paper's fusion, the control that only rescales local advantages, or another correction: docs/fusion.md."""
    same_length: bool = False
    """Use the control of the kind: local advantages, scaled in each group to the norm of the kind's advantages."""

    @property
    def name(self) -> str:
        """Name of the correction in the names of runs and cells."""
        name = "fusion" if self.kind == "fused" else self.kind
        return f"{name}_length" if self.same_length else name


class CapabilityConfig(Section):
    """Moving averages of the candidates' rewards, which measure the policy's capability."""

    decay: Share = 0.8
    """Decay of the averages: share of the old mean and variance that an iteration keeps (AdaGRPO: 0.8)."""
    sync: Literal["shared", "per_rank"] = "shared"
    """One tracker for all processes, or one per process, as in the official release."""
    anchor: Literal["after", "before"] = "after"
    """Capability that curriculum compares candidates with: including the current batch (the release), or before it."""


class WindowConfig(Section):
    """Window that moves over ``rollout.branch_indices``; steps outside it are deterministic (Flow-GRPO-Fast)."""

    size: Count = 2
    """Number of consecutive entries of branch_indices in the window."""
    move: Literal["slide", "random"] = "slide"
    """Position in each iteration: slide moves it on by one entry, from the last position back to the first; random
    draws a position for each prompt."""


class RolloutConfig(Section):
    """Samples that an iteration draws."""

    kind: Literal["anchor_branch", "full_sde"] = "anchor_branch"
    """Sampling of a group: it branches off the chosen candidate's path at single steps (AdaGRPO), or it is drawn from
    the start with all branch indices stochastic (Flow-GRPO, DanceGRPO)."""
    candidates: Count = 12
    """B: number of candidate prompts, one of which is trained on."""
    prompts_per_iteration: Count = Field(
        1, validation_alias=AliasChoices("prompts_per_iteration", "prompts_per_update")
    )
    """P: number of disjoint batches of candidates per iteration, over all processes."""
    group_size: int = Field(8, ge=2, le=100_000)
    """G: number of samples that share a prompt and, with anchor_branch, a branch index."""
    branch_indices: tuple[int, ...] = (0, 1, 2, 3)
    """anchor_branch: steps at which one stochastic step is taken. full_sde: steps that are stochastic and trained."""
    window: WindowConfig | None = None
    """Window of the branch indices that an iteration uses; None uses all of them."""
    trained_share: float = Field(1.0, gt=0, le=1)
    """full_sde: share of the stochastic steps that are trained on, rounded down; they are drawn at random in every
    iteration (DanceGRPO: 0.6)."""
    trained_draw: Literal["prompt", "sample"] = "prompt"
    """Whether the samples of a prompt share the draw of trained steps, or each sample has its own (DanceGRPO)."""
    shared_noise: bool = False
    """full_sde: start the samples of a group from the same noise (DanceGRPO)."""


class ObjectiveConfig(Section):
    """Loss, and the advantages that it uses."""

    kind: Literal["surrogate", "grpo_guard", "flow_dppo", "awm", "nft"] = "surrogate"
    """Loss of a sample. surrogate: the ratio of log-probabilities. grpo_guard: that ratio without its bias to values
    below 1 (GRPO-Guard). flow_dppo: not clipped, but without samples further than ``divergence_limit`` from the old
    policy that move away from it (Flow-DPPO). These two matter from the second update of a rollout on. awm: the
    flow-matching loss of newly noised pictures in place of the log-probability (AWM). nft: DiffusionNFT's loss of such
    pictures, which has no ratio. With awm and nft the kernel matters only for the rollout."""
    divergence_limit: Positive = 1.0e-5
    """flow_dppo: limit of the divergence mean((mu - mu_old)^2) / (2 std^2), a mean over latents."""
    updates_per_iteration: Count = 1
    """Number of optimiser steps per rollout."""
    update_on: Literal["all", "prompts", "steps"] = "all"
    """Samples that an update learns from: all samples each time; or an equal part of the iteration's prompts
    (Flow-GRPO, DanceGRPO) or of the trained steps (AdaGRPO's full fine-tuning), so that each sample is used once."""
    clip_range: Annotated[float, Field(gt=0, le=1)] | None = None
    """PPO clip range of the ratio. None is the unclipped surrogate, whose ratio is exactly 1 if each sample is used
    once (AdaGRPO's release)."""
    old_log_prob: Literal["rollout", "recomputed"] = "rollout"
    """Log-probability in the denominator of the ratio: as recorded in the rollout, or recomputed before the first
    update the way updates compute it. The two differ by rounding: other batch sizes, a compiled network."""
    kl_beta: float = Field(0.0, ge=0)
    """Weight of the KL divergence from the frozen base model, as the kernel's release defines it."""
    advantage_clip: Positive = 5.0
    """Bound of the magnitude of local and of global advantages, in standard deviations."""
    normalisation: Annotated[str, one_of(NORMALISATIONS, or_plugin=True)] = "group"
    """Standard deviation that divides local advantages: each group's own, or that of all samples of the iteration
    (Flow-GRPO's release); or a plug-in's normalisation."""
    combine: Literal["rewards", "advantages"] = "rewards"
    """With several rewards: local advantages of the weighted sum, or the weighted sum of each reward's local
    advantages. Selection, capability and global advantages use the weighted sum in both cases."""

    @property
    def is_forward(self) -> bool:
        """Whether the loss uses the forward process, see ``harness.training.forward_process``."""
        return self.kind in ("awm", "nft")

    @property
    def is_on_policy(self) -> bool:
        """Whether the ratio is 1 by definition, so that log-probabilities of the rollout are not needed."""
        once = self.updates_per_iteration == 1 or self.update_on != "all"
        return self.kind == "surrogate" and self.clip_range is None and once


def num_trained_steps(rollout: RolloutConfig) -> int:
    """Number of steps of the schedule that a prompt is trained on in an iteration."""
    stochastic = len(rollout.branch_indices) if rollout.window is None else rollout.window.size
    # .29 of 100 must be 29, though the product is a hair below it in floating point.
    return int(stochastic * rollout.trained_share + 1e-9)
