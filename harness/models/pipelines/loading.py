"""Loads a pipeline's components strictly: diffusers and transformers fill missing weights with random numbers."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open

from harness.config import ConfigError
from harness.models.pipelines.files import component_folders
from harness.models.pipelines.quantised import quantise

# Where a class may come from: a folder from elsewhere must not name code to be run.
_LIBRARIES = ("diffusers", "transformers", "harness.models.miniature")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""``model.precision``."""
_STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}

# What these libraries would warn of is an error here, in one line.
diffusers_logging.set_verbosity_error()


def load_pipeline(
    folder: Path,
    pipeline_class: type,
    device: torch.device,
    dtypes: Mapping[str, torch.dtype],
    without: Sequence[str] = (),
    quantised: bool = False,
) -> Any:
    """A pipeline whose every weight comes from its folder.

    Args:
        folder: of a pipeline, checked by ``check_pipeline``.
        pipeline_class: of diffusers.
        device: for its networks; each goes there before the next is read.
        dtypes: of components; float32 for those not named.
        without: components to leave out.
        quantised: the transformer's blocks, see ``quantise``.

    Raises:
        ConfigError: a component does not fit its configuration, or comes from an unknown library.
    """
    components: dict[str, Any] = dict.fromkeys(without)
    for name in component_folders(folder):
        if name not in components:
            small = quantised and name == "transformer"
            components[name] = load_component(folder, name, device, dtypes.get(name, torch.float32), small)
    try:
        return pipeline_class(**components)
    except TypeError as error:
        raise ConfigError(f"model.path: {folder} is no complete {pipeline_class.__name__} ({error})") from None


def load_component(folder: Path, name: str, device: torch.device, dtype: torch.dtype, quantised: bool = False) -> Any:
    """One component of a pipeline; a network is in evaluation mode. Raises ConfigError as ``load_pipeline``.

    Numbers are widened on the device: until then main memory holds none but the pages of their files.
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
            settings["ignore_mismatched_sizes"] = True  # told in the report, instead of raised as a RuntimeError
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
    """The dtype of a component's numbers on disk; None if its files have several, or none."""
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
