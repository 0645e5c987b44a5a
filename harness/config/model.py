"""The pipeline to train, how it samples, and how its network is run."""

from typing import Literal

from pydantic import Field

from harness.config.section import Count, Pixels, Positive, Section


class ExecutionConfig(Section):
    """How the network is run: memory and speed. Changes no number beyond rounding, so it is no part of a run's name."""

    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
    compile: Literal["never", "auto", "blocks"] = "never"
    """torch.compile. Auto: of the network while it samples, where a compiler is at hand: up to a minute at the start, a
    third faster after. Blocks: of the transformer's blocks, in training too: minutes at the start."""
    vae_slicing: bool = False
    """Decode one picture at a time."""
    text_encoders: Literal["keep", "free"] = "keep"
    """Free: encode all prompts of the run before it starts, keep their embeddings on disk, and give the memory back."""
    max_train_batch: Count | None = None
    """Most samples in one forward with gradient; None is ``max_batch``. Classifier-free guidance makes two of each."""


class ModelConfig(Section):
    """The pipeline to train and how it samples."""

    path: str
    """Folder of a FLUX, Stable Diffusion 3, FLUX.2-klein, Qwen-Image or Z-Image pipeline, found as docs/config.md says
    of paths; or a hub id, owner/name; or ``twin:`` and ``flux``, ``sd3``, ``flux2-klein``, ``qwen-image`` or
    ``z-image``: a tiny random twin."""
    adapter: str | None = None
    """Plug-in that trains the pipeline, a subclass of ``harness.models.pipelines.policy.Policy``; None is the project's
    own for the pipeline's class."""
    height: Pixels = 32
    width: Pixels = 128
    """Pixels."""
    num_steps: int = Field(8, ge=2, le=10_000)
    """Euler steps N of every rollout."""
    shift: Positive | Literal["dynamic"] = 3.0
    """Static sigma shift, or diffusers' resolution-dependent one."""
    guidance: float = Field(3.5, ge=0)
    """Guidance scale: an input of a guidance-distilled FLUX, unused by one without guidance embedding; else
    classifier-free, at the price of a second forward, off at 1 and below (Z-Image: at 0)."""
    max_sequence_length: int = Field(24, ge=1, le=100_000)
    """Tokens that the text encoder reads: T5, or the language model with what its template puts around the prompt."""
    allow_unknown_tokens: bool = False
    """Take prompts with characters that the text encoder does not know, instead of refusing them."""
    allow_long_prompts: bool = False
    """Take prompts longer than ``max_sequence_length``, of which T5 reads the start, instead of refusing them."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """For the network's arithmetic and frozen weights; weights in training are fp32, and so are the kernels. fp16
    rounds finer than bf16, so that a rollout's and an update's log-probabilities are closer; FLUX overflows in it."""
    quantise: Literal["none", "nf4"] = "none"
    """Frozen weights of the network's blocks in 4 bits, computed with in ``precision``; with adapters only. Needs
    bitsandbytes: ``pip install 'adagrpo[gpu]'``."""
    max_batch: Count = 64
    """Most samples in one forward of the network: the memory budget. Does not change results beyond rounding."""
    execution: ExecutionConfig = ExecutionConfig()
