"""Typed, validated configuration of a run: composed from YAML files under experiments/, overridden by dotted keys."""

import difflib
import hashlib
import json
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from harness.errors import ConfigError as ConfigError

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = ROOT / "experiments"
# The one written in C reads the configs of a whole grid in a blink; wheels of PyYAML have it, other builds may not.
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

NUMERICS_VERSION = 2
"""Raised whenever a change of code or of a default changes the numbers of a run, so that old runs are not taken for
new ones."""

Selection = Literal["random", "easiest", "hardest", "medium", "curriculum"]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ExecutionConfig(Section):
    """How the network is run: memory and speed. Changes no number beyond rounding, so it is no part of a run's name."""

    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
    compile: Literal["never", "auto", "blocks"] = "never"
    """torch.compile. Auto: of the network while it samples, where a compiler is at hand: up to a minute at the start, a
    third faster after. Blocks: of the transformer's blocks, in training too: minutes at the start."""
    vae_slicing: bool = False
    """Decode one picture at a time."""
    text_encoders: Literal["keep", "free"] = "keep"
    """Free: encode all prompts of the run before it starts, keep their embeddings on disk, and give the memory back."""
    max_train_batch: int | None = Field(None, ge=1)
    """Most samples in one forward with gradient; None is ``max_batch``. Classifier-free guidance makes two of each."""


class ModelConfig(Section):
    """The pipeline to train and how it samples."""

    path: str
    """Folder of a FLUX or Stable Diffusion 3 pipeline, absolute or relative to the repository; or a hub id, owner/name;
    or ``twin:flux``, ``twin:sd3``: a tiny random twin of FLUX.1-dev or SD3.5 medium."""
    height: int = Field(32, gt=0)
    width: int = Field(128, gt=0)
    """Pixels."""
    num_steps: int = Field(8, ge=2)
    """Euler steps N of every rollout."""
    shift: float | Literal["dynamic"] = 3.0
    """Static sigma shift, or diffusers' resolution-dependent one."""
    guidance: float = Field(3.5, ge=0)
    """Guidance scale: an input of a guidance-distilled FLUX, unused by one without guidance embedding; for Stable
    Diffusion 3 classifier-free, at the price of a second forward, off at 1 and below."""
    max_sequence_length: int = Field(24, gt=0)
    """T5 tokens."""
    allow_unknown_tokens: bool = False
    """Take prompts with characters that the text encoder does not know, instead of refusing them."""
    allow_long_prompts: bool = False
    """Take prompts longer than ``max_sequence_length``, of which T5 reads the start, instead of refusing them."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the network's arithmetic and of frozen weights; weights in training are fp32, and so are the kernels."""
    max_batch: int = Field(64, gt=0)
    """Most samples in one forward of the network: the memory budget. Does not change results beyond rounding."""
    vae_tiling: bool = False
    """Decode pictures larger than the autoencoder was made for in tiles, whose seams are blended."""
    execution: ExecutionConfig = ExecutionConfig()


class MethodConfig(Section):
    """The stochastic step."""

    kernel: Literal["flow_grpo", "dance_grpo", "flow_cps"]
    eta: Positive


class FusionConfig(Section):
    """Cross-level advantage fusion."""

    enabled: bool = False
    weight: float = Field(1.0, ge=0)
    kind: Literal["fused", "rescaled"] = "fused"
    """The paper's fusion, or the control that only rescales local advantages: see docs/fusion.md."""

    @property
    def name(self) -> str:
        """In names of runs and cells."""
        return "fusion" if self.kind == "fused" else self.kind


class CapabilityConfig(Section):
    """The moving averages of candidates' rewards."""

    decay: Share = 0.8
    sync: Literal["shared", "per_rank"] = "shared"
    """One tracker over all processes, or, as in the official release, one a process."""
    anchor: Literal["after", "before"] = "after"
    """Curriculum matches candidates to the capability with this batch in it (the release), or to the one before it."""


class WindowConfig(Section):
    """A window that moves over ``rollout.branch_indices``; steps outside of it are deterministic (Flow-GRPO-Fast)."""

    size: int = Field(2, ge=1)
    """Consecutive entries of branch_indices."""
    move: Literal["slide", "random"] = "slide"
    """One entry further each time, from the last place back to the first; or to a random place, each prompt's own."""
    interval: int = Field(1, ge=1)
    """Iterations between moves."""


