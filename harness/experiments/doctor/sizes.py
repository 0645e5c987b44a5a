"""Sizes of a model, found without its weights, and the memory and disk space that a run needs; all in bytes."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from math import prod
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import safe_open
from torch import nn

from harness.config import ModelConfig, RewardConfig, RunConfig, num_trained_steps
from harness.foundation.files import read_text
from harness.foundation.names import REWARDS
from harness.models.pipelines.locate import TWIN_PREFIX
from harness.models.pipelines.published import find_published

_PIXELS_PER_TOKEN = 16
"""Pixels per token and axis: eight per latent, two latents per token; the same for all classes of ``_GUIDED``."""
_GUIDED = {
    "FluxTransformer2DModel": math.inf,
    "SD3Transformer2DModel": 1,
    "QwenImageTransformer2DModel": 1,
    "Flux2Transformer2DModel": 1,
    "ZImageTransformer2DModel": 0,
}
"""``model.guidance`` above which a velocity takes two forward passes, by class; for other classes it is unknown."""
_LISTS_OF_BLOCKS = re.compile(r"blocks$|^layers$|_refiner$")
_CLIP_TOKENS = 77
_NF4_BYTES = 1 / 2 + (1 + 4 / 256) / 64
"""Bytes per weight: 4 bits, one byte for the scale of 64 weights, and a float32 for the scale of 256 such scales."""
_WORKSPACE = 3 * 2**29
"""CUDA context, workspace of kernels, and memory that the allocator cannot use."""
_PROCESS = 3 * 2**30
"""Main memory of a process with torch, CUDA and diffusers, but without a model."""


@dataclass(frozen=True)
class Architecture:
    """Sizes of a pipeline whose weights are not loaded.

    Attributes:
        transformer: the network, on the device ``meta``.
        text_encoders: number of parameters of the text encoders.
        vae: number of parameters of the autoencoder.
        vae_channels: channels of the decoder's widest feature map at full resolution.
    """

    transformer: Any
    text_encoders: int
    vae: int
    vae_channels: int

    @cached_property
    def parameters(self) -> int:
        """Number of parameters of the transformer."""
        return _parameters_in(self.transformer)

    @cached_property
    def blocks(self) -> list[nn.Module]:
        """Blocks of the transformer, of all kinds."""
        lists = [each for name, each in self.transformer.named_children() if _LISTS_OF_BLOCKS.search(name)]
        return [block for each in lists for block in each]

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @cached_property
    def largest_block(self) -> int:
        """Number of parameters of the largest block."""
        return max(map(_parameters_in, self.blocks))

    @cached_property
    def in_linears(self) -> int:
        """Number of weights in the blocks' linear layers: those that ``model.quantise`` compresses."""
        modules = [module for block in self.blocks for module in block.modules()]
        return sum(module.weight.numel() for module in modules if isinstance(module, nn.Linear))

    def frozen(self, model: ModelConfig) -> int:
        """Bytes of the transformer if it is frozen and adapters are trained."""
        small = self.in_linears if model.quantise == "nf4" else 0
        return int(bytes_of(model) * (self.parameters - small) + _NF4_BYTES * small)

    @property
    def width(self) -> int:
        """Channels of a token in the transformer."""
        config = self.transformer.config
        return int(config.dim if "dim" in config else config.num_attention_heads * config.attention_head_dim)

    @property
    def text_channels(self) -> int:
        """Channels of a token in the output of the text encoders."""
        config = self.transformer.config
        return int(config.cap_feat_dim if "cap_feat_dim" in config else config.joint_attention_dim)

    def trained(self, config: RunConfig) -> int:
        """Number of trained parameters: those of the adapters, or of the whole transformer."""
        lora = config.optimizer.lora
        if config.optimizer.tuning == "full":
            return self.parameters
        ends = tuple(f".{target}" for target in lora.target_modules)
        modules = [module for name, module in self.transformer.named_modules() if f".{name}".endswith(ends)]
        return lora.rank * sum(m.in_features + m.out_features for m in modules if isinstance(m, nn.Linear))

    def text_tokens(self, model: ModelConfig) -> int:
        """Number of tokens of one prompt."""
        return model.max_sequence_length + _CLIP_TOKENS * type(self.transformer).__name__.startswith("SD3")

    def tokens(self, model: ModelConfig) -> int:
        """Number of tokens of one sample in the transformer: picture and text."""
        picture = (model.height // _PIXELS_PER_TOKEN) * (model.width // _PIXELS_PER_TOKEN)
        return picture + self.text_tokens(model)

    def forwards_per_velocity(self, model: ModelConfig) -> int:
        """Number of forward passes per velocity: 2 with classifier-free guidance, else 1."""
        return 2 if model.guidance > _GUIDED[type(self.transformer).__name__] else 1


def _parameters_in(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@cache
def find_architecture(path: str, folder: Path | None) -> Architecture | None:
    """Sizes of a pipeline by the configurations in its folder, else as published; None if there are neither, or if its
    class is not supported.

    Args:
        path: ``model.path``.
        folder: folder of the pipeline, if it is complete on this machine.
    """
    if folder is not None:
        config, vae = (json.loads(read_text(folder / part / "config.json")) for part in ("transformer", "vae"))
        if config["_class_name"] not in _GUIDED:
            return None
        encoders = sum(_count(folder / name) for name in ("text_encoder", "text_encoder_2", "text_encoder_3"))
        # The decoder reaches full resolution with the channels of its last but one block.
        channels = vae["block_out_channels"][1] if "block_out_channels" in vae else 2 * vae["base_dim"]
        others = (encoders, _count(folder / "vae"), channels)
        return Architecture(_on_meta(config["_class_name"], config), *others)
    model = find_published(path)
    if model is None or model.transformer is None:
        return None
    return Architecture(_on_meta(*model.transformer), model.text_encoders, model.vae, model.vae_channels)


def _on_meta(class_name: str, config: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        transformer: nn.Module = getattr(diffusers, class_name).from_config(dict(config))
    return transformer


def _count(component: Path) -> int:
    """Number of parameters in a component's safetensors files, read from their headers."""
    total = 0
    for file in component.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as content:
            total += sum(prod(content.get_slice(name).get_shape()) for name in content.keys())  # noqa: SIM118
    return total


def memory(
    config: RunConfig, of: Architecture, rewards: Iterable[str], on_gpu: bool = True, activations: float = 1.0
) -> dict[str, int]:
    """Peak memory of one process, by component.

    Trained weights, their gradients, average and AdamW's two moments (unless 8bit) are float32, frozen weights are in
    the network's precision. A process holds all of them, or a share if its engine shards them. The peak is in one of
    these phases: text encoders that are freed later encode; pictures are drawn and scored; weights are updated; and,
    if weights are sharded, before that, when each process holds them whole, with the reward models of a grid's earlier
    runs.

    Args:
        config: configuration of the run.
        of: architecture of its model.
        rewards: names of the rewards that this process loads.
        on_gpu: whether GPU memory is estimated, with the CUDA context, or main memory.
        activations: measured memory of a forward pass's activations, relative to the estimate.
    """
    model, optimizer = config.model, config.optimizer
    element, trained = bytes_of(model), of.trained(config)
    is_full, is_freed = optimizer.tuning == "full", model.execution.text_encoders == "free"
    shares = config.runtime.processes if config.runtime.engine == "fsdp2" else 1
    weights = 4 * trained if is_full else of.frozen(model) + 4 * trained
    gathered = 3 * of.largest_block * (4 if is_full else element) if shares > 1 else 0
    models = {name: reward_bytes(config, name, on_gpu) for name in rewards}
    moving = {name for name in models if on_gpu and name in config.rewards and config.rewards[name].offload}
    in_low = 2 * (of.largest_block if model.execution.gradient_checkpointing else trained) * (is_full and element == 2)
    encoders = {"text encoders": element * of.text_encoders}
    reference = 4 * trained * (is_full and config.objective.kl_beta > 0)
    scoring = sum(count for name, count in models.items() if name not in moving)
    always = {
        "weights": weights // shares,
        # The weights of one block are used while those of the next arrive in one piece, which is then split.
        "blocks gathered": gathered,
        "autoencoder": 4 * of.vae,
        "CUDA context and workspace": _WORKSPACE * on_gpu,
    }
    training = {
        **always,
        **({} if is_freed else encoders),
        "weights of the KL reference": reference // shares,
        "optimiser": (8 if optimizer.moments == "fp32" else 2) * trained // shares,
        "averaged weights": 4 * trained * (optimizer.weight_ema is not None) // shares,
        "reward models": scoring,
    }
    drawing = max(
        int(activations * sampling_bytes(model, of, on_gpu)), _decoding(config, of), *(models[name] for name in moving)
    )
    # On a GPU AdamW updates all weights together, which takes one temporary number per weight.
    updating = max(_updating(config, of) * element + in_low, 4 * trained * on_gpu // shares)
    whole = always | {"weights": weights, "blocks gathered": 0, "reward models": scoring} if shares > 1 else always
    phases = (
        whole | encoders,
        whole | ({} if is_freed else encoders) | {"weights of the KL reference": reference * (shares > 1)},
        training | {"activations, or an offloaded reward": drawing},
        training | {"gradients": 4 * trained // shares, "activations of an update, or its step": updating},
    )
    return fullest(phases)


def fullest(estimates: Iterable[dict[str, int]]) -> dict[str, int]:
    """The largest of some estimates of memory, by component."""
    return max(estimates, key=lambda parts: sum(parts.values()))


def bytes_of(model: ModelConfig) -> int:
    """Bytes of one number in the network's precision."""
    return 4 if model.precision == "fp32" else 2


def sampling_bytes(model: ModelConfig, of: Architecture, on_gpu: bool) -> int:
    """Bytes inside one block of a forward pass without gradient: input, q, k, v, and the MLP around its activation.

    On a GPU all of them are float32: autocast keeps norms in float32, and so what is added to or joined with them.
    """
    samples = of.forwards_per_velocity(model) * model.max_batch
    return samples * of.tokens(model) * of.width * (1 + 3 + 4 + 4) * (4 if on_gpu else bytes_of(model))


def _updating(config: RunConfig, of: Architecture) -> int:
    """Number of values that the backward pass keeps of the largest forward pass.

    17 per token and channel in each block, with attention that keeps no matrix (34 bytes at 16 bits in Korthikanti et
    al. 2022, "Reducing Activation Recomputation in Large Transformer Models", equation 2 without its attention term).
    With checkpointing only the input of each block, and the inside of one block at a time.
    """
    model, rollout, objective = config.model, config.rollout, config.objective
    # Siblings of an anchor-branch step share one forward pass with gradient.
    of_a_prompt = num_trained_steps(rollout) * (1 if rollout.kind == "anchor_branch" else rollout.group_size)
    of_an_update = of_a_prompt * rollout.prompts_per_iteration // config.runtime.processes
    if objective.update_on != "all":
        of_an_update //= objective.updates_per_iteration
    samples = min(of_an_update, model.execution.max_train_batch or model.max_batch) * of.forwards_per_velocity(model)
    kept = of.num_blocks + 17 if model.execution.gradient_checkpointing else 17 * of.num_blocks
    return kept * samples * of.tokens(model) * of.width


def _decoding(config: RunConfig, of: Architecture) -> int:
    """Bytes of three float32 feature maps at full resolution, for all pictures that are decoded at once."""
    model = config.model
    pictures = 1 if model.execution.vae_slicing else model.max_batch
    return 3 * 4 * of.vae_channels * model.height * model.width * pictures


def reward_bytes(config: RunConfig, name: str, on_gpu: bool) -> int:
    """Bytes of a reward's model; 0 if it is not in this process's memory, or not on its GPU with ``on_gpu``."""
    settings = config.rewards.get(name, RewardConfig())
    model = None if settings.plugin else REWARDS[name].model
    is_elsewhere = settings.backend == "url" or (on_gpu and settings.device == "cpu")
    if model is None or is_elsewhere or (settings.path or "").startswith(TWIN_PREFIX):
        return 0
    return model.parameters * {None: model.bytes_per_parameter, "fp32": 4, "bf16": 2}[settings.precision]


def checkpoint_bytes(config: RunConfig, of: Architecture) -> int:
    """Disk space of a resumable checkpoint: weights, two moments, average."""
    return of.trained(config) * (4 + 8 + 4 * (config.optimizer.weight_ema is not None))


def kept_bytes(config: RunConfig, of: Architecture) -> int:
    """Disk space of the resumable checkpoints that a run keeps during training: the newest, and the best."""
    runtime = config.runtime
    kept = min(runtime.checkpoints_kept + 1, -(-config.iterations // runtime.checkpoint_interval))
    return kept * checkpoint_bytes(config, of)


def disk_bytes(config: RunConfig, of: Architecture) -> int:
    """Disk space of a finished run: the final weights, and its checkpoints unless they are removed."""
    return kept_bytes(config, of) * (config.runtime.checkpoints_of_finished == "keep") + 4 * of.trained(config)


def host_memory(config: RunConfig, of: Architecture, rewards: Iterable[str]) -> dict[str, int]:
    """Peak main memory of one machine, by component, if the processes' models are on GPUs.

    Base weights are not included: they are read in the dtype that they are stored in, as pages of their files.
    """
    processes = config.runtime.processes // config.runtime.machines
    settings = {name: config.rewards.get(name, RewardConfig()) for name in rewards}
    in_memory = sum(
        reward_bytes(config, name, on_gpu=False) for name, own in settings.items() if own.offload or own.device == "cpu"
    )
    is_gathered = config.runtime.engine == "fsdp2"
    return {
        f"{processes} processes": processes * _PROCESS,
        "rewards that are offloaded or on the CPU": processes * in_memory,
        "all weights in training, for one file": 4 * of.trained(config) * is_gathered,
    }
