"""A run: all sections, and which of their values go together."""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.config.algorithm import (
    CapabilityConfig,
    FusionConfig,
    MethodConfig,
    ObjectiveConfig,
    RolloutConfig,
    Selection,
    num_trained_steps,
)
from harness.config.model import ModelConfig
from harness.config.optimizer import OptimizerConfig
from harness.config.rewards import RewardConfig
from harness.config.section import Count, CountOrNone, Name, Pixels, Seconds, Section, Seed, Steps, one_of
from harness.names import ENGINES, REWARDS
from harness.trained_reward import Normalisation, TrainedReward

KnownReward = Annotated[str, one_of(REWARDS)]


class PromptsConfig(Section):
    """Text files with one prompt a line, absolute or relative to the repository."""

    train: str
    validation: str
    test: str
    allow_overlap: bool = False
    """Take lists that have prompts in common, instead of refusing them: what is measured on them says less."""


class EvaluationConfig(Section):
    """Deterministic ODE samples from fixed noise."""

    interval: Count = 25
    """Iterations between validations; one more is made before the first iteration and one after the last."""
    validation_prompts: Count = 96
    """How many of the validation list an interval evaluation reads, from its start."""
    test_noises: Count = 1
    """Samples a test prompt."""
    test: bool = True
    """Measure the trained model on the test list when training is over. Without, the list is not even read: tuning."""
    base_test: bool = False
    """Also measure the untrained model on the test list, at iteration 0."""
    judges: tuple[KnownReward, ...] = ("ocr", "ocr-v4", "colour")
    """Rewards to report, trained on or not."""
    num_steps: Steps | None = None
    height: Pixels | None = None
    width: Pixels | None = None
    """Euler steps and pixels of evaluations; None is the model's own."""
    gallery: CountOrNone = 8
    """How many validation prompts' pictures to keep at each evaluation."""


class LoggingConfig(Section):
    """wandb mirrors the run's JSONL and is never needed to analyse."""

    wandb: Literal["offline", "online", "off"] = "off"


