"""The algorithm: prompt selection, stochastic steps, rollouts, advantages, the loss."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from harness.config.section import Count, Positive, Section, Share, one_of
from harness.foundation.names import FUSIONS, METHODS, NORMALISATIONS, SELECTIONS

Selection = Annotated[str, one_of(SELECTIONS, or_plugin=True)]


class MethodConfig(Section):
    """The stochastic step."""

    kernel: Annotated[str, one_of(METHODS, or_plugin=True)]
    """How a step is drawn: by Flow-GRPO, DanceGRPO or Flow-CPS, or a plug-in's."""
    eta: Positive
    """Size of the noise, as the kernel's release defines it."""


class ChoiceConfig(Section):
    """What some rules of ``selection`` need, and which groups are trained on: see docs/selection.md."""

    level: float | None = None
    """quantile: q in [0, 1]; fixed: r, in the reward's unit; anchored: k, in standard deviations of the capability;
    replay: share of slots that train on a prompt of before, in [0, 1]."""
    ledger: bool = False
    """Keep one even if the selection does not read it: metrics then say how well it would have predicted."""
    explore: Share = 0.1
    """Rules that learn from the ledger: share of choices left to chance."""
    forgetting: Share = 0.98
    """Weight in the ledger of what is an iteration old."""
    floor: Share = 0.0
    """Prompts whose groups' spread is below this quantile of the latest 256 prompts' teach nothing: their advantages
    are 0. 0 trains on all."""


class FusionConfig(Section):
    """Cross-level advantage fusion."""

    enabled: bool = False
    """Correct local advantages by the capability (AdaGRPO)."""
    weight: float = Field(1.0, ge=0)
    """Of the global advantage beside the local one (AdaGRPO: 1)."""
    kind: Annotated[str, one_of(FUSIONS, or_plugin=True)] = "fused"
    """The paper's fusion, the control that only rescales local advantages, or another correction: docs/fusion.md."""
    same_length: bool = False
    """The control of any kind: local advantages, stretched in each group to the length that the kind's have."""

    @property
    def name(self) -> str:
        """In names of runs and cells."""
        name = "fusion" if self.kind == "fused" else self.kind
        return f"{name}_length" if self.same_length else name


class CapabilityConfig(Section):
    """The moving averages of candidates' rewards."""

    decay: Share = 0.8
    """Share of the old mean and variance that an iteration keeps (AdaGRPO: 0.8)."""
    sync: Literal["shared", "per_rank"] = "shared"
    """One tracker over all processes, or, as in the official release, one per process."""
    anchor: Literal["after", "before"] = "after"
    """Curriculum matches candidates to the capability with this batch in it (the release), or to the one before it."""


class WindowConfig(Section):
    """A window that moves over ``rollout.branch_indices``; steps outside of it are deterministic (Flow-GRPO-Fast)."""

    size: Count = 2
    """Consecutive entries of branch_indices."""
    move: Literal["slide", "random"] = "slide"
    """In every iteration one entry further, from the last place back to the first; or to a random place, each prompt's
    own."""


class RolloutConfig(Section):
    """What is sampled in an iteration."""

    former: ClassVar[Mapping[str, str]] = {"prompts_per_update": "prompts_per_iteration"}

    kind: Literal["anchor_branch", "full_sde"] = "anchor_branch"
    """A group branches off the chosen candidate's path at single steps (AdaGRPO), or is drawn from the start, all its
    steps stochastic (Flow-GRPO, DanceGRPO)."""
    candidates: Count = 12
    """B: candidate prompts, one of which is trained on."""
    prompts_per_iteration: Count = 1
    """P: disjoint batches of candidates per iteration, over all processes."""
    group_size: int = Field(8, ge=2, le=100_000)
    """G: samples that share a prompt and, in anchor-branch, a branch index."""
    branch_indices: tuple[int, ...] = (0, 1, 2, 3)
    """Anchor-branch: steps at which one stochastic step is taken. Full SDE: steps that are stochastic and trained."""
    window: WindowConfig | None = None
    """Only some of the branch indices in an iteration; None is all."""
    trained_share: float = Field(1.0, gt=0, le=1)
    """Full SDE: share of the stochastic steps that are trained on, rounded down, drawn at random in every iteration
    (DanceGRPO: .6)."""
    trained_draw: Literal["prompt", "sample"] = "prompt"
    """Whether the samples of a prompt share the draw of trained steps, or each has its own (DanceGRPO)."""
    shared_noise: bool = False
    """Full SDE: the samples of a group start from the same noise (DanceGRPO)."""


class ObjectiveConfig(Section):
    """The loss."""

    kind: Literal["surrogate", "grpo_guard", "flow_dppo", "awm", "nft"] = "surrogate"
    """What a sample's ratio is made of: log-probabilities; those without their bias to ratios below 1 (GRPO-Guard);
    log-probabilities, of samples that are not further than ``divergence_limit`` from the old policy and on their way
    away from it (Flow-DPPO, which does not clip). These two matter from the second update of a rollout on.
    Or, of pictures that are noised anew: the flow-matching loss in place of the log-probability (AWM), or
    DiffusionNFT's loss, which has no ratio. The method's kernel then matters for the rollout only."""
    divergence_limit: Positive = 1.0e-5
    """flow_dppo: of mean((mu - mu_old)^2) / (2 std^2), a mean over latents."""
    updates_per_iteration: Count = 1
    """Optimiser steps on one rollout."""
    update_on: Literal["all", "prompts", "steps"] = "all"
    """What an update learns from: all samples each time; or an equal part of the iteration's prompts (Flow-GRPO,
    DanceGRPO) or of the trained steps (AdaGRPO's full fine-tuning), so that each sample is used once."""
    clip_range: Positive | None = None
    """PPO range of the ratio. None is the unclipped surrogate, whose ratio is exactly 1 where each sample is used once
    (AdaGRPO's release)."""
    old_log_prob: Literal["rollout", "recomputed"] = "rollout"
    """Log-probability in the ratio's denominator: as it was in the rollout, or computed again before the first update
    as an update will compute it. The two differ by rounding: batches of another size, a compiled network."""
    kl_beta: float = Field(0.0, ge=0)
    """Weight of the KL to the frozen base model, as the kernel's release defines it."""
    advantage_clip: Positive = 5.0
    """Bound of local and of global advantages, in standard deviations."""
    normalisation: Annotated[str, one_of(NORMALISATIONS, or_plugin=True)] = "group"
    """Local advantage by each group's own std, or by that of all samples of the iteration (Flow-GRPO's release); or a
    plug-in's."""
    combine: Literal["rewards", "advantages"] = "rewards"
    """Several rewards: local advantages of the weighted sum, or the weighted sum of each reward's local advantages.
    Selection, capability and global advantages are of the weighted sum either way."""

    @property
    def is_forward(self) -> bool:
        """Whether the loss is of the forward process, see ``harness.training.forward_process``."""
        return self.kind in ("awm", "nft")

    @property
    def is_on_policy(self) -> bool:
        """Whether the ratio is 1 by definition, so that log-probabilities of the rollout are not needed."""
        once = self.updates_per_iteration == 1 or self.update_on != "all"
        return self.kind == "surrogate" and self.clip_range is None and once


def num_trained_steps(rollout: RolloutConfig) -> int:
    """How many steps of the schedule a prompt is trained on in an iteration."""
    stochastic = len(rollout.branch_indices) if rollout.window is None else rollout.window.size
    # .29 of 100 must be 29, though the product is a hair below it in floating point.
    return int(stochastic * rollout.trained_share + 1e-9)