class RolloutConfig(Section):
    """What is sampled in an iteration."""

    kind: Literal["anchor_branch", "full_sde"] = "anchor_branch"
    candidates: int = Field(12, ge=1)
    """B: candidate prompts, one of which is trained on."""
    prompts_per_update: int = Field(1, ge=1)
    """P: disjoint batches of candidates, over all processes."""
    group_size: int = Field(8, ge=2)
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
    latent_precision: Literal["fp32", "bf16"] = "fp32"
    """Of latents between steps. A draw is rounded before its log-probability is taken."""


class ObjectiveConfig(Section):
    """The loss."""

    updates_per_iteration: int = Field(1, ge=1)
    """Optimiser steps on one rollout."""
    update_on: Literal["all", "prompts", "steps"] = "all"
    """What an update learns from: all samples each time; or an equal part of the iteration's prompts (Flow-GRPO,
    DanceGRPO) or of the trained steps (AdaGRPO's full fine-tuning), so that each sample is used once."""
    clip_range: Positive | None = None
    """PPO range of the ratio. None is the unclipped surrogate, whose ratio is exactly 1 where each sample is used once
    (AdaGRPO's release)."""
    old_log_prob: Literal["rollout", "recomputed"] = "rollout"
    """Log-probability in the ratio's denominator: as it was in the rollout, or computed again before the first update
    as an update will compute it. In bf16, or with merged adapters, the two differ by more than a clip range of 1e-4."""
    kl_beta: float = Field(0.0, ge=0)
    """Weight of the KL to the frozen base model, as the kernel's release defines it."""
    advantage_clip: Positive = 5.0
    normalisation: Literal["group", "batch_std"] = "group"
    """Local advantage by each group's own std, or by that of all samples of the iteration (Flow-GRPO's release)."""
    combine: Literal["rewards", "advantages"] = "rewards"
    """Several rewards: local advantages of the weighted sum, or the weighted sum of each reward's local advantages.
    Selection, capability and global advantages are of the weighted sum either way."""

    @property
    def is_on_policy(self) -> bool:
        """Whether the ratio is 1 by definition, so that log-probabilities of the rollout are not needed."""
        return self.clip_range is None and (self.updates_per_iteration == 1 or self.update_on != "all")


class RewardConfig(Section):
    """Where a reward's model is and how it runs. Which keys a reward has depends on the reward and its backend."""

    backend: Literal["native", "package", "url"] | None = None
    """In this process, by the published package in an environment of its own, or by a server; None is the usual one."""
    path: str | None = None
    """Checkpoint: a file or folder, absolute or relative to the repository, or a hub id as owner/name or
    owner/name/file, which must have been downloaded. None is the published one."""
    base: str | None = None
    """Folder or hub id with the architecture and tokenizer of a checkpoint that holds weights alone."""
    precision: Literal["fp32", "bf16"] | None = None
    """Of the network; None is bf16 for hpsv3 and fp32 for all others."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    batch_size: int = Field(8, ge=1)
    """Images at a time. Does not change scores beyond rounding."""
    offload: bool = False
    """Keep the model in main memory, and on its GPU only while it scores: for a GPU that cannot hold it beside the
    policy. Without a GPU it changes nothing."""
    python: str | None = None
    """Interpreter of the environment a package runs in; None is the one that ``make reward-env`` made."""
    url: str | None = Field(None, pattern=r"^https?://")
    """Of ``adagrpo serve-reward``, or for a judge of an OpenAI-compatible server, without /v1."""
    model: str | None = None
    """Name under which the judge's server knows the model."""
    question: str | None = None
    """Text file with the judge's question, in which {prompt} stands for the prompt; None is the project's own."""
    timeout_seconds: Positive = 600.0
    """Longest wait for a model to load or for a batch of scores."""
    offset: float = 0.0
    scale: Positive = 1.0
    """A weighted sum of rewards adds up weight * (score - offset) / scale."""

    @property
    def changed(self) -> set[str]:
        """Keys whose values are not the defaults."""
        return {key for key, field in type(self).model_fields.items() if getattr(self, key) != field.default}


