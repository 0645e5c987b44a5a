"""Strict loading of a pipeline's components: diffusers and transformers would make missing weights up at random."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open

from harness.config import ConfigError
from harness.models.pipelines.files import component_folders, pipeline_settings
from harness.models.pipelines.quantised import quantise

# Libraries whose classes may be loaded: a model folder must not name arbitrary code to run.
_LIBRARIES = ("diffusers", "transformers", "harness.models.miniature")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""dtypes by ``model.precision``."""
_STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}

# What diffusers would warn of is a one-line error here.
diffusers_logging.set_verbosity_error()
# A float32 autoencoder is float32: by torch's default, convolutions on a GPU have factors of 10 bits (TF32).
torch.backends.cudnn.allow_tf32 = False


def load_pipeline(
    folder: Path,
    pipeline_class: type,
    device: torch.device,
    dtypes: Mapping[str, torch.dtype],
    without: Sequence[str] = (),
    quantised: bool = False,
) -> Any:
    """Load a pipeline, taking every weight from its folder.

    Args:
        folder: pipeline folder that ``check_pipeline`` has accepted.
        pipeline_class: class of diffusers.
        device: device of the networks; each is moved there before the next is read.
        dtypes: dtypes by component; others are float32.
        without: components to leave out.
        quantised: whether to quantise the transformer's blocks, see ``quantise``.

    Raises:
        ConfigError: a component does not fit its configuration, or comes from an unknown library.
    """
    components: dict[str, Any] = dict.fromkeys(without)
    for name in component_folders(folder):
        if name not in components:
            small = quantised and name == "transformer"
            components[name] = load_component(folder, name, device, dtypes.get(name, torch.float32), small)
    accepted = signature(pipeline_class).parameters
    settings = {name: value for name, value in pipeline_settings(folder).items() if name in accepted}
    try:
        return pipeline_class(**components, **settings)
    except TypeError as error:
        raise ConfigError(f"model.path: {folder} is no complete {pipeline_class.__name__} ({error})") from None


def load_component(folder: Path, name: str, device: torch.device, dtype: torch.dtype, quantised: bool = False) -> Any:
    """Load one component of a pipeline; networks are in evaluation mode. Raises ConfigError as ``load_pipeline``.

    Weights are converted to a wider dtype on the device, so that main memory holds only the pages of their files.
    """
    part = folder / name
    component_class = _class_of(folder, name)
    try:
        if name.startswith(("scheduler", "tokenizer")):
            return component_class.from_pretrained(part, local_files_only=True)
        stored = _stored_dtype(part)
        is_exact = stored is not None and torch.promote_types(stored, dtype) == dtype
        settings = {
            "dtype": stored if is_exact else dtype,
            "use_safetensors": True,
            "local_files_only": True,
            "output_loading_info": True,
        }
        if component_class.__module__.startswith("transformers"):
            settings["ignore_mismatched_sizes"] = True  # reported below instead of raised as a RuntimeError
        loaded, report = component_class.from_pretrained(part, **settings)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ConfigError(f"model.path: {part} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    wrong = [*report["missing_keys"], *report["mismatched_keys"]]
    if wrong:
        first = wrong[0] if isinstance(wrong[0], str) else wrong[0][0]
        raise ConfigError(
            f"model.path: {part} has no fitting weights for {len(wrong)} parameters of {component_class.__name__}, "
            f"such as {first}; is it of another model?"
        )
    loaded = loaded.eval()
    if quantised:
        quantise(loaded, device, dtype)
    loaded = loaded.to(device)
    return loaded.float() if dtype == torch.float32 else loaded


def _stored_dtype(part: Path) -> torch.dtype | None:
    """dtype of a component's weights on disk; None if its files have several dtypes, another one, or no weights."""
    found = set()
    for file in part.glob("*.safetensors"):
        with safe_open(file, framework="pt") as content:
            found |= {content.get_slice(name).get_dtype() for name in content.keys()}  # noqa: SIM118
    return _STORED.get(found.pop()) if len(found) == 1 else None


def _class_of(folder: Path, name: str) -> Any:
    library, class_name = component_folders(folder)[name]
    if library not in _LIBRARIES:
        raise ConfigError(f"model.path: {folder / name} is of {library!r}; known are {', '.join(_LIBRARIES)}")
    try:
        return getattr(import_module(library), class_name)
    except AttributeError:
        raise ConfigError(f"model.path: {folder / name} is a {class_name}, which {library} does not have") from None
