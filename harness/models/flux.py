"""The policy adapter for FLUX pipelines: FLUX.1-dev and the miniature through one class."""

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from diffusers.utils import logging as diffusers_logging
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from harness.config import ROOT, ConfigError, ModelConfig, OptimizerConfig
from harness.models.embedding import PromptEmbedding

# diffusers warns that the miniature's autoencoder is not an AutoencoderKL: known, and meant.
diffusers_logging.get_logger("diffusers.pipelines.pipeline_utils").setLevel(diffusers_logging.ERROR)


class FluxPolicy:
    """A FLUX network that is trained, with all that is frozen around it.

    Latents are packed, ``[n, tokens, channels]``, float32. The network may run in bf16; velocities are float32 again.

    Args:
        model: which pipeline, and its sampling settings.
        optimizer: whether LoRA adapters or all weights are trained.
        device: where everything lives.
        seed: of the adapters' initial weights.

    Raises:
        ConfigError: the folder is missing or no FLUX pipeline, or a LoRA target matches no layer.
    """

    def __init__(self, model: ModelConfig, optimizer: OptimizerConfig, device: torch.device, seed: int) -> None:
        self.config = model
        self.device = device
        self._pipeline = _load_pipeline(ROOT / model.path)
        self._pipeline.to(device)
        self.transformer: Any = self._pipeline.transformer
        self.transformer.requires_grad_(False).eval()
        self._is_lora = optimizer.tuning == "lora"
        self._merge = optimizer.lora.merge_while_sampling
        self._reference: Any = None
        self._embeddings: dict[str, PromptEmbedding] = {}
        if self._is_lora:
            torch.manual_seed(seed)
            self._add_adapters(optimizer)
        else:
            self.transformer.requires_grad_(True)
        scale = self._pipeline.vae_scale_factor
        self._latent_size = (2 * (model.height // (2 * scale)), 2 * (model.width // (2 * scale)))
        self._channels = self.transformer.config.in_channels // 4
        self._image_ids = self._pipeline._prepare_latent_image_ids(
            1, self._latent_size[0] // 2, self._latent_size[1] // 2, device, torch.float32
        )
        self._guided = bool(self.transformer.config.guidance_embeds)

    def _add_adapters(self, optimizer: OptimizerConfig) -> None:
        targets = list(optimizer.lora.target_modules)
        try:
            self.transformer.add_adapter(
                PeftLoraConfig(
                    r=optimizer.lora.rank,
                    lora_alpha=optimizer.lora.alpha,
                    init_lora_weights="gaussian",
                    target_modules=targets,
                )
            )
        except ValueError as error:
            raise ConfigError(f"optimizer.lora.target_modules: {str(error).splitlines()[0]}") from None

    # --- text ---------------------------------------------------------------------------------------------------------

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raise ConfigError for a prompt with characters the text encoder cannot represent, or too long for it."""
        tokenizer = self._pipeline.tokenizer_2
        for prompt, ids in zip(prompts, tokenizer(list(prompts)).input_ids, strict=True):
            if tokenizer.unk_token_id in ids:
                raise ConfigError(f"prompt {prompt!r}: has characters or words that {self.config.path} cannot draw")
            if len(ids) > self.config.max_sequence_length:
                raise ConfigError(
                    f"prompt {prompt!r}: {len(ids)} tokens, but model.max_sequence_length is "
                    f"{self.config.max_sequence_length}"
                )

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> PromptEmbedding:
        """Text conditioning of each prompt; every prompt is encoded once and remembered."""
        new = [p for p in dict.fromkeys(prompts) if p not in self._embeddings]
        if new:
            states, pooled, _ = self._pipeline.encode_prompt(
                new, None, device=self.device, max_sequence_length=self.config.max_sequence_length
            )
            for row, prompt in enumerate(new):
                self._embeddings[prompt] = PromptEmbedding(states[row : row + 1], pooled[row : row + 1])
        return PromptEmbedding.cat([self._embeddings[p] for p in prompts])

    # --- sampling -----------------------------------------------------------------------------------------------------

    def sigmas(self, num_steps: int) -> Tensor:
        """The schedule, ``[num_steps + 1]`` float32 on the CPU, from 1 to 0, as the pipeline itself would make it.

        Static shift s: sigma = s u / (1 + (s - 1) u) of u = 1, ..., 1/N. Dynamic: diffusers' mu of the resolution.
        """
        dynamic = self.config.shift == "dynamic"
        base = type(self._pipeline.scheduler).from_config(
            self._pipeline.scheduler.config,
            use_dynamic_shifting=dynamic,
            **({} if dynamic else {"shift": self.config.shift}),
        )
        tokens = self._latent_size[0] * self._latent_size[1] // 4
        fields = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        mu = calculate_shift(tokens, *(base.config[field] for field in fields))
        retrieve_timesteps(base, num_steps, "cpu", sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=mu)
        return base.sigmas.float()

    def noise(self, generator: torch.Generator, count: int = 1) -> Tensor:
        """Standard normal latents, ``[count, tokens, channels]``, drawn on the CPU in the order of the pipeline."""
        height, width = self._latent_size
        x = torch.randn((count, self._channels, height, width), generator=generator)
        return self._pipeline._pack_latents(x, count, self._channels, height, width).to(self.device)

    def velocity(self, x: Tensor, sigma: Tensor | float, text: PromptEmbedding) -> Tensor:
        """The network's prediction eps - x0.

        Args:
            x: packed latents ``[n, tokens, channels]``.
            sigma: in [0, 1], a float or ``[n]``.
            text: conditioning of n samples.

        Returns:
            float32, shaped like x.
        """
        timestep = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(len(x))
        guidance = torch.full_like(timestep, self.config.guidance) if self._guided else None
        with self._autocast():
            velocity = self.transformer(
                hidden_states=x,
                timestep=timestep,
                guidance=guidance,
                pooled_projections=text.pooled,
                encoder_hidden_states=text.states,
                txt_ids=torch.zeros(text.states.shape[1], 3, device=x.device),
                img_ids=self._image_ids,
                return_dict=False,
            )[0]
        return velocity.float()

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Packed latents -> pictures ``[n, 3, H, W]`` float32 on the CPU in [0, 1], rounded to 1/255 like a PNG."""
        vae, config = self._pipeline.vae, self._pipeline.vae.config
        images = []
        for part in x.split(self.config.max_batch):
            latents = self._pipeline._unpack_latents(
                part, self.config.height, self.config.width, self._pipeline.vae_scale_factor
            )
            images.append(
                vae.decode(latents / config.scaling_factor + config.shift_factor, return_dict=False)[0].float()
            )
        return ((torch.cat(images) / 2 + 0.5).clamp(0, 1) * 255).round().cpu() / 255

    # --- weights ------------------------------------------------------------------------------------------------------

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters in training, by name."""
        return {name: p for name, p in self.transformer.named_parameters() if p.requires_grad}

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Within: no gradients, and LoRA adapters added into the weights, so that a forward costs what the base's does.

        The base weights are put back as they were, bit for bit: adding and subtracting would let them drift.
        """
        with torch.no_grad():
            if not (self._is_lora and self._merge):
                yield
                return
            layers = [m for m in self.transformer.modules() if isinstance(m, LoraLayer)]
            kept = [layer.get_base_layer().weight.data for layer in layers]
            for layer, weight in zip(layers, kept, strict=True):
                layer.get_base_layer().weight.data = weight + layer.get_delta_weight("default")
                layer.merged_adapters.append("default")
            try:
                yield
            finally:
                for layer, weight in zip(layers, kept, strict=True):
                    layer.get_base_layer().weight.data = weight
                    layer.merged_adapters.clear()

    def keep_reference(self) -> None:
        """Remember the present weights as the KL reference (LoRA needs no copy: its base is the reference)."""
        if not self._is_lora:
            self._reference = copy.deepcopy(self.transformer).requires_grad_(False)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within: no gradients, and ``velocity`` is that of the frozen base model."""
        with torch.no_grad():
            if self._is_lora:
                self.transformer.disable_adapters()
                try:
                    yield
                finally:
                    self.transformer.enable_adapters()
                return
            if self._reference is None:
                raise RuntimeError("call keep_reference() before training starts")
            trained, self.transformer = self.transformer, self._reference
            try:
                yield
            finally:
                self.transformer = trained

    def save(self, folder: Path) -> None:
        """Write what was trained in diffusers' format: LoRA weights for ``load_lora_weights``, or the transformer."""
        folder.mkdir(parents=True, exist_ok=True)
        if self._is_lora:
            FluxPipeline.save_lora_weights(
                folder, transformer_lora_layers=get_peft_model_state_dict(self.transformer), **self._lora_metadata()
            )
        else:
            self.transformer.save_pretrained(folder / "transformer")

    def _lora_metadata(self) -> dict[str, Any]:
        # Without the metadata diffusers takes alpha for the rank on loading, which would halve or double the adapters.
        config = self.transformer.peft_config["default"].to_dict()
        plain = json.loads(
            json.dumps(config, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
        )
        return {"transformer_lora_adapter_metadata": plain}

    def _autocast(self) -> Any:
        if self.config.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()


def _load_pipeline(folder: Path) -> FluxPipeline:
    if not (folder / "model_index.json").is_file():
        raise ConfigError(f"model.path: {folder} is no pipeline folder (no model_index.json there)")
    try:
        return FluxPipeline.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model.path: {folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
