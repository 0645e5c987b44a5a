"""How much memory one process of a run needs, by component and at its fullest moment, from counts alone; in bytes."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from harness.config import RewardConfig, RunConfig, num_trained_steps
from harness.experiments.doctor.architecture import Architecture
from harness.foundation.names import REWARDS
from harness.models.pipelines.locate import TWIN_PREFIX

_WORKSPACE = 3 * 2**29
"""CUDA context, kernels' workspace, and what the allocator cannot use."""


SAVINGS = {
    "sharing": "optimizer.tuning=lora",
    "encoding": "a larger GPU",
    "sampling": "a lower model.max_batch",
    "decoding": "model.execution.vae_slicing=true, or a lower model.max_batch",
    "scoring": "rewards on another GPU (adagrpo serve-reward)",
    "updating": "model.execution.gradient_checkpointing=true, or a lower model.execution.max_train_batch",
}
"""What needs less memory at each moment."""


class Estimate(NamedTuple):
    """Memory of one process at the moment of a run that needs most."""

    moment: str
    """``encoding`` (before training, where text encoders are freed), ``sampling``, ``decoding``, ``scoring`` or
    ``updating``; ``sharing``, before the weights are shared out."""
    parts: Mapping[str, int]
    """By component."""

    @property
    def total(self) -> int:
        """Of all parts."""
        return sum(self.parts.values())


