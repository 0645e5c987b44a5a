"""Base class of policies: a network in training with the frozen components around it; a subclass for each pipeline."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor, nn

from harness.config import ConfigError, ModelConfig, OptimizerConfig
from harness.models.pipelines.adapters import add_adapters, merged_adapters, save_adapters
from harness.models.pipelines.blocks import blocks_of
from harness.models.pipelines.compiled import compile_for_sampling
from harness.models.pipelines.embedding import PromptEmbedding
from harness.models.pipelines.embedding_store import EmbeddingStore, embeddings_folder
from harness.models.pipelines.files import component_folders
from harness.models.pipelines.loading import DTYPES, load_component, load_pipeline
from harness.models.pipelines.locate import find_pipeline
from harness.models.pipelines.truncation import TextReader, all_tokens
from harness.models.pipelines.weights import filling, whole_network

_ENCODE_BATCH = 16
"""Prompts per forward of the text encoders in ``prepare_prompts``."""


class Policy(ABC):
    """Flow-matching network in training.

    Latents have the network's input shape and are float32, or of lower precision if the caller keeps them so. The
    network may run in 16 bits; velocities are float32.

    Args:
        model: pipeline to load, and its sampling settings.
        optimizer: settings that say whether LoRA adapters or all weights are trained.
        device: device of all networks.
        seed: seed of the adapters' initial weights.

    Raises:
        ConfigError: the pipeline cannot be found or loaded, cannot make pictures of the requested size, or a LoRA
            target matches no layer.
    """

    pipeline_class: ClassVar[Any]
    """Class of the pipeline in diffusers."""
    t5_tokenizer: ClassVar[str]
    """Name of the pipeline's tokenizer that reads whole prompts."""

    def __init__(self, model: ModelConfig, optimizer: OptimizerConfig, device: torch.device, seed: int) -> None:
        self.config = model
        self.device = device
        self._folder = find_pipeline(model.path)
        self._is_lora = optimizer.tuning == "lora"
        self._merge = optimizer.lora.merge_while_sampling
        self._reference: Any = None
        self._compiled: Any = None
        self._is_sampling = False
        self._encoders = [name for name in component_folders(self._folder) if name.startswith("text_encoder")]
        self._keeps_encoders = model.execution.text_encoders == "keep"
        cached_at = None if self._keeps_encoders else embeddings_folder(self._folder, model, type(self).__name__)
        self._store = EmbeddingStore(device, cached_at)
        without = () if self._keeps_encoders else self._encoders
        self._pipeline = load_pipeline(
            self._folder, self.pipeline_class, device, self._dtypes(), without, model.quantise == "nf4"
        )
        self.transformer: Any = self._pipeline.transformer
        self._network_class = type(self.transformer)  # kept, because sharding changes the network's class
        self.transformer.requires_grad_(False)
        if self._is_lora:
            add_adapters(self.transformer, optimizer.lora, seed)
        else:
            self.transformer.requires_grad_(True)
        self._set_size(model.height, model.width)
        self._set_execution()

    def _dtypes(self) -> dict[str, torch.dtype]:
        """dtypes of frozen components; the autoencoder and weights in training are always float32."""
        frozen = [*self._encoders, *(["transformer"] if self._is_lora else [])]
        return dict.fromkeys(frozen, DTYPES[self.config.precision])

    def _set_execution(self) -> None:
        execution, vae = self.config.execution, self._pipeline.vae
        if execution.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        if execution.compile == "auto":
            self._compiled = compile_for_sampling(self.transformer, self.device)
        if execution.compile == "blocks":
            # Blocks are compiled separately, because all blocks of a kind share one compilation.
            for block in blocks_of(self.transformer):
                block.compile()
        if execution.vae_slicing:
            if not hasattr(vae, "enable_slicing"):
                raise ConfigError(f"model.execution.vae_slicing: {type(vae).__name__} has none")
            vae.enable_slicing()

    # --- text ---------------------------------------------------------------------------------------------------------

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raise ConfigError for a prompt too long for the text encoder, or with characters it cannot represent."""
        tokenizer = getattr(self._pipeline, self.t5_tokenizer)
        for prompt, ids in zip(prompts, self._tokens(self.t5_tokenizer, prompts), strict=True):
            if tokenizer.unk_token_id in ids and not self.config.allow_unknown_tokens:
                raise ConfigError(f"prompt {prompt!r}: has characters or words that {self.config.path} cannot draw")
            if len(ids) > self.config.max_sequence_length and not self.config.allow_long_prompts:
                raise ConfigError(
                    f"prompt {prompt!r}: {len(ids)} tokens, but model.max_sequence_length is "
                    f"{self.config.max_sequence_length}"
                )

    def _tokens(self, tokenizer: str, prompts: Sequence[str]) -> Sequence[Sequence[int]]:
        """Tokens of prompts by one of the pipeline's tokenizers, not truncated."""
        return all_tokens(getattr(self._pipeline, tokenizer), prompts)

    def text_readers(self) -> Sequence[TextReader]:
        """Text encoders of the pipeline, each of which reads only the start of a long prompt."""
        pipeline, limits = self._pipeline, {self.t5_tokenizer: self.config.max_sequence_length}
        names = [name for name in component_folders(self._folder) if name.startswith("tokenizer")]
        return [
            TextReader(
                f"{name.replace('tokenizer', 'text_encoder')} of the model",
                limits.get(name) or pipeline.tokenizer_max_length,
                partial(self._tokens, name),
            )
            for name in names
        ]

    def prepare_prompts(self, prompts: Sequence[str], process: int = 0, processes: int = 1) -> None:
        """Encode prompts that are not on disk yet and free the text encoders; do nothing if encoders are kept.

        Args:
            prompts: all prompts that ``encode`` will be called with.
            process: number of this process among those that share the work; wait for all of them before ``encode``.
            processes: number of these processes.
        """
        if self._keeps_encoders:
            return
        mine = [p for p in [*dict.fromkeys([*prompts, ""])][process::processes] if not self._store.has_on_disk(p)]
        if not mine:
            return
        dtypes = self._dtypes()
        for name in self._encoders:
            encoder = load_component(self._folder, name, self.device, dtypes.get(name, torch.float32))
            self._pipeline.register_modules(**{name: encoder})
        with torch.no_grad():
            for start in range(0, len(mine), _ENCODE_BATCH):
                part = mine[start : start + _ENCODE_BATCH]
                self._store.write(part, self._encode_text(part))
        self._pipeline.register_modules(**dict.fromkeys(self._encoders))
        del encoder
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> PromptEmbedding:
        """Text conditioning of each prompt, computed once per prompt and cached."""
        return self._store.get(prompts, self._encode_text if self._keeps_encoders else self._encoders_are_gone)

    @abstractmethod
    def _encode_text(self, prompts: list[str]) -> PromptEmbedding:
        """Encode prompts by the pipeline's text encoders."""

    def _encoders_are_gone(self, prompts: list[str]) -> PromptEmbedding:
        raise RuntimeError(f"prompt {prompts[0]!r} was not among those given to prepare_prompts()")

    # --- sampling -----------------------------------------------------------------------------------------------------

    def sigmas(self, num_steps: int) -> Tensor:
        """Sigma schedule, ``[num_steps + 1]`` float32 on the CPU, from 1 to 0, equal to that of the pipeline.

        Static shift s: sigma = s u / (1 + (s - 1) u). Dynamic shift: diffusers' mu for the resolution. A first sigma
        that the pipeline's float32 arithmetic leaves beside 1 is set to 1.
        """
        scheduler = self._scheduler()
        scheduler.set_timesteps(**self._unshifted(num_steps), mu=self._mu(scheduler, num_steps))
        sigmas = scheduler.sigmas.float()
        return torch.where((sigmas - 1).abs() <= 1e-6, 1.0, sigmas)  # the same tolerance as in harness.transitions

    def _unshifted(self, num_steps: int) -> dict[str, Any]:
        """The pipeline's argument for ``set_timesteps`` of its scheduler."""
        return {"sigmas": np.linspace(1.0, 1 / num_steps, num_steps)}

    def noise(self, generator: torch.Generator, count: int = 1) -> Tensor:
        """Standard normal latents of ``count`` samples, drawn on the CPU in the same order as by the pipeline."""
        return self._pack(torch.randn(count, *self._noise_shape, generator=generator)).to(self.device)

    @property
    def _noise_shape(self) -> tuple[int, int, int]:
        """Shape in which the pipeline draws noise: channels, rows and columns."""
        return (self._pipeline.vae.config.latent_channels, *self._latent_size)

    def velocity(self, x: Tensor, sigma: Tensor | float, text: PromptEmbedding) -> Tensor:
        """The network's prediction of eps - x0 in float32, guided: v = v_empty + w (v_text - v_empty), w is ``_scale``.

        x are the latents of n samples, sigma their noise level in [0, 1], a float or ``[n]``. The empty prompt and the
        prompts share one forward of 2n samples; for w <= 1 guidance is off, v = v_text.
        """
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(len(x))
        x = x.float()
        if self._scale <= 1:
            return self._predict(x, sigma, text)
        both = PromptEmbedding.cat([self.encode([""]).repeat(len(x)), text])
        without, with_text = self._predict(torch.cat([x, x]), sigma.repeat(2), both).chunk(2)
        return self._guide(without, with_text)

    @property
    def _scale(self) -> float:
        """The weight w of classifier-free guidance, from ``model.guidance`` in the pipeline's convention."""
        return self.config.guidance

    def _predict(self, x: Tensor, sigma: Tensor, text: PromptEmbedding) -> Tensor:
        """The network's prediction of eps - x0 for one prompt per sample; sigma is ``[n]``."""
        raise NotImplementedError

    def _guide(self, without: Tensor, with_text: Tensor) -> Tensor:
        return without + self._scale * (with_text - without)

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Decode latents to pictures ``[n, 3, H, W]``, float32 on the CPU in [0, 1], rounded to 1/255 like a PNG."""
        images = [self._decode(part.float()).float() for part in x.split(self.config.max_batch)]
        return ((torch.cat(images) / 2 + 0.5).clamp(0, 1) * 255).round().cpu() / 255

    def _decode(self, x: Tensor) -> Tensor:
        """Decode latents to the autoencoder's output, ``[n, 3, H, W]`` about in [-1, 1]."""
        config = self._pipeline.vae.config
        latents = self._unpack(x) / config.scaling_factor + config.shift_factor
        decoded: Tensor = self._pipeline.vae.decode(latents, return_dict=False)[0]
        return decoded

    @contextmanager
    def resolution(self, height: int, width: int) -> Iterator[None]:
        """Context manager for another picture size in pixels. Raises ConfigError if the model cannot draw it."""
        kept = self._height, self._width
        self._set_size(height, width)
        try:
            yield
        finally:
            self._set_size(*kept)

    def _set_size(self, height: int, width: int) -> None:
        multiple = 2 * self._pipeline.vae_scale_factor
        if height % multiple or width % multiple:
            raise ConfigError(f"a picture of {height} x {width}: height and width must be multiples of {multiple}")
        self._height, self._width = height, width
        self._latent_size = (height // self._pipeline.vae_scale_factor, width // self._pipeline.vae_scale_factor)

    def _pack(self, latents: Tensor) -> Tensor:
        """Convert latents ``[n, C, h, w]`` to the network's input shape."""
        return latents

    def _unpack(self, x: Tensor) -> Tensor:
        """Inverse of ``_pack``."""
        return x

    def _scheduler(self) -> Any:
        """The pipeline's scheduler with the configured shift."""
        return with_shift(self._pipeline.scheduler, self.config.shift)

    def _mu(self, scheduler: Any, num_steps: int) -> float:
        """diffusers' dynamic shift for the resolution."""
        fields = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        tokens = self._latent_size[0] * self._latent_size[1] // 4
        return calculate_shift(tokens, *(scheduler.config[field] for field in fields))

    # --- weights ------------------------------------------------------------------------------------------------------

    @property
    def networks(self) -> list[nn.Module]:
        """The network in training and, if there is one, its copy that is the KL reference."""
        return [self.transformer, *([] if self._reference is None else [self._reference])]

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters in training, by name, in float32."""
        return {name: p for name, p in self.transformer.named_parameters() if p.requires_grad}

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Context manager without gradients, in which LoRA adapters are merged if the configuration says so."""
        with torch.no_grad(), merged_adapters(self.transformer) if self._is_lora and self._merge else nullcontext():
            self._is_sampling = True
            try:
                yield
            finally:
                self._is_sampling = False

    def _forward(self, **inputs: Any) -> Tensor:
        """The transformer's first output; compiled while sampling, if the configuration says so."""
        network = self._compiled if self._is_sampling and self._compiled is not None else self.transformer
        dtype = DTYPES[self.config.precision]
        is_low = dtype != torch.float32
        # No cache: it would keep a copy of each float32 weight for the whole forward, which uses each only once.
        with torch.autocast(self.device.type, dtype, cache_enabled=False) if is_low else nullcontext():
            output = network(**inputs, return_dict=False)[0]
        output = torch.stack(output) if isinstance(output, list) else output
        return output.float()

    def keep_reference(self) -> None:
        """Keep a copy of the present weights as the KL reference; for LoRA the base model serves without a copy."""
        if not self._is_lora:
            self._reference = copy.deepcopy(self.transformer).requires_grad_(False)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Context manager without gradients, in which ``velocity`` is that of the KL reference."""
        trained = self.transformer
        if self._is_lora:
            trained.disable_adapters()
        elif self._reference is None:
            raise RuntimeError("call keep_reference() before training starts")
        else:
            self.transformer = self._reference
        try:
            with torch.no_grad():
                yield
        finally:
            self.transformer = trained
            if self._is_lora:
                trained.enable_adapters()

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Save the trained weights in diffusers' format: LoRA weights for ``load_lora_weights``, or the transformer.

        Args:
            folder: folder to write; an existing one is replaced at the end.
            weights: unsharded weights by the names of ``trainable``, if the network is sharded; None uses its own.
        """
        with filling(folder) as partial:
            if self._is_lora:
                save_adapters(self.transformer, partial, weights)
            elif weights is None:
                self.transformer.save_pretrained(partial / "transformer")
            else:
                whole_network(self._network_class, self.transformer, weights).save_pretrained(partial / "transformer")


def with_shift(scheduler: Any, shift: float | str) -> Any:
    """Copy of a diffusers scheduler with another shift of its sigmas: a number, or ``dynamic`` (by the resolution)."""
    dynamic = shift == "dynamic"
    changes = {"use_dynamic_shifting": dynamic, **({} if dynamic else {"shift": shift})}
    return type(scheduler).from_config(scheduler.config, **changes)
