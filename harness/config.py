"""Typed, validated configuration of a run: composed from YAML files under experiments/, overridden by dotted keys."""

import difflib
import hashlib
import json
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = ROOT / "experiments"

NUMERICS_VERSION = 1
"""Raised whenever a change of code changes the numbers of a run, so that old runs are not taken for new ones."""

Selection = Literal["random", "easiest", "hardest", "medium", "curriculum"]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class ConfigError(ValueError):
    """A configuration that cannot run, in one line: what, where, what to do."""


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """The pipeline to train and how it samples."""

    path: str
    """Folder of a FLUX pipeline, absolute or relative to the repository."""
    height: int = Field(32, gt=0)
    width: int = Field(128, gt=0)
    """Pixels."""
    num_steps: int = Field(8, ge=2)
    """Euler steps N of every rollout and of evaluation."""
    shift: float | Literal["dynamic"] = 3.0
    """Static sigma shift, or diffusers' resolution-dependent one."""
    guidance: float = Field(3.5, ge=0)
    """Guidance scale fed to a guidance-distilled network; unused by one without guidance embedding."""
    max_sequence_length: int = Field(24, gt=0)
    """T5 tokens."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the network. Kernels always compute in fp32."""
    max_batch: int = Field(64, gt=0)
    """Most samples in one forward of the network: the memory budget. Does not change results beyond rounding."""


class MethodConfig(Section):
    """The stochastic step."""

    kernel: Literal["flow_grpo", "dance_grpo", "flow_cps"]
    eta: Positive


class FusionConfig(Section):
    """Cross-level advantage fusion."""

    enabled: bool = False
    weight: float = Field(1.0, ge=0)


class CapabilityConfig(Section):
    """The moving averages of candidates' rewards."""

    decay: Share = 0.8
    sync: Literal["shared", "per_rank"] = "shared"
    """One tracker over all processes, or, as in the official release, one a process."""


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
    shared_noise: bool = False
    """Full SDE: the samples of a group start from the same noise (DanceGRPO)."""


class ObjectiveConfig(Section):
    """The loss."""

    updates_per_iteration: int = Field(1, ge=1)
    """Optimiser steps on one rollout, each over all of its samples."""
    clip_range: Positive | None = None
    """PPO range of the ratio; None is the unclipped surrogate."""
    kl_beta: float = Field(0.0, ge=0)
    """Weight of the KL to the frozen base model, as the kernel's release defines it."""
    advantage_clip: Positive = 5.0
    normalisation: Literal["group", "batch_std"] = "group"
    """Local advantage by each group's own std, or by that of all samples of the iteration (Flow-GRPO's release)."""


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
    """Decay, an iteration, of averaged weights used for evaluation and kept at the end; None for none."""


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
    gallery: int = Field(8, ge=0)
    """How many validation prompts' pictures to keep at each evaluation."""


class LoggingConfig(Section):
    """wandb mirrors the run's JSONL and is never needed to analyse."""

    wandb: Literal["offline", "online", "off"] = "off"
    wandb_project: str = "adagrpo"


class RuntimeConfig(Section):
    """How the run is executed; none of it changes what the run is."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(1, ge=1)
    processes: int = Field(1, ge=1)
    """World size that was asked for; another one found at start is an error."""
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
    """Weight of each reward, summed at reward level."""
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
        """What is trained on, of an evaluation's metrics: the weighted sum of the rewards."""
        return sum(weight * metrics[name] for name, weight in self.reward.items())

    @model_validator(mode="after")
    def _check_combinations(self) -> "RunConfig":
        steps, indices = self.model.num_steps, self.rollout.branch_indices
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
        if self.method.kernel == "flow_cps" and self.method.eta > 1:
            raise ValueError(f"method.eta: {self.method.eta} is out of range for flow_cps; use a value in (0, 1]")
        if self.rollout.prompts_per_update % self.runtime.processes:
            raise ValueError(
                f"rollout.prompts_per_update: {self.rollout.prompts_per_update} does not divide over "
                f"runtime.processes={self.runtime.processes}; use a multiple"
            )
        if self.evaluation.base_test and not self.evaluation.test:
            raise ValueError("evaluation.base_test: no test list is read with evaluation.test=false; set it to false")
        return self


# --- identity -------------------------------------------------------------------------------------------------------


def run_id(config: RunConfig, fingerprints: Mapping[str, str]) -> str:
    """Name of a run: readable cell and seed, and a hash of all that its numbers depend on.

    Args:
        config: the run. ``logging``, ``runtime`` and ``experiment`` do not count, nor do paths.
        fingerprints: sha256 or the like of base weights, prompt lists and rewards.
    """
    content = config.model_dump(mode="json", exclude={"logging", "runtime", "experiment", "prompts"})
    del content["model"]["path"]
    payload = json.dumps([content, dict(fingerprints), NUMERICS_VERSION], sort_keys=True)
    fusion = f"-fusion{config.fusion.weight:g}" if config.fusion.enabled else ""
    digest = hashlib.sha256(payload.encode()).hexdigest()[:10]
    return f"{config.method.kernel}-{config.selection}{fusion}-seed{config.seed}-{digest}"


# --- composition ----------------------------------------------------------------------------------------------------


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping. Raises ConfigError if it is missing, broken, or no mapping."""
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); files there: {known}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold key: value pairs")
    return content


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


def grid_of(profile: str) -> str:
    """The grid that reproduces a profile: its key ``use_grid``. Raises ConfigError if it names none."""
    path = _profile_path(profile)
    grid = read_yaml(path).get("use_grid")
    if not isinstance(grid, str):
        raise ConfigError(f"{path}: names no grid; add  use_grid: paper  or run  adagrpo grid GRID --profile {profile}")
    return grid


def compose(
    profile: str, method: str | None = None, settings: Mapping[str, Any] | None = None, overrides: Sequence[str] = ()
) -> RunConfig:
    """Compose a run: profile, then the model, method and reward files it names, then settings, then overrides.

    Args:
        profile: name of a file in experiments/profiles/, or a path to one.
        method: name of a file in experiments/methods/; None is the profile's own.
        settings: a grid cell's keys.
        overrides: dotted ``key=value`` strings; the last word.

    Raises:
        ConfigError: one line that names the file or key, and the nearest valid one.
    """
    path = _profile_path(profile)
    content = read_yaml(path)
    content.pop("use_grid", None)
    named = {"method": content.pop("use_method", None), "model": content.pop("use_model", None)}
    named["reward"] = content.pop("use_reward", None)
    if method is not None:
        named["method"] = method
    composed: dict[str, Any] = {}
    for kind, name in named.items():
        if name is not None:
            composed = merge(composed, read_yaml(EXPERIMENTS / f"{kind}s" / f"{name}.yaml"))
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


def one_line(error: ValidationError, model: type[BaseModel] = RunConfig) -> str:
    """What is wrong with the first wrong key of a model's input, and the nearest right one."""
    problems = error.errors()
    # A misspelt key is also a missing one; the misspelling says what to do.
    problem = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return unknown_key(location, fields_at(location[:-1], model))
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
    for part in location:
        annotation = model.model_fields[part].annotation
        options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
        sections = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if not sections:
            return {}
        model = sections[0]
    return model.model_fields