def estimate(config: RunConfig, architecture: Architecture, rewards: Iterable[str], on_gpu: bool = True) -> Estimate:
    """What a process needs at its fullest moment.

    Weights in training, their gradients and AdamW's two moments are float32; frozen weights are in the network's
    precision. A process holds all of them, or what its engine leaves to it.

    Args:
        config: of the run.
        architecture: of its model.
        rewards: that this process loads.
        on_gpu: of GPU memory, with the CUDA context; else of main memory, where offloading saves nothing.
    """
    model, optimizer = config.model, config.optimizer
    element = 2 if model.precision == "bf16" else 4
    trained = trained_parameters(config, architecture)
    shares = config.runtime.processes if config.runtime.engine == "fsdp2" else 1
    always = {"autoencoder": 4 * architecture.vae, "CUDA context and workspace": _WORKSPACE if on_gpu else 0}
    merged = {}
    if optimizer.tuning == "lora":
        whole = {"weights": architecture.parameters * element + 4 * trained}
        if optimizer.lora.merge_while_sampling and element == 4:
            adapted = sum(into * out for into, out in architecture.adapted(optimizer.lora))
            merged = {"weights with adapters merged": adapted * element // shares}
    else:
        whole = {"weights": 4 * trained}
        if config.objective.kl_beta:
            whole["weights of the KL reference"] = 4 * trained
    weights = {name: count // shares for name, count in whole.items()}
    if optimizer.tuning == "full" and element == 2:
        weights["weights"] += 2 * trained  # autocast keeps a copy in bf16 for the backward pass
    if shares > 1:
        # That of one block is used while the next one's is on its way.
        weights["weights gathered"] = 2 * whole["weights"] // architecture.num_blocks
    text = {"text encoders": element * architecture.text_encoders}
    kept = {} if model.execution.text_encoders == "free" else text
    resident, moving = _reward_models(config, rewards, on_gpu)
    training = {
        **(always | weights | kept),
        "gradients": 4 * trained // shares,
        "optimiser": 8 * trained // shares,
        "averaged weights": 4 * trained // shares if optimizer.weight_ema is not None else 0,
        "latents": _latents(config, architecture),
        "reward models": resident,
    }
    moments = {
        "sharing": always | whole | kept if shares > 1 else {},
        "encoding": {} if kept else always | weights | text,
        "sampling": training | merged | {"activations": _sampling(config, architecture, element)},
        "decoding": training | {"activations of the autoencoder": _decoding(config, architecture)},
        "scoring": training | {"reward models": resident + moving},
        "updating": training | {"activations": _updating(config, architecture, element)},
    }
    return max((Estimate(moment, parts) for moment, parts in moments.items()), key=lambda e: e.total)


def _sampling(config: RunConfig, architecture: Architecture, element: int) -> int:
    """Peak inside one block of a forward without gradient: input, q, k, v, and the MLP before and after its step."""
    samples = architecture.forwards_per_velocity(config.model) * config.model.max_batch
    return samples * architecture.tokens(config.model) * architecture.width * element * (1 + 3 + 4 + 4)


def _updating(config: RunConfig, architecture: Architecture, element: int) -> int:
    """What the backward pass keeps of the largest forward.

    34 bytes per token and channel in each block at 16 bits, with attention that keeps no matrix (Korthikanti et al.
    2022, "Reducing Activation Recomputation in Large Transformer Models", equation 2 without its attention term); with
    checkpointing each block's input only, and the inside of one block at a time.
    """
    model, rollout, objective = config.model, config.rollout, config.objective
    # Siblings of an anchor-branch step share one forward with gradient.
    of_a_prompt = num_trained_steps(rollout) * (1 if rollout.kind == "anchor_branch" else rollout.group_size)
    of_an_update = of_a_prompt * rollout.prompts_per_update // config.runtime.processes
    if objective.update_on != "all":
        of_an_update //= objective.updates_per_iteration
    samples = min(of_an_update, model.execution.max_train_batch or model.max_batch)
    samples *= architecture.forwards_per_velocity(model)
    of_input = samples * architecture.tokens(model) * architecture.width * element
    blocks = architecture.num_blocks
    return (blocks + 17 if model.execution.gradient_checkpointing else 17 * blocks) * of_input


def _latents(config: RunConfig, architecture: Architecture) -> int:
    """Float32 states and velocities of the candidates' paths, and the rollouts, of all prompts of this process."""
    model, rollout = config.model, config.rollout
    latent = 4 * architecture.latent_channels_per_token * architecture.image_tokens(model)
    paths = rollout.candidates if config.scores_candidates else 1
    states = paths * (2 * model.num_steps + 1)
    branches = 4 * rollout.group_size * len(rollout.branch_indices)  # drawn noise, draw, running sample, velocity
    return latent * (states + branches) * (rollout.prompts_per_update // config.runtime.processes)


def _decoding(config: RunConfig, architecture: Architecture) -> int:
    """Three float32 feature maps at full resolution, of all pictures that are decoded at once."""
    model = config.model
    pictures = 1 if model.execution.vae_slicing else model.max_batch
    return 3 * 4 * architecture.vae_channels * model.height * model.width * pictures


def _reward_models(config: RunConfig, rewards: Iterable[str], on_gpu: bool) -> tuple[int, int]:
    """Reward models that stay in this process's memory, and the largest that comes only to score."""
    resident, moving = 0, 0
    for name in dict.fromkeys(rewards):
        settings, model = config.rewards.get(name, RewardConfig()), REWARDS[name].model
        is_elsewhere = settings.backend == "url" or (on_gpu and settings.device == "cpu")
        if model is None or is_elsewhere or (settings.path or "").startswith(TWIN_PREFIX):
            continue
        element = {None: model.bytes_per_parameter, "fp32": 4, "bf16": 2}[settings.precision]
        if settings.offload and on_gpu:
            moving = max(moving, model.parameters * element)
        else:
            resident += model.parameters * element
    return resident, moving


def trained_parameters(config: RunConfig, architecture: Architecture) -> int:
    """How many numbers are in training: those of the adapters, or of the whole transformer."""
    if config.optimizer.tuning == "full":
        return architecture.parameters
    lora = config.optimizer.lora
    return lora.rank * sum(into + out for into, out in architecture.adapted(lora))


def checkpoint_bytes(config: RunConfig, architecture: Architecture) -> int:
    """Disk of a finished run: one resumable checkpoint (weights, two moments, average), and the final weights."""
    average = 4 if config.optimizer.weight_ema is not None else 0
    return trained_parameters(config, architecture) * (4 + 8 + average + 4)


def embedding_bytes(config: RunConfig, architecture: Architecture) -> int:
    """Disk of one prompt's text conditioning, where text encoders are freed (without CLIP's pooled vector)."""
    element = 2 if config.model.precision == "bf16" else 4
    return architecture.text_tokens(config.model) * architecture.text_width * element