class LoraConfig(Section):
    """Low-rank adapters."""

    rank: int = Field(16, ge=1)
    alpha: Positive = 32.0
    target_modules: tuple[str, ...] = (
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
        "ff.net.0.proj",
        "ff.net.2",
        "ff_context.net.0.proj",
        "ff_context.net.2",
    )
    merge_while_sampling: bool = True
    """Rollouts with adapters added into the weights: no extra cost a forward, one more copy of the adapted weights."""


class OptimizerConfig(Section):
    """AdamW and what is trained."""

    tuning: Literal["lora", "full"] = "lora"
    lora: LoraConfig = LoraConfig()
    learning_rate: Positive = 3e-4
    betas: tuple[Share, Share] = (0.9, 0.999)
    epsilon: Positive = 1e-8
    weight_decay: float = Field(1e-4, ge=0)
    max_grad_norm: Positive = 1.0
    warmup_iterations: int = Field(0, ge=0)
    """Iterations over which the learning rate rises linearly to its value."""
    weight_ema: Share | None = None
    """Decay of averaged weights used for evaluation and kept at the end; None for none."""
    weight_ema_interval: int = Field(1, ge=1)
    """Optimiser updates between two averagings."""


class PromptsConfig(Section):
    """Text files with one prompt a line, absolute or relative to the repository."""

    train: str
    validation: str
    test: str


class EvaluationConfig(Section):
    """Deterministic ODE samples from fixed noise."""

    interval: int = Field(25, ge=1)
    """Iterations between validations; one more is made before the first iteration and one after the last."""
    validation_prompts: int = Field(96, ge=1)
    """How many of the validation list an interval evaluation reads, from its start."""
    test_noises: int = Field(1, ge=1)
    """Samples a test prompt."""
    test: bool = True
    """Measure the trained model on the test list when training is over. Without, the list is not even read: tuning."""
    base_test: bool = False
    """Also measure the untrained model on the test list, at iteration 0."""
    judges: tuple[str, ...] = ("ocr", "ocr-v4", "colour")
    """Rewards to report, trained on or not."""
    num_steps: int | None = Field(None, ge=1)
    height: int | None = Field(None, gt=0)
    width: int | None = Field(None, gt=0)
    """Euler steps and pixels of evaluations; None is the model's own."""
    gallery: int = Field(8, ge=0)
    """How many validation prompts' pictures to keep at each evaluation."""


class LoggingConfig(Section):
    """wandb mirrors the run's JSONL and is never needed to analyse."""

    wandb: Literal["offline", "online", "off"] = "off"
    wandb_project: str = "adagrpo"

    @field_validator("wandb", mode="before")
    @classmethod
    def _word_for_no(cls, value: Any) -> Any:
        # YAML reads a bare  off  as false.
        return "off" if value is False else value


class RuntimeConfig(Section):
    """How the run is executed; none of it changes what the run is."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(1, ge=1)
    processes: int = Field(1, ge=1)
    """World size that was asked for, over all machines; another one found at start is an error."""
    machines: int = Field(1, ge=1)
    """That share the processes evenly."""
    engine: Literal["ddp", "fsdp2", "zero2"] = "ddp"
    """What each process holds of a model in training. Everything, and gradients are averaged (ddp); a share of weights,
    gradients and optimiser state (fsdp2); all weights, but a share of gradients and optimiser state (zero2, which needs
    DeepSpeed). The numbers are the same up to rounding."""
    timeout_seconds: Positive = 1800.0
    """Longest wait of a process for the others, wherever all meet."""
    checkpoint_interval: int = Field(25, ge=1)


class RunConfig(Section):
    """Everything that defines one run."""

    experiment: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    seed: int = Field(0, ge=0)
    iterations: int = Field(100, ge=1)
    selection: Selection = "random"
    fusion: FusionConfig = FusionConfig()
    capability: CapabilityConfig = CapabilityConfig()
    model: ModelConfig
    method: MethodConfig
    reward: dict[str, float]
    """Weight of each reward in the sum that is trained on, see ``objective.combine``."""
    rewards: dict[str, RewardConfig] = {}
    """Settings of rewards and judges, by name."""
    rollout: RolloutConfig = RolloutConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    prompts: PromptsConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    logging: LoggingConfig = LoggingConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @property
    def prompt_splits(self) -> tuple[str, ...]:
        """The prompt lists that the run reads."""
        return ("train", "validation", "test") if self.evaluation.test else ("train", "validation")

    def trained_reward(self, metrics: Mapping[str, float]) -> float:
        """What is trained on, of an evaluation's metrics: the weighted sum of the normalised rewards."""
        total = 0.0
        for name, weight in self.reward.items():
            settings = self.rewards.get(name, RewardConfig())
            total += weight * (metrics[name] - settings.offset) / settings.scale
        return total

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