class RuntimeConfig(Section):
    """How the run is executed; none of it changes what the run is."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(1, ge=1, le=10_000)
    processes: Count = 1
    """World size that was asked for, over all machines; another one found at start is an error."""
    machines: Count = 1
    """That share the processes evenly."""
    engine: Annotated[str, one_of(ENGINES)] = "ddp"
    """What each process holds of a model in training. Everything, and gradients are averaged (ddp); a share of weights,
    gradients and optimiser state (fsdp2). The numbers are the same up to rounding."""
    timeout_seconds: Seconds = 1800.0
    """Longest wait of a process for the others, wherever all meet."""
    checkpoint_interval: Count = 25


class RunConfig(Section):
    """Everything that defines one run."""

    experiment: Name
    """Folder of the run in results/runs/."""
    seed: Seed = 0
    iterations: int = Field(100, ge=1, le=10_000_000)
    selection: Selection = "random"
    fusion: FusionConfig = FusionConfig()
    capability: CapabilityConfig = CapabilityConfig()
    model: ModelConfig
    method: MethodConfig
    reward: dict[KnownReward, float] = Field(min_length=1)
    """Weight of each reward in the sum that is trained on, see ``objective.combine``."""
    rewards: dict[KnownReward, RewardConfig] = Field({})
    """Settings of rewards and judges, by name."""
    rollout: RolloutConfig = RolloutConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    prompts: PromptsConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    logging: LoggingConfig = LoggingConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @cached_property
    def origins(self) -> Mapping[str, str]:
        """Where each value was written, by dotted key: what is not there is the default. ``compose`` fills it in; no
        part of what the run is, so that two configurations are equal whoever wrote them."""
        return {}

    @property
    def prompt_splits(self) -> tuple[str, ...]:
        """The prompt lists that the run reads."""
        return ("train", "validation", "test") if self.evaluation.test else ("train", "validation")

    def trained_reward(self, metrics: Mapping[str, float]) -> float:
        """What is trained on, of an evaluation's metrics: the weighted sum of the normalised rewards."""
        normalisations = {name: Normalisation(r.offset, r.scale) for name, r in self.rewards.items()}
        return float(TrainedReward(self.reward, normalisations).total(metrics))

    @property
    def scores_candidates(self) -> bool:
        """Whether every candidate is sampled and scored: to be chosen by its reward, or for the capability."""
        return self.selection != "random" or self.fusion.enabled

    @model_validator(mode="after")
    def _check_combinations(self) -> "RunConfig":
        steps, rollout = self.model.num_steps, self.rollout
        indices = rollout.branch_indices
        if not indices or list(indices) != sorted(set(indices)):
            raise ValueError(
                f"rollout.branch_indices: {list(indices)} must name at least one step, in increasing order"
            )
        for index in indices:
            # The last step is deterministic in Flow-CPS, and no method trains it.
            if not 0 <= index <= steps - 2:
                raise ValueError(
                    f"rollout.branch_indices: {index} is past the trainable steps of model.num_steps={steps}; "
                    f"use 0 to {steps - 2}"
                )
        if rollout.window is not None and rollout.window.size > len(indices):
            raise ValueError(
                f"rollout.window.size: {rollout.window.size} is more than the {len(indices)} rollout.branch_indices"
            )
        for key in ("trained_share", "trained_draw", "shared_noise"):
            if rollout.kind != "full_sde" and getattr(rollout, key) != RolloutConfig.model_fields[key].default:
                raise ValueError(f"rollout.{key}: is for rollout.kind=full_sde")
        if self.method.kernel == "flow_cps" and self.method.eta > 1:
            raise ValueError(f"method.eta: {self.method.eta} is out of range for flow_cps; use a value in (0, 1]")
        if rollout.prompts_per_update % self.runtime.processes:
            raise ValueError(
                f"rollout.prompts_per_update: {rollout.prompts_per_update} does not divide over "
                f"runtime.processes={self.runtime.processes}; use a multiple"
            )
        if self.evaluation.base_test and not self.evaluation.test:
            raise ValueError("evaluation.base_test: no test list is read with evaluation.test=false; set it to false")
        for name, weight in self.reward.items():
            if weight == 0:
                raise ValueError(f"reward.{name}: weight 0 trains on nothing; leave it out, as in reward={{ocr: 1}}")
        if self.fusion.kind == "rescaled" and not self.fusion.enabled:
            raise ValueError("fusion.kind: rescaled has no effect without fusion; set fusion.enabled=true")
        self._check_updates()
        self._check_engine()
        return self

    def _check_engine(self) -> None:
        """Whether the processes can be started, and an engine's can make equally many forwards."""
        runtime, window = self.runtime, self.rollout.window
        if runtime.processes % runtime.machines:
            raise ValueError(
                f"runtime.machines: {runtime.machines} cannot share runtime.processes={runtime.processes} evenly"
            )
        if runtime.engine != "ddp" and runtime.processes == 1:
            raise ValueError(
                f"runtime.engine: {runtime.engine} shares a model out to processes, but runtime.processes=1; use ddp"
            )
        if runtime.engine != "fsdp2":
            return
        if self.rollout.kind == "anchor_branch" and window is not None and window.move == "random":
            raise ValueError(
                "runtime.engine: fsdp2 needs equally many forwards in all processes, but rollout.window.move=random "
                "makes branches of different length; use move=slide, or another engine"
            )
        if self.model.execution.compile == "auto":
            raise ValueError(
                "runtime.engine: fsdp2 gathers the weights of one block after the other, which "
                "model.execution.compile=auto cannot; use compile=blocks or never"
            )

    def _check_updates(self) -> None:
        """Whether an iteration's prompts or steps can be dealt out evenly to its updates."""
        updates, update_on = self.objective.updates_per_iteration, self.objective.update_on
        prompts = self.rollout.prompts_per_update // self.runtime.processes
        trained = num_trained_steps(self.rollout)
        if not trained:
            raise ValueError(f"rollout.trained_share: {self.rollout.trained_share} leaves no step to train on")
        if update_on == "steps" and self.rollout.trained_draw == "sample":
            raise ValueError(
                "objective.update_on=steps: samples have no steps in common with rollout.trained_draw=sample"
            )
        for key, count, what in (("prompts", prompts, "prompts a process"), ("steps", trained, "trained steps")):
            if update_on == key and count % updates:
                raise ValueError(
                    f"objective.updates_per_iteration: {updates} updates cannot share {count} {what} evenly "
                    f"(objective.update_on={key})"
                )
