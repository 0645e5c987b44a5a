"""Puts trained weights into a diffusers transformer, or says in one line why they do not fit."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from harness.config import ConfigError

_PREFIX = "transformer."
_PARTS = (".lora_A.weight", ".lora_B.weight")


def merge_lora(transformer: Any, file: Path) -> None:
    """Add a diffusers LoRA file's adapters into a transformer's own weights.

    Args:
        transformer: of diffusers, without adapters.
        file: as ``save_lora_weights`` writes it.

    Raises:
        ConfigError: the file is missing, damaged, of another format, or of another model.
    """
    tensors, metadata = read_lora(file)
    check_lora(transformer, tensors, file)
    transformer.load_lora_adapter(tensors, prefix="transformer", metadata=metadata)
    transformer.fuse_lora()
    transformer.unload_lora()


def read_lora(file: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Tensors of a LoRA file by name, and its adapter metadata (rank, alpha, targets), if it has any.

    Raises:
        ConfigError: the file is missing, damaged, holds no diffusers LoRA, or numbers that are not finite.
    """
    with _opened(file) as content:
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - not a mapping
        metadata = (content.metadata() or {}).get("lora_adapter_metadata")
    for name, tensor in tensors.items():
        if not (name.startswith(_PREFIX) and name.endswith(_PARTS)):
            raise ConfigError(f"{file}: holds {name!r}, which is no adapter of a transformer as diffusers saves them")
        if not tensor.isfinite().all():
            raise ConfigError(f"{file}: {name} has values that are not finite")
    if not tensors:
        raise ConfigError(f"{file}: holds no weights")
    return tensors, None if metadata is None else json.loads(metadata)


def check_lora(transformer: nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    """Raise ConfigError unless every adapter has a linear layer of its size in the transformer."""
    layers = dict(transformer.named_modules())
    for name, tensor in tensors.items():
        down, up = _PARTS
        module = name.removeprefix(_PREFIX).removesuffix(down).removesuffix(up)
        layer = layers.get(module)
        size = tensor.shape[1] if name.endswith(down) else tensor.shape[0]
        if not isinstance(layer, nn.Linear) or size != (
            layer.in_features if name.endswith(down) else layer.out_features
        ):
            raise ConfigError(f"{file}: is of another model: {module} does not fit this {type(transformer).__name__}")


def copy_weights(transformer: nn.Module, folder: Path) -> None:
    """Replace all of a transformer's weights by those of a folder that ``save_pretrained`` wrote.

    Raises:
        ConfigError: a file is missing or damaged, or the weights are of another model.
    """
    wanted = transformer.state_dict()
    missing = set(wanted)
    for file in sorted(folder.glob("*.safetensors")):
        with _opened(file) as content, torch.no_grad():
            for name in content.keys():  # noqa: SIM118 - not a mapping
                if name not in wanted or list(wanted[name].shape) != content.get_slice(name).get_shape():
                    raise ConfigError(f"{file}: is of another model: {name} does not fit {type(transformer).__name__}")
                wanted[name].copy_(content.get_tensor(name))
                missing.discard(name)
    if missing:
        raise ConfigError(f"{folder}: {len(missing)} weights are missing, such as {min(missing)}; fetch it again")


def whole_network(network_class: Any, transformer: Any, weights: Mapping[str, Tensor]) -> Any:
    """A network of a class, configured as another one, with its buffers and the given weights, which are not copied."""
    with torch.device("meta"):
        network = network_class.from_config(dict(transformer.config))
    buffers = {name: buffer for name, buffer in transformer.state_dict().items() if name not in weights}
    network.load_state_dict({**weights, **buffers}, assign=True)
    return network


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as content:
            yield content
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror or 'missing'})") from None
    except SafetensorError as error:
        raise ConfigError(f"{file}: is damaged or was cut off ({error}); fetch or export it again") from None
