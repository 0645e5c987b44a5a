"""How much memory one process of a run needs, by component, from counts alone."""

from collections.abc import Iterable
from dataclasses import dataclass

from harness.config import RunConfig
from harness.doctor.architecture import Architecture

_WORKSPACE = 3 * 2**29
"""CUDA context, kernels' workspace, and what the allocator cannot use."""


@dataclass(frozen=True)
class RewardModel:
    """Size of a reward's model."""

    parameters: int
    bytes_per_parameter: int
    tokens: int
    """That one scored picture is in it."""


REWARD_MODELS = {
    "hpsv2": RewardModel(986_109_441, 4, 257),
    "hpsv3": RewardModel(7_754_000_000, 2, 450),
    "clip": RewardModel(427_616_513, 4, 257),
    "pickscore": RewardModel(986_109_441, 4, 257),
    "imagereward": RewardModel(446_000_000, 4, 257),
}
"""ViT-H/14, Qwen2-VL-7B without its language head, ViT-L/14 and BLIP; other rewards need no GPU."""


def activation_bytes(
    samples: int, tokens: int, width: int, num_blocks: int, element: int, checkpointing: bool = False
) -> int:
    """What the backward pass keeps of a forward.

    34 bytes a token and channel in each block at 16 bits, with attention that keeps no matrix (Korthikanti et al.
    2022, "Reducing Activation Recomputation in Large Transformer Models", equation 2 without its attention term).

    Args:
        samples: in one forward with gradient.
        tokens: of a sample.
        width: channels of the residual stream.
        num_blocks: of the transformer.
        element: bytes of a number, 2 or 4.
        checkpointing: keep each block's input only, and the inside of one block at a time.
    """
    of_input = samples * tokens * width * element
    of_block = 17 * of_input
    return num_blocks * of_input + of_block if checkpointing else num_blocks * of_block


def sampling_bytes(samples: int, tokens: int, width: int, element: int) -> int:
    """Peak inside one block of a forward without gradient: input, q, k, v, and the MLP before and after its step."""
    return samples * tokens * width * element * (1 + 3 + 4 + 4)


def estimate(config: RunConfig, architecture: Architecture, rewards: Iterable[str]) -> dict[str, int]:
    """Bytes of one process, by component, at the peak of training.

    Weights in training, their gradients and AdamW's two moments are float32; frozen weights are in the network's
    precision. Every process holds all of them.

    Args:
        config: of the run.
        architecture: of its model.
        rewards: that this process loads.
    """
    model, optimizer = config.model, config.optimizer
    element = 2 if model.precision == "bf16" else 4
    trained, parts = trained_parameters(config, architecture), {}
    if optimizer.tuning == "lora":
        parts["weights"] = architecture.parameters * element + 4 * trained
        if optimizer.lora.merge_while_sampling:
            adapted = architecture.adapted(optimizer.lora)
            parts["weights with adapters merged"] = sum(into * out for into, out in adapted) * element
    else:
        # Autocast keeps a copy in bf16 for the backward pass.
        parts["weights"] = trained * (6 if element == 2 else 4)
        if config.objective.kl_beta:
            parts["weights of the KL reference"] = trained * 4
    parts["gradients"] = 4 * trained
    parts["optimiser"] = 8 * trained
    if optimizer.weight_ema is not None:
        parts["averaged weights"] = 4 * trained
    parts["activations"] = _activations(config, architecture, element)
    parts["latents"] = _latents(config, architecture)
    parts["autoencoder"] = 4 * architecture.vae + _decoding(config, architecture)
    parts["text encoders"] = element * architecture.text_encoders
    models = [REWARD_MODELS[name] for name in dict.fromkeys(rewards) if name in REWARD_MODELS]
    parts["reward models"] = sum(reward.parameters * reward.bytes_per_parameter for reward in models)
    parts["CUDA context and workspace"] = _WORKSPACE
    return parts


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


def _activations(config: RunConfig, architecture: Architecture, element: int) -> int:
    """The larger of the backward pass's and of sampling's."""
    model, rollout = config.model, config.rollout
    forwards = architecture.forwards_per_velocity(model)
    tokens, width = architecture.tokens(model), architecture.width
    # Siblings of an anchor-branch step share one forward with gradient.
    trained = 1 if rollout.kind == "anchor_branch" else rollout.group_size
    kept = activation_bytes(forwards * trained, tokens, width, architecture.num_blocks, element)
    return max(kept, sampling_bytes(forwards * model.max_batch, tokens, width, element))


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
    return 3 * 4 * architecture.vae_channels * model.height * model.width * model.max_batch
