"""Settings of a whole run, and checks that their values fit together."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, ModelWrapValidatorHandler, model_validator

from harness.config.algorithm import (
    CapabilityConfig,
    ChoiceConfig,
    FusionConfig,
    MethodConfig,
    ObjectiveConfig,
    RolloutConfig,
    Selection,
    num_trained_steps,
)
from harness.config.model import ModelConfig
from harness.config.optimizer import OptimizerConfig
from harness.config.plugins import PluginConfig, declare, declaring
from harness.config.rewards import RewardConfig
from harness.config.section import Count, CountOrNone, Name, Pixels, Seconds, Section, Seed, Steps, one_of
from harness.config.selection import Needs, needs_of
from harness.foundation.names import ENGINES, REWARDS
from harness.foundation.plugins import is_reference
from harness.foundation.trained_reward import trained_reward

FEWEST_PROMPTS = 8
"""Fewest validation prompts on which a reward's rise or fall counts as a sign, see ``StopConfig.on``."""

KnownReward = Annotated[str, one_of(REWARDS, or_plugin=True)]


class PromptsConfig(Section):
    """Text files with one prompt per line: absolute, relative to the working directory, or among the project's own."""

    train: str
    validation: str
    test: str
    """Prompts for training, for interval evaluations, and for the single evaluation after training; each a file or a
    plug-in that returns the list."""
    allow_overlap: bool = False
    """Accept lists that have prompts in common, instead of refusing them; measurements on them are less conclusive."""


class EvaluationConfig(Section):
    """Evaluations, made of deterministic ODE samples from fixed noise."""

    interval: Count = 25
    """Number of iterations between validations; one more is made before the first iteration and one after the last."""
    validation_prompts: Count = 96
    """Number of prompts, from the start of the validation list, that an interval evaluation reads."""
    test_noises: Count = 1
    """Number of samples per test prompt."""
    test: bool = True
    """Measure the trained model on the test list after training. If false, as for tuning, the list is not even read."""
    base_test: bool = False
    """Also measure the untrained model on the test list, at iteration 0."""
    judges: tuple[KnownReward, ...] = ("ocr", "ocr-v4", "colour")
    """Rewards to report, whether trained on or not."""
    num_steps: Steps | None = None
    height: Pixels | None = None
    width: Pixels | None = None
    """Euler steps and size in pixels of evaluation samples; None is the model's own."""
    gallery: CountOrNone = 8
    """Number of validation prompts whose pictures are kept at each evaluation."""

    def num_noises(self, split: str) -> int:
        """Number of samples per prompt of a split."""
        return self.test_noises if split == "test" else 1


class StopConfig(Section):
    """Conditions that end a run early; those not named only cause a warning."""

    on: tuple[Literal["judge", "texture", "diversity"], ...] = ()
    """Signs of reward hacking. judge: a reward that is not trained on falls while the trained one rises; texture:
    pictures become textured; diversity: the pictures of a group become alike."""


class LoggingConfig(Section):
    """Mirror of the run's JSONL in wandb, which no analysis needs."""

    wandb: Literal["offline", "online", "off"] = "off"
    """Mirror to local files, to a server, or not at all."""


