"""Policy for FLUX pipelines: FLUX.1-dev and the miniature share one class."""

from typing import Any, ClassVar

import torch
from diffusers import FluxPipeline
from torch import Tensor

from harness.models.pipelines.embedding import PromptEmbedding
from harness.models.pipelines.policy import Policy


class FluxPolicy(Policy):
    """FLUX network in training, with packed latents ``[n, tokens, channels]``.

    FLUX.1-dev is guidance-distilled: the guidance scale is an input, and a velocity needs one forward.
    """

    pipeline_class: ClassVar[Any] = FluxPipeline
    t5_tokenizer: ClassVar[str] = "tokenizer_2"

    def _encode_text(self, prompts: list[str]) -> PromptEmbedding:
        states, pooled, _ = self._pipeline.encode_prompt(
            prompts, None, device=self.device, max_sequence_length=self.config.max_sequence_length
        )
        return PromptEmbedding(states, pooled)

    @property
    def _scale(self) -> float:
        return 1.0

    def _predict(self, x: Tensor, sigma: Tensor, text: PromptEmbedding) -> Tensor:
        takes_guidance = self.transformer.config.guidance_embeds
        return self._forward(
            hidden_states=x,
            timestep=sigma,
            guidance=torch.full_like(sigma, self.config.guidance) if takes_guidance else None,
            pooled_projections=text.pooled,
            encoder_hidden_states=text.states,
            txt_ids=torch.zeros(text.states.shape[1], 3, device=x.device),
            img_ids=self._image_ids,
        )

    def _set_size(self, height: int, width: int) -> None:
        super()._set_size(height, width)
        rows, columns = self._latent_size[0] // 2, self._latent_size[1] // 2
        self._image_ids = self._pipeline._prepare_latent_image_ids(1, rows, columns, self.device, torch.float32)

    def _pack(self, latents: Tensor) -> Tensor:
        return self._pipeline._pack_latents(latents, *latents.shape)

    def _unpack(self, x: Tensor) -> Tensor:
        return self._pipeline._unpack_latents(x, self._height, self._width, self._pipeline.vae_scale_factor)
