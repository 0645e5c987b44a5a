"""Reading and writing LoRA files: adapters are read complete and with their trained scale, or ConfigError is raised."""

import dataclasses
import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from torch import Tensor

from harness.config import ConfigError
from harness.models.pipelines.files import opened

PREFIX = "transformer."
A, B, ALPHA = ".lora_A.weight", ".lora_B.weight", ".alpha"

_KEY = re.compile(
    r"(?:transformer\.|base_model\.model\.|)(?!lora_)(.+?)\."
    r"(?:(lora_A|lora_down|lora_B|lora_up)(?:\.default)?\.weight|alpha)"
)
_PARTS = {"lora_A": A, "lora_down": A, "lora_B": B, "lora_up": B, None: ALPHA}

_OF_TRAINING = {
    *("task_type", "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "target_modules", "exclude_modules", "lora_dropout", "layers_to_transform", "bias"),
    *("layers_pattern", "modules_to_save", "megatron_config", "megatron_core", "runtime_config"),
}
"""peft settings that do not change the meaning of the tensors; unknown tensors are refused by name."""
_USUAL = {field.name: field.default for field in dataclasses.fields(LoraConfig)}
_SCALES: dict[str, Any] = {"r": None, "lora_alpha": None, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False}
_HARMLESS_STARTS = (True, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base model unchanged; adapters with others only fit a modified base."""


def read_lora(file: Path) -> dict[str, Tensor]:
    """Read the adapters ``transformer.MODULE.lora_A.weight`` ``[r, in]`` and ``.lora_B.weight`` ``[out, r]`` of a file.

    They are float32, and B includes alpha / rank, so that B A is the whole change of the module's weight.

    Args:
        file: file written by diffusers' ``save_lora_weights`` or peft's ``save_pretrained``. Without alphas, alpha is
            taken to be the rank, as in diffusers.

    Raises:
        ConfigError: the file is missing, damaged, incomplete or in another format; A and B do not fit each other; a
            value is not finite; or the adapters need unsupported arithmetic, such as DoRA's.
    """
    with opened(file) as content:
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - not a mapping
        settings = _read_settings(file, content.metadata() or {})
    adapters = _by_module(tensors, file)
    if settings is None and not any(ALPHA in parts for parts in adapters.values()):
        _warn(f"{file}: has no alpha; it is taken for the rank, as diffusers does")
    read = {}
    for module, parts in adapters.items():
        read[f"{PREFIX}{module}{A}"] = parts[A]
        read[f"{PREFIX}{module}{B}"] = parts[B] * _scale_of(module, parts, settings, file)
    return read


def write_lora(adapters: Mapping[str, Tensor], file: Path) -> None:
    """Write adapters of one rank, as returned by ``read_lora``, with alpha = rank, which all readers apply correctly.

    Readers assume alpha = rank, too, if they do not know alpha or the file has lost its metadata.
    """
    modules = sorted(name.removeprefix(PREFIX).removesuffix(A) for name in adapters if name.endswith(A))
    rank = len(adapters[f"{PREFIX}{modules[0]}{A}"])
    settings = {f"{PREFIX}r": rank, f"{PREFIX}lora_alpha": rank, f"{PREFIX}target_modules": modules}
    # A single entry, because the library writes several in arbitrary order.
    save_file(dict(adapters), file, {"lora_adapter_metadata": json.dumps(settings)})


def require_finite(tensor: Tensor, where: str) -> None:
    """Raise ConfigError, which begins with ``where``, unless the values are finite floating-point numbers."""
    if not (tensor.is_floating_point() and tensor.float().isfinite().all()):
        raise ConfigError(f"{where} has values that are not finite, or no floating-point numbers")


def _by_module(tensors: Mapping[str, Tensor], file: Path) -> dict[str, dict[str, Tensor]]:
    """A, B and, if there is one, alpha of each module, in float32. Raises ConfigError for unfit or missing tensors."""
    adapters: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if (match := _KEY.fullmatch(name)) is None:
            hint = "; convert it to diffusers' names first" if name.startswith("lora_") else ""
            raise ConfigError(
                f"{file}: holds {name!r}, which is no adapter of a transformer as diffusers saves them{hint}"
            )
        require_finite(tensor, f"{file}: {name}")
        module, part = match[1], _PARTS[match[2]]
        if part in adapters[module]:
            raise ConfigError(f"{file}: holds {part[1:7]} of {module} twice")
        adapters[module][part] = tensor.float()
    missing = [f"{module}{part}" for module, parts in adapters.items() for part in (A, B) if part not in parts]
    if missing or not adapters:
        raise ConfigError(
            f"{file}: is not whole: {len(missing)} of {2 * len(adapters)} tensors are missing, such as "
            f"{min(missing, default='any')}; save or fetch it again"
        )
    for module, parts in adapters.items():
        down, up = parts[A].shape, parts[B].shape
        if len(down) != 2 or len(up) != 2 or 0 in (*down, *up) or down[0] != up[1]:
            raise ConfigError(f"{file}: lora_A {list(down)} and lora_B {list(up)} of {module} have no common rank")
    return adapters


def _scale_of(module: str, parts: Mapping[str, Tensor], settings: dict[str, Any] | None, file: Path) -> float:
    """Scale of a module's adapter: alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA."""
    rank, is_rslora = len(parts[A]), False
    alpha: Any = rank
    if ALPHA in parts:
        alpha = parts[ALPHA].item() if parts[ALPHA].numel() == 1 else list(parts[ALPHA].shape)
    elif settings is not None:
        said, alpha = (
            settings[f"{key}_pattern"].get(get_pattern_key(list(settings[f"{key}_pattern"]), module), settings[usual])
            for key, usual in (("rank", "r"), ("alpha", "lora_alpha"))
        )
        if said != rank:
            raise ConfigError(f"{file}: {module} has rank {rank}, but the file's metadata says {said!r}")
        is_rslora = settings["use_rslora"]
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not (math.isfinite(alpha) and alpha > 0):
        raise ConfigError(f"{file}: alpha of {module} is {alpha!r}; it must be a number above 0")
    return alpha / (math.sqrt(rank) if is_rslora else rank)


def _read_settings(file: Path, metadata: dict[str, str]) -> dict[str, Any] | None:
    """Settings that affect the scale, from the file's metadata or peft's adapter_config.json beside it, or None.

    Raises ConfigError for settings that need unsupported arithmetic; warns of settings unknown to the installed peft.
    """
    text, beside = metadata.get("lora_adapter_metadata"), file.with_name("adapter_config.json")
    if text is None and file.name == "adapter_model.safetensors" and beside.is_file():
        text = beside.read_text(encoding="utf-8")
    if text is None:
        return None
    try:
        found = {key.removeprefix(PREFIX): value for key, value in json.loads(text).items()}
    except (ValueError, RecursionError, AttributeError):
        raise ConfigError(f"{file}: its metadata (lora_adapter_metadata) is no JSON object; save it again") from None
    settings = _SCALES | {key: value for key, value in found.items() if key in _SCALES and value is not None}
    if not all(isinstance(settings[f"{key}_pattern"], dict) for key in ("rank", "alpha")):
        raise ConfigError(f"{file}: its metadata has a rank_pattern or alpha_pattern that is no object")
    unknown = []
    for key, value in found.items():
        if key in _SCALES | dict.fromkeys(_OF_TRAINING) or not value or value == _USUAL.get(key):
            continue
        if key not in _USUAL:
            unknown.append(key)
        elif key != "init_lora_weights" or value not in _HARMLESS_STARTS:
            raise ConfigError(f"{file}: was made with {key}={value!r}, which is not read here; merge it where it was")
    if unknown:
        _warn(f"{file}: was made by a newer peft; its settings {', '.join(unknown)} are not known and have no effect")
    return settings


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)