class RuntimeConfig(Section):
    """Execution of the run. Not part of its identity, except for ``processes`` with ``capability.sync=per_rank``."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the model; auto is a GPU if there is one."""
    threads: int = Field(1, ge=1, le=10_000)
    """Number of CPU threads of each process."""
    arithmetic: Literal["exact", "fast"] = "exact"
    """fast: text recognisers compute in bfloat16 if the processor supports it, which sets ``rewards.NAME.precision``, a
    part of the run's name; else the run is exact. Needs OpenVINO: ``pip install 'adagrpo[fast]'``."""
    processes: Count = 1
    """World size, over all machines; it is an error if another one is found at the start."""
    machines: Count = 1
    """Number of machines, which share the processes evenly."""
    engine: Annotated[str, one_of(ENGINES)] = "ddp"
    """Distribution of the model in training. ddp: each process holds all of it, and gradients are averaged; fsdp2: each
    holds a share of weights, gradients and optimiser state. The numbers are the same up to rounding."""
    timeout_seconds: Seconds = 1800.0
    """Longest time that a process waits for the others in a collective operation."""
    silent_seconds: Seconds = 21600.0
    """Longest time that a run of a grid may write nothing; then its worker is killed, and the run is tried again."""
    checkpoint_interval: Count = 25
    """Number of iterations between two checkpoints: the most that a kill loses."""
    checkpoints_kept: Count = 2
    """Number of newest checkpoints to keep, in case one is damaged. The best by validation is kept in addition."""
    checkpoints_of_finished: Literal["keep", "remove"] = "keep"
    """Whether a finished run keeps its checkpoints. Only ``adagrpo replay`` needs them: final weights, logs and
    pictures are always kept."""
    preemption_seconds: Seconds = 25.0
    """Longest time from SIGTERM or SIGUSR1 to the end of the process, for finishing the iteration and saving. Of a
    grid's runs with several processes, torchrun and accelerate kill these after 30 seconds; adagrpo launch has them
    wait."""