def num_trained_steps(rollout: RolloutConfig) -> int:
    """How many steps of the schedule a prompt is trained on in an iteration."""
    stochastic = len(rollout.branch_indices) if rollout.window is None else rollout.window.size
    # .29 of 100 must be 29, though the product is a hair below it in floating point.
    return int(stochastic * rollout.trained_share + 1e-9)


# --- identity -------------------------------------------------------------------------------------------------------


def numeric_settings(config: RunConfig) -> dict[str, Any]:
    """What a run's numbers depend on beside its files: all settings that are not at their defaults, as in JSON.

    Without ``logging``, ``runtime``, ``experiment``, ``model.execution`` and paths; of ``rewards`` only normalisation.
    """
    # Without what is at its default, so that a new setting, off by default, leaves the names of old runs alone.
    content = config.model_dump(
        mode="json", exclude={"logging", "runtime", "experiment", "prompts", "rewards"}, exclude_defaults=True
    )
    del content["model"]["path"]
    content["model"].pop("execution", None)
    if normalised := {name: (r.offset, r.scale) for name, r in config.rewards.items() if (r.offset, r.scale) != (0, 1)}:
        content["normalisation"] = normalised
    return content


def run_id(config: RunConfig, fingerprints: Mapping[str, str]) -> str:
    """Name of a run: readable cell and seed, and a hash of all that its numbers depend on.

    Args:
        config: the run, of which ``numeric_settings`` count.
        fingerprints: sha256 or the like of base weights, prompt lists and rewards.
    """
    content = numeric_settings(config)
    payload = json.dumps([content, dict(fingerprints), NUMERICS_VERSION], sort_keys=True)
    fusion = f"-{config.fusion.name}{config.fusion.weight:g}" if config.fusion.enabled else ""
    digest = hashlib.sha256(payload.encode()).hexdigest()[:10]
    return f"{config.method.kernel}-{config.selection}{fusion}-seed{config.seed}-{digest}"


# --- composition ----------------------------------------------------------------------------------------------------


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping. Raises ConfigError if it is missing, broken, or no mapping."""
    try:
        content = yaml.load(path.read_text(), _YAML_LOADER) or {}
    except OSError as error:
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); files there: {known}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold key: value pairs")
    return content


def read_experiment(path: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file of experiments/, on top of the one beside it that its key ``extends`` names.

    Raises:
        ConfigError: as ``read_yaml``, or files that extend each other.
    """
    if path in children:
        raise ConfigError(f"{path}: extends itself, by way of {', '.join(child.stem for child in children)}")
    content = read_yaml(path)
    parent = content.pop("extends", None)
    if parent is None:
        return content
    return merge(read_experiment(path.with_name(f"{parent}.yaml"), (*children, path)), content)


