"""Settings of the pipeline to train, its sampling, and the execution of its network."""

from typing import Literal

from pydantic import Field

from harness.config.section import Count, Pixels, Positive, Section


class ExecutionConfig(Section):
    """Execution of the network: memory and speed. Not part of a run's name: it changes numbers only by rounding."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them: less memory, a third more time."""
    compile: Literal["never", "auto", "blocks"] = "never"
    """torch.compile. auto: the network while it samples, if a compiler is installed; up to a minute at the start, then
    a third faster. blocks: the transformer's blocks, in training too; minutes at the start."""
    vae_slicing: bool = False
    """Decode one picture at a time, to save memory."""
    text_encoders: Literal["keep", "free"] = "keep"
    """free: encode all prompts of the run before it starts, keep the embeddings on disk, free the encoders' memory."""
    max_train_batch: Count | None = None
    """Most samples in one forward pass with gradient; None is ``max_batch``. Classifier-free guidance doubles them."""


class ModelConfig(Section):
    """Pipeline to train, and its sampling."""

    path: str
    """Folder of a FLUX, Stable Diffusion 3, FLUX.2-klein, Qwen-Image or Z-Image pipeline, searched as docs/config.md
    describes for paths; or a hub id, owner/name; or ``twin:`` followed by ``flux``, ``sd3``, ``flux2-klein``,
    ``qwen-image`` or ``z-image``, for a tiny random twin."""
    adapter: str | None = None
    """Plug-in that trains the pipeline, a subclass of ``harness.models.pipelines.policy.Policy``; None is the built-in
    one for the pipeline's class."""
    height: Pixels = 32
    width: Pixels = 128
    """Size of the pictures, in pixels."""
    num_steps: int = Field(8, ge=2, le=10_000)
    """N: number of Euler steps of every rollout."""
    shift: Positive | Literal["dynamic"] = 3.0
    """Static shift of the noise levels (sigmas), or diffusers' resolution-dependent one."""
    guidance: float = Field(3.5, ge=0)
    """Guidance scale. A guidance-distilled FLUX takes it as input, one without guidance embedding ignores it; for
    others it is classifier-free, at the price of a second forward pass, and off at 1 and below (Z-Image: at 0)."""
    max_sequence_length: int = Field(24, ge=1, le=100_000)
    """Number of tokens that the text encoder reads: T5, or the language model including the template of the prompt."""
    allow_unknown_tokens: bool = False
    """Accept prompts with characters that the text encoder does not know, instead of refusing them."""
    allow_long_prompts: bool = False
    """Accept prompts longer than ``max_sequence_length``, of which T5 reads the start, instead of refusing them."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the network's arithmetic and frozen weights; trained weights and kernels are fp32. fp16 rounds finer
    than bf16, so that log-probabilities of rollout and update are closer, but FLUX overflows in it."""
    quantise: Literal["none", "nf4"] = "none"
    """Quantisation of the frozen weights of the network's blocks to 4 bits, with computation in ``precision``; only
    with adapters. Needs bitsandbytes: ``pip install 'adagrpo[gpu]'``."""
    max_batch: Count = 64
    """Most samples in one forward pass of the network: the memory budget. Changes results only by rounding."""
    execution: ExecutionConfig = ExecutionConfig()