class RunConfig(Section):
    """Everything that defines one run."""

    experiment: Name
    """Name of the folder in results/runs/ that contains the run."""
    seed: Seed = 0
    """Seed of prompts, noise and adapters: the same in every cell of a grid, so that cells can be paired."""
    iterations: int = Field(100, ge=1, le=10_000_000)
    """Number of iterations; each draws candidates, chooses prompts, rolls out and updates."""
    selection: Selection = "random"
    """Rule that chooses a prompt among the candidates: the paper's five, others of docs/selection.md, or a plug-in."""
    choice: ChoiceConfig = ChoiceConfig()
    fusion: FusionConfig = FusionConfig()
    capability: CapabilityConfig = CapabilityConfig()
    model: ModelConfig
    method: MethodConfig
    reward: dict[KnownReward, float] = Field(min_length=1)
    """Weight of each reward in the sum that is trained on, see ``objective.combine``."""
    rewards: dict[KnownReward, RewardConfig] = Field({})
    """Settings of rewards and judges, by name."""
    plugins: dict[str, PluginConfig] = Field({})
    """Selection rules, kernels, fusions and normalisations from plug-ins, by the name that a setting gives them."""
    rollout: RolloutConfig = RolloutConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    prompts: PromptsConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    stop: StopConfig = StopConfig()
    logging: LoggingConfig = LoggingConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @cached_property
    def origins(self) -> Mapping[str, str]:
        """Place where each value was written, by dotted key; defaults have none. ``compose`` fills it in. It is not
        part of what the run is, so that configurations are equal whoever wrote them."""
        return {}

    @property
    def prompt_splits(self) -> tuple[str, ...]:
        """Prompt lists that the run reads."""
        return ("train", "validation", "test") if self.evaluation.test else ("train", "validation")

    def trained_reward(self, metrics: Mapping[str, float]) -> float:
        """Trained reward in an evaluation's metrics: the weighted sum of the normalised rewards."""
        return float(trained_reward(self.model_dump(include={"reward", "rewards"})).total(metrics))

    @property
    def scores_candidates(self) -> bool:
        """Whether every candidate is sampled and scored, for the choice or for the capability."""
        return self.candidate_samples > 0

    @property
    def rule(self) -> Needs:
        """Requirements of the selection rule."""
        own = self.plugins.get(self.selection)
        if own is not None:
            return Needs(own.samples, reads_capability=True, reads_ledger=own.reads_ledger, explores=True)
        return needs_of(self.selection)

    def source_of(self, name: str) -> str | None:
        """Reference of the plug-in with this name; None for a built-in name."""
        return self.plugins[name].source if name in self.plugins else None

    @property
    def plugin_sources(self) -> dict[str, str]:
        """References of all plug-ins, by name."""
        rewards = {name: reward.plugin for name, reward in self.rewards.items()}
        others = (self.model.adapter, *(getattr(self.prompts, split) for split in self.prompt_splits))
        named = {name: plugin.source for name, plugin in self.plugins.items()} | rewards
        named |= {source.rpartition(":")[2]: source for source in others if is_reference(source)}
        return {name: source for name, source in named.items() if source is not None}

    @property
    def candidate_samples(self) -> int:
        """Number of deterministic samples of each candidate, for the choice or for the capability that fusion reads."""
        return max(self.rule.samples, int(self.fusion.enabled))

    @property
    def candidate_steps(self) -> int:
        """Number of Euler steps of each of these samples."""
        return max(1, int(self.model.num_steps * self.rule.step_share))

    @property
    def keeps_ledger(self) -> bool:
        """Whether outcomes of trained prompts are recorded."""
        return self.rule.reads_ledger or self.choice.ledger or self.choice.floor > 0

    @model_validator(mode="wrap")
    @classmethod
    def _with_plugins(cls, content: Any, handler: ModelWrapValidatorHandler["RunConfig"]) -> "RunConfig":
        if not isinstance(content, dict):
            return handler(content)
        content = declare(content)
        with declaring(content):
            return handler(content)

    @model_validator(mode="after")
    def _check_combinations(self) -> "RunConfig":
        problems = (*self._problems_of_steps(), *self._problems_of_the_whole(), *self._problems_of_processes())
        if problems:
            raise ValueError(problems[0])
        return self

    def _problems_of_steps(self) -> Iterator[str]:
        """Problems with the steps that are stochastic or trained, and with the samples that each update learns from."""
        rollout, objective, last = self.rollout, self.objective, self.model.num_steps - 2
        indices, window = rollout.branch_indices, rollout.window
        if not indices or list(indices) != sorted(set(indices)):
            yield f"rollout.branch_indices: {list(indices)} must name at least one step, in increasing order"
        for index in indices:
            # The last step is deterministic in Flow-CPS, and no method trains it.
            if not 0 <= index <= last:
                yield (
                    f"rollout.branch_indices: {index} is past the trainable steps of "
                    f"model.num_steps={self.model.num_steps}; use 0 to {last}"
                )
        if window is not None and window.size > len(indices):
            yield f"rollout.window.size: {window.size} is more than the {len(indices)} rollout.branch_indices"
        for key in ("trained_share", "trained_draw", "shared_noise"):
            if rollout.kind != "full_sde" and getattr(rollout, key) != RolloutConfig.model_fields[key].default:
                yield f"rollout.{key}: is for rollout.kind=full_sde"
        trained, prompts = num_trained_steps(rollout), rollout.prompts_per_iteration // self.runtime.processes
        if not trained:
            yield f"rollout.trained_share: {rollout.trained_share} leaves no step to train on"
        if objective.kind != "surrogate" and objective.old_log_prob != "recomputed":
            yield f"objective.kind: {objective.kind} needs the old policy's means: set old_log_prob=recomputed"
        if objective.kind in ("flow_dppo", "nft") and objective.clip_range is not None:
            yield f"objective.clip_range: {objective.kind} does not clip ratios; set it to null"
        if objective.kind != "flow_dppo" and objective.divergence_limit != 1e-5:
            yield "objective.divergence_limit: is for objective.kind=flow_dppo"
        if objective.update_on == "steps" and rollout.trained_draw == "sample":
            yield "objective.update_on=steps: samples have no steps in common with rollout.trained_draw=sample"
        for key, count, what in (("prompts", prompts, "prompts per process"), ("steps", trained, "trained steps")):
            if objective.update_on == key and count % objective.updates_per_iteration:
                yield (
                    f"objective.updates_per_iteration: {objective.updates_per_iteration} updates cannot share {count} "
                    f"{what} evenly (objective.update_on={key})"
                )

    def _problems_of_the_whole(self) -> Iterator[str]:
        if self.method.kernel == "flow_cps" and self.method.eta > 1:
            yield f"method.eta: {self.method.eta} is out of range for flow_cps; use a value in (0, 1]"
        if self.model.quantise != "none" and self.optimizer.tuning == "full":
            yield f"model.quantise: {self.model.quantise} is for weights that are frozen; set optimizer.tuning=lora"
        if self.evaluation.base_test and not self.evaluation.test:
            yield "evaluation.base_test: no test list is read with evaluation.test=false; set it to false"
        for name, weight in self.reward.items():
            if weight == 0:
                yield f"reward.{name}: weight 0 trains on nothing; leave it out, as in reward={{ocr: 1}}"
        fusion, level, allowed = self.fusion, self.choice.level, self.rule.level
        if not fusion.enabled and (fusion.kind != "fused" or fusion.same_length):
            yield f"fusion.kind: {fusion.name} has no effect without fusion; set fusion.enabled=true"
        if fusion.kind in ("uncentred", "ema_std", "gated", "shrinkage") and fusion.weight > 1:
            yield f"fusion.weight: {fusion.weight:g} is out of range for fusion.kind={fusion.kind}; use 0 to 1"
        if fusion.kind == "shrinkage" and (self.objective.normalisation, self.objective.combine) != (
            "group",
            "rewards",
        ):
            yield (
                "fusion.kind: shrinkage normalises each group's rewards itself; set objective.normalisation=group and "
                "objective.combine=rewards"
            )
        if "judge" in self.stop.on and not {*self.evaluation.judges} - {*self.reward}:
            yield "stop.on: judge needs a reward in evaluation.judges that is not trained on; add one"
        if "diversity" in self.stop.on and self.iterations < 4 * self.evaluation.interval:
            yield f"stop.on: diversity needs 4 validations in {self.iterations} iterations; lower evaluation.interval"
        if allowed is None and level is not None:
            yield f"choice.level: selection={self.selection} has none; leave it out"
        if allowed is not None and not (level is not None and allowed[0] <= level <= allowed[1]):
            yield f"choice.level: selection={self.selection} needs one, from {allowed[0]:g} to {allowed[1]:g}"
        if fusion.enabled and self.rule.step_share < 1:
            yield f"fusion.enabled: the capability of selection={self.selection} is that of previews; use another"

        reads_std = (fusion.enabled and fusion.kind != "gated") or self.selection == "anchored"
        per_rank = self.runtime.processes if self.capability.sync == "per_rank" else 1
        prompts = self.rollout.prompts_per_iteration // per_rank * self.rollout.candidates
        if reads_std and prompts * self.candidate_samples < 2:
            yield "rollout.candidates: one reward has no std, which fusion and selection=anchored read; use 2 or more"

    def _problems_of_processes(self) -> Iterator[str]:
        """Problems with the number of processes, and with engines that need equally many forward passes in each."""
        runtime, rollout = self.runtime, self.rollout
        if rollout.prompts_per_iteration % runtime.processes:
            yield (
                f"rollout.prompts_per_iteration: {rollout.prompts_per_iteration} does not divide over "
                f"runtime.processes={runtime.processes}; use a multiple"
            )
        if runtime.processes % runtime.machines:
            yield f"runtime.machines: {runtime.machines} cannot share runtime.processes={runtime.processes} evenly"
        for name, reward in self.rewards.items():
            if runtime.processes > runtime.machines and ":" in reward.device:
                yield (
                    f"rewards.{name}.device: all processes of a machine would load it to {reward.device}; use auto, or "
                    "one server for all (backend=url)"
                )
        if runtime.engine == "ddp":
            return
        if runtime.processes == 1:
            yield f"runtime.engine: {runtime.engine} shares a model out to processes, but runtime.processes=1; use ddp"
        if rollout.kind == "anchor_branch" and rollout.window is not None and rollout.window.move == "random":
            yield (
                "runtime.engine: fsdp2 needs equally many forwards in all processes, but rollout.window.move=random "
                "makes branches of different length; use move=slide, or another engine"
            )
        for key, value in (("model.quantise", self.model.quantise), ("optimizer.moments", self.optimizer.moments)):
            if value in ("nf4", "8bit"):
                yield f"{key}: {value} cannot be shared out to processes; use runtime.engine=ddp"
        if self.model.execution.compile == "auto":
            yield (
                "runtime.engine: fsdp2 gathers the weights of one block after the other, which "
                "model.execution.compile=auto cannot; use compile=blocks or never"
            )