def merge(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Nested merge, the second wins; ``reward`` is replaced as a whole, since its keys are not fixed."""
    merged = dict(base)
    for key, value in other.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) and key != "reward":
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """``["fusion.weight=2", "selection=curriculum"]`` as a nested mapping; values are YAML."""
    content: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {override!r}: write key=value, as in fusion.weight=2")
        try:
            nested: Any = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"override {override!r}: the value is not valid YAML") from None
        content = merge(content, nest(key, nested))
    return content


def nest(key: str, value: Any) -> dict[str, Any]:
    """``("fusion.weight", 2)`` as ``{"fusion": {"weight": 2}}``."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _profile_path(profile: str) -> Path:
    return Path(profile) if profile.endswith(".yaml") else EXPERIMENTS / "profiles" / f"{profile}.yaml"


KINDS = ("model", "method", "reward")
"""Of the files that a profile or a grid's cell names, in experiments/<kind>s/. The method comes after the model: how
many steps it takes, and at which size, is part of a published method."""


def grid_of(profile: str) -> str:
    """The grid that reproduces a profile: its key ``use_grid``. Raises ConfigError if it names none."""
    path = _profile_path(profile)
    grid = read_experiment(path).get("use_grid")
    if not isinstance(grid, str):
        raise ConfigError(f"{path}: names no grid; add  use_grid: paper  or run  adagrpo grid GRID --profile {profile}")
    return grid


def compose(
    profile: str,
    method: str | None = None,
    settings: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    *,
    model: str | None = None,
    reward: str | None = None,
) -> RunConfig:
    """Compose a run: the model, method and reward files that a profile names, the profile, settings, overrides.

    Any of these files may extend another one of its folder: ``extends: NAME``.

    Args:
        profile: name of a file in experiments/profiles/, or a path to one.
        method: name of a file in experiments/methods/; None is the profile's own.
        settings: a grid cell's keys.
        overrides: dotted ``key=value`` strings; the last word.
        model: name of a file in experiments/models/; None is the profile's own.
        reward: name of a file in experiments/rewards/; None is the profile's own.

    Raises:
        ConfigError: one line that names the file or key, and the nearest valid one.
    """
    path = _profile_path(profile)
    content = read_experiment(path)
    content.pop("use_grid", None)
    given = {"model": model, "method": method, "reward": reward}
    composed: dict[str, Any] = {}
    for kind in KINDS:
        own = content.pop(f"use_{kind}", None)
        name = own if given[kind] is None else given[kind]
        if name is not None:
            composed = merge(composed, read_experiment(EXPERIMENTS / f"{kind}s" / f"{name}.yaml"))
    for layer in (content, settings or {}, parse_overrides(overrides)):
        composed = merge(composed, layer)
    return validate(composed, where=str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path))


def validate(content: Mapping[str, Any], where: str) -> RunConfig:
    """A RunConfig, or a ConfigError in one line."""
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{where}: {one_line(error)}") from None


def load(path: Path) -> RunConfig:
    """The resolved config saved with a run."""
    return validate(read_yaml(path), where=str(path))


def dump(config: RunConfig) -> str:
    """A resolved config as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def one_line(error: ValidationError, section: type[BaseModel] = RunConfig) -> str:
    """What is wrong with the first wrong key of a section's content, and the nearest right one."""
    problems = error.errors()
    # A misspelt key is also a missing one; the misspelling says what to do.
    problem = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return unknown_key(location, fields_at(location[:-1], section))
    if problem["type"] == "missing":
        return f"key {key!r} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if not key:
        return message
    if problem["type"] == "literal_error":
        valid = problem["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return f"{key}={problem['input']!r} is unknown; {nearest(str(problem['input']), valid)}"
    return f"{key}={problem['input']!r}: {message[0].lower()}{message[1:]}"


def nearest(word: str, known: Sequence[str]) -> str:
    """``the nearest is 'X', there are X, Y, Z``: the end of a complaint about a word that is none of the known."""
    closest = difflib.get_close_matches(word, known, n=1, cutoff=0.0)
    return f"the nearest is {closest[0]!r}, there are {', '.join(known)}"


def unknown_key(location: Sequence[str], valid: Iterable[str]) -> str:
    """The complaint about a key, given by its parts, whose last part is none of the valid ones."""
    closest = difflib.get_close_matches(location[-1], list(valid), n=1, cutoff=0.0)
    return f"unknown key {'.'.join(location)!r}; the nearest is {'.'.join([*location[:-1], *closest])!r}"


def fields_at(location: Sequence[str], model: type[BaseModel] = RunConfig) -> Mapping[str, FieldInfo]:
    """The fields of the section that a key's parts lead to; of none if they lead to a value."""
    parts = iter(location)
    for part in parts:
        annotation = model.model_fields[part].annotation
        if get_origin(annotation) is dict:
            next(parts, None)
            annotation = get_args(annotation)[1]
        options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
        sections = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if not sections:
            return {}
        model = sections[0]
    return model.model_fields
