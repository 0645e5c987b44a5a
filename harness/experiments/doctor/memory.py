"""How much memory one process of a run needs, by component and at its fullest moment, from counts alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.config import RewardConfig, RunConfig, num_trained_steps
from harness.experiments.doctor.architecture import Architecture
from harness.models.pipelines.locate import TWIN_PREFIX
from harness.names import REWARDS

_WORKSPACE = 3 * 2**29
"""CUDA context, kernels' workspace, and what the allocator cannot use."""


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


@dataclass(frozen=True)
class Estimate:
    """Memory of one process at the moment of a run that needs most."""

    moment: str
    """``encoding`` (before training, where text encoders are freed), ``sampling``, ``decoding``, ``scoring`` or
    ``updating``; ``sharing``, before the weights are shared out."""
    parts: Mapping[str, int]
    """Bytes by component."""

    @property
    def total(self) -> int:
        """Bytes."""
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
    moments = _moments(config, architecture, list(dict.fromkeys(rewards)), on_gpu)
    return max((Estimate(moment, parts) for moment, parts in moments.items()), key=lambda e: e.total)


def _moments(
    config: RunConfig, architecture: Architecture, rewards: Sequence[str], on_gpu: bool
) -> dict[str, dict[str, int]]:
    """Bytes by component at each moment of a run."""
    model, optimizer = config.model, config.optimizer
    element = 2 if model.precision == "bf16" else 4
    trained = trained_parameters(config, architecture)
    always = {"CUDA context and workspace": _WORKSPACE} if on_gpu else {}
    shares = config.runtime.processes if config.runtime.engine == "fsdp2" else 1
    merged: dict[str, int] = {}
    if optimizer.tuning == "lora":
        whole = {"weights": architecture.parameters * element + 4 * trained}
        if optimizer.lora.merge_while_sampling and element == 4:
            adapted = architecture.adapted(optimizer.lora)
            merged = {"weights with adapters merged": sum(into * out for into, out in adapted) * element // shares}
    else:
        whole = {"weights": trained * 4}
        if config.objective.kl_beta:
            whole["weights of the KL reference"] = trained * 4
    frozen = {"autoencoder": 4 * architecture.vae}
    weights = {name: size // shares for name, size in whole.items()} | frozen
    if optimizer.tuning == "full" and element == 2:
        weights["weights"] += 2 * trained  # autocast keeps a copy in bf16 for the backward pass
    if shares > 1:
        # That of one block is used while the next one's is on its way.
        weights["weights gathered"] = 2 * whole["weights"] // architecture.num_blocks
    text = {"text encoders": element * architecture.text_encoders}
    freed = model.execution.text_encoders == "free"
    resident, moving = _reward_models(config, rewards, on_gpu)
    training = always | weights | ({} if freed else text)
    training |= {"gradients": 4 * trained // shares, "optimiser": 8 * trained // shares}
    if optimizer.weight_ema is not None:
        training["averaged weights"] = 4 * trained // shares
    training |= {"latents": _latents(config, architecture), "reward models": resident}
    return {
        "sharing": always | whole | frozen | ({} if freed else text) if shares > 1 else {},
        "encoding": always | weights | text if freed else {},
        "sampling": training | merged | {"activations": _sampling(config, architecture, element)},
        "decoding": training | {"activations of the autoencoder": _decoding(config, architecture)},
        "scoring": training | {"reward models": resident + moving},
        "updating": training | {"activations": _updating(config, architecture, element)},
    }


def how_to_save(config: RunConfig, moment: str) -> str:
    """What to set so that a run needs less memory at its fullest moment."""
    model, execution = config.model, config.model.execution
    if config.optimizer.tuning == "full" and config.runtime.engine != "fsdp2" and config.runtime.processes > 1:
        return "share the model out: runtime.engine=fsdp2; or train adapters: optimizer.tuning=lora"
    if config.optimizer.tuning == "full":
        return "train adapters instead: optimizer.tuning=lora"
    if execution.text_encoders == "keep":
        return "free the text encoders: model.execution.text_encoders=free"
    if moment == "updating" and not execution.gradient_checkpointing:
        return "keep fewer activations: model.execution.gradient_checkpointing=true"
    if moment == "updating":
        return f"lower model.execution.max_train_batch, now {execution.max_train_batch or model.max_batch}"
    if moment == "decoding" and not execution.vae_slicing:
        return "decode one picture at a time: model.execution.vae_slicing=true"
    if moment in ("sampling", "decoding"):
        return f"lower model.max_batch, now {model.max_batch}"
    return "use a larger GPU, or serve the rewards from another one: adagrpo serve-reward"


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


def _reward_models(config: RunConfig, rewards: Sequence[str], on_gpu: bool) -> tuple[int, int]:
    """Bytes of the reward models that stay in this process's memory, and of the largest that comes only to score."""
    resident, moving = 0, 0
    for name in rewards:
        settings = config.rewards.get(name, RewardConfig())
        model = REWARDS[name].model
        is_elsewhere = settings.backend == "url" or (on_gpu and settings.device == "cpu")
        if model is None or is_elsewhere or (settings.path or "").startswith(TWIN_PREFIX):
            continue
        element = (
            model.bytes_per_parameter if settings.precision is None else {"fp32": 4, "bf16": 2}[settings.precision]
        )
        size = model.parameters * element
        if settings.offload and on_gpu:
            moving = max(moving, size)
        else:
            resident += size
    return resident, moving


def _sampling(config: RunConfig, architecture: Architecture, element: int) -> int:
    samples = architecture.forwards_per_velocity(config.model) * config.model.max_batch
    return sampling_bytes(samples, architecture.tokens(config.model), architecture.width, element)


def _updating(config: RunConfig, architecture: Architecture, element: int) -> int:
    """Of the largest forward with gradient."""
    model, rollout, objective = config.model, config.rollout, config.objective
    # Siblings of an anchor-branch step share one forward with gradient.
    of_a_prompt = num_trained_steps(rollout) * (1 if rollout.kind == "anchor_branch" else rollout.group_size)
    of_an_update = of_a_prompt * rollout.prompts_per_update // config.runtime.processes
    if objective.update_on != "all":
        of_an_update //= objective.updates_per_iteration
    samples = min(of_an_update, model.execution.max_train_batch or model.max_batch)
    return activation_bytes(
        architecture.forwards_per_velocity(model) * samples,
        architecture.tokens(model),
        architecture.width,
        architecture.num_blocks,
        element,
        model.execution.gradient_checkpointing,
    )


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
