"""Reads LoRA files: every adapter whole, with the scale it was trained at, or one line that says what is wrong."""

import dataclasses
import json
import math
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from torch import Tensor

from harness.config import ConfigError
from harness.models.pipelines.files import opened

_KEY = re.compile(
    r"(?:transformer\.|base_model\.model\.|)(?!lora_)(.+?)\.(lora_A|lora_B|lora_down|lora_up)(?:\.default)?\.weight"
)
_ALPHA_KEY = re.compile(r"(?:transformer\.|base_model\.model\.|)(?!lora_)(.+?)\.alpha")
_PARTS = {"lora_A": "lora_A", "lora_down": "lora_A", "lora_B": "lora_B", "lora_up": "lora_B"}

_SCALES = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"}
_OF_TRAINING = {
    *("task_type", "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "target_modules", "exclude_modules", "lora_dropout", "layers_to_transform", "bias"),
    *("layers_pattern", "modules_to_save", "megatron_config", "megatron_core", "runtime_config"),
}
"""Settings of peft that change nothing about what its tensors mean; tensors that need more are refused by name."""
_USUAL = {
    f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
    for f in dataclasses.fields(LoraConfig)
}
_HARMLESS_STARTS = (True, "gaussian", "eva", "orthogonal")
"""Initial weights that leave the base model as it was; adapters of others fit a base of their own only."""


def read_lora(file: Path) -> dict[str, Tensor]:
    """Adapters of a LoRA file: ``transformer.MODULE.lora_A.weight`` ``[r, in]`` and ``.lora_B.weight`` ``[out, r]``.

    They are float32, and alpha / rank is in B: their product is the whole change of the module's weight.

    Args:
        file: as diffusers' ``save_lora_weights`` or peft's ``save_pretrained`` writes it. One without alphas counts as
            made with alpha = rank, as diffusers takes it.

    Raises:
        ConfigError: the file is missing, damaged, of another format, or not whole; A and B do not fit each other; a
            number is not finite; or it needs arithmetic that is not done here, such as DoRA's.
    """
    with opened(file) as content:
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - not a mapping
        metadata = content.metadata() or {}
    if not tensors:
        raise ConfigError(f"{file}: holds no weights")
    halves: dict[str, dict[str, Tensor]] = defaultdict(dict)
    alphas: dict[str, float] = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ConfigError(f"{file}: {name} holds {tensor.dtype}, not floating-point numbers")
        if not tensor.float().isfinite().all():
            raise ConfigError(f"{file}: {name} has values that are not finite")
        if match := _KEY.fullmatch(name):
            part = _PARTS[match[2]]
            if part in halves[match[1]]:
                raise ConfigError(f"{file}: holds {part} of {match[1]} twice")
            halves[match[1]][part] = tensor.float()
        elif (match := _ALPHA_KEY.fullmatch(name)) and tensor.numel() == 1:
            alphas[match[1]] = tensor.item()
        else:
            hint = "; convert it to diffusers' names first" if name.startswith("lora_") else ""
            raise ConfigError(
                f"{file}: holds {name!r}, which is no adapter of a transformer as diffusers saves them{hint}"
            )
    _check_halves(halves, file)
    if lost := alphas.keys() - halves.keys():
        raise ConfigError(f"{file}: has an alpha of {min(lost)}, but no adapter of it")
    settings = _read_settings(file, metadata)
    if settings is None and not alphas:
        _warn(f"{file}: has no alpha; it is taken for the rank, as diffusers does")
    adapters = {}
    for module, half in halves.items():
        scale = _scale_of(module, half["lora_A"].shape[0], settings, alphas, file)
        adapters[f"transformer.{module}.lora_A.weight"] = half["lora_A"]
        adapters[f"transformer.{module}.lora_B.weight"] = half["lora_B"] * scale
    return adapters


def write_lora(adapters: dict[str, Tensor], file: Path) -> None:
    """Write adapters of one rank, as ``read_lora`` gives them: with alpha = rank, every reader applies them whole.

    A reader that knows no alpha, or has a file that lost its metadata, takes alpha for the rank.
    """
    down = {name: tensor for name, tensor in adapters.items() if name.endswith(".lora_A.weight")}
    rank = len(next(iter(down.values())))
    modules = sorted(name.removeprefix("transformer.").removesuffix(".lora_A.weight") for name in down)
    settings = {"transformer.r": rank, "transformer.lora_alpha": rank, "transformer.target_modules": modules}
    save_file(adapters, file, {"format": "pt", "lora_adapter_metadata": json.dumps(settings)})


def _check_halves(halves: dict[str, dict[str, Tensor]], file: Path) -> None:
    missing = [
        f"{module}.{part}" for module, half in halves.items() for part in ("lora_A", "lora_B") if part not in half
    ]
    if missing:
        raise ConfigError(
            f"{file}: is not whole: {len(missing)} of {2 * len(halves)} tensors are missing, such as {min(missing)}; "
            "save or fetch it again"
        )
    for module, half in halves.items():
        down, up = half["lora_A"], half["lora_B"]
        if down.ndim != 2 or up.ndim != 2 or 0 in (*down.shape, *up.shape) or down.shape[0] != up.shape[1]:
            raise ConfigError(
                f"{file}: lora_A {list(down.shape)} and lora_B {list(up.shape)} of {module} have no common rank"
            )


def _scale_of(module: str, rank: int, settings: dict[str, Any] | None, alphas: dict[str, float], file: Path) -> float:
    """alpha / rank of a module (or alpha / sqrt(rank), where the settings say so)."""
    if settings is None or module in alphas:
        alpha, is_rslora = alphas.get(module, float(rank)), False
    else:
        said = _of_module(settings["rank_pattern"], module, settings["r"])
        if said != rank:
            raise ConfigError(f"{file}: {module} has rank {rank}, but the file's metadata says {said!r}")
        alpha, is_rslora = _of_module(settings["alpha_pattern"], module, settings["lora_alpha"]), settings["use_rslora"]
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not (math.isfinite(alpha) and alpha > 0):
        raise ConfigError(f"{file}: alpha of {module} is {alpha!r}; it must be a number above 0")
    return alpha / (math.sqrt(rank) if is_rslora else rank)


def _of_module(pattern: dict[str, Any], module: str, otherwise: Any) -> Any:
    return pattern.get(get_pattern_key(list(pattern), module), otherwise)


def _read_settings(file: Path, metadata: dict[str, str]) -> dict[str, Any] | None:
    """The adapters' settings as peft names them, if the file has any or, as peft saves it, a file beside it."""
    beside = file.with_name("adapter_config.json")
    if (text := metadata.get("lora_adapter_metadata")) is None:
        if file.name != "adapter_model.safetensors" or not beside.is_file():
            return None
        text = beside.read_text(encoding="utf-8")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: its metadata (lora_adapter_metadata) is no JSON object; save or fetch it again")
    settings = {key.removeprefix("transformer."): value for key, value in found.items()}
    for key, kinds in {"r": int, "lora_alpha": int | float}.items():
        if not isinstance(settings.get(key), kinds):
            raise ConfigError(f"{file}: its metadata has {settings.get(key)!r} for {key}; it must be a number")
    settings = {key: _USUAL[key] for key in _SCALES} | settings
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(settings[key] or {}, dict):
            raise ConfigError(f"{file}: its metadata has {settings[key]!r} for {key}; it must be an object")
        settings[key] = settings[key] or {}
    _check_meaning(settings, file)
    return settings


def _check_meaning(settings: dict[str, Any], file: Path) -> None:
    """Raise ConfigError for settings whose arithmetic is not done here; warn of those that this peft does not know."""
    unknown = []
    for key, value in settings.items():
        if key in _SCALES | _OF_TRAINING or not value or value == _USUAL.get(key):
            continue
        if key == "init_lora_weights" and value in _HARMLESS_STARTS:
            continue
        if key in _USUAL:
            raise ConfigError(
                f"{file}: was made with {key}={value!r}, which is not read here; merge it where it was made"
            )
        unknown.append(key)
    if unknown:
        _warn(
            f"{file}: was made by a newer peft; its settings {', '.join(unknown)} are not known here and have no effect"
        )


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)
