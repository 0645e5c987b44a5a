"""Loading of trained weights into a diffusers transformer, and saving; weights that do not fit raise ConfigError."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from torch import Tensor, nn

from harness.config import ConfigError
from harness.foundation.errors import FileError
from harness.foundation.files import PARTIAL
from harness.models.pipelines.adapters import leave_inputs
from harness.models.pipelines.files import opened
from harness.models.pipelines.lora_files import PREFIX, A, B, read_lora, require_finite


def put_lora(transformer: Any, file: Path) -> None:
    """Merge a LoRA file's adapters into the weights of a transformer that has none.

    Weights below float32 would lose most of a small adapter and get separate float32 adapters, as in training. Raises
    ConfigError if the file is missing, damaged, in another format, or of another model.
    """
    tensors, layers = read_lora(file), dict(transformer.named_modules())
    for name, tensor in tensors.items():
        is_down = name.endswith(A)
        module = name.removeprefix(PREFIX).removesuffix(A if is_down else B)
        layer = layers.get(module)
        width = isinstance(layer, nn.Linear) and (layer.in_features if is_down else layer.out_features)
        if tensor.shape[is_down] != width:
            raise ConfigError(f"{file}: is of another model: {module} does not fit this {type(transformer).__name__}")
    transformer.load_lora_adapter(tensors, prefix="transformer")
    if transformer.dtype == torch.float32 and not getattr(transformer, "is_loaded_in_4bit", False):
        transformer.fuse_lora()
        transformer.unload_lora()
        return
    # They were loaded in the precision of the weights; restore the file's float32 values.
    for name, module in transformer.named_modules():
        if isinstance(module, LoraLayer):
            for factor, part in ((module.lora_A, A), (module.lora_B, B)):
                for linear in factor.values():
                    linear.weight.data = tensors[f"{PREFIX}{name}{part}"].to(linear.weight.device)
    leave_inputs(transformer)


def copy_weights(transformer: nn.Module, folder: Path) -> None:
    """Replace all of a transformer's weights by those in a folder that ``save_pretrained`` wrote.

    Raises:
        ConfigError: weights are missing, damaged, not finite or of another model, or a weight is in two files.
    """
    wanted = transformer.state_dict()
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with opened(file) as content, torch.no_grad():
            for name in content.keys():  # noqa: SIM118 - not a mapping
                if name not in wanted or list(wanted[name].shape) != content.get_slice(name).get_shape():
                    raise ConfigError(f"{file}: is of another model: {name} does not fit {type(transformer).__name__}")
                if earlier := found.get(name):
                    raise ConfigError(f"{file}: has {name}, as {earlier.name} has; leave one set of weights there")
                tensor = content.get_tensor(name)
                if wanted[name].is_floating_point():
                    require_finite(tensor, f"{file}: {name}")
                wanted[name].copy_(tensor)
                found[name] = file
    missing = wanted.keys() - found.keys()
    if missing:
        raise ConfigError(f"{folder}: {len(missing)} weights are missing, such as {min(missing)}; fetch it again")


def whole_network(network_class: Any, transformer: Any, weights: Mapping[str, Tensor]) -> Any:
    """Network of a class with a transformer's configuration and buffers and the given weights, which are not copied."""
    with torch.device("meta"):
        network = network_class.from_config(dict(transformer.config))
    buffers = {name: buffer for name, buffer in transformer.state_dict().items() if name not in weights}
    network.load_state_dict({**weights, **buffers}, assign=True)
    return network


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Context manager that yields an empty folder to be filled, which takes the place of ``folder`` at the end.

    Raises:
        FileError: the folder cannot be written; nothing of it is left.
    """
    partial = folder.with_name(f".{folder.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)  # left by an interrupted save
    try:
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            # Moved aside first, so that a kill at any moment leaves the old or the new folder somewhere.
            old = folder.with_name(f".{folder.name}.old{PARTIAL}")
            shutil.rmtree(old, ignore_errors=True)  # left by an interrupted save
            folder.rename(old)
            partial.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            partial.rename(folder)
    except (OSError, SafetensorError) as error:
        raise FileError(f"{folder}: cannot be written: {' '.join(str(error).split())}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
