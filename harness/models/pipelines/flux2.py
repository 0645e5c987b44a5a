"""Policy for FLUX.2-klein pipelines."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor

from harness.models.pipelines.embedding import PromptEmbedding
from harness.models.pipelines.policy import Policy
from harness.models.pipelines.truncation import chat_tokens


class Flux2KleinPolicy(Policy):
    """FLUX.2-klein network in training, with packed latents ``[n, tokens, channels]``.

    A distilled model (``is_distilled`` in model_index.json) uses no guidance, and a velocity needs one forward. The
    text always has ``max_sequence_length`` tokens including padding, as in the pipeline.
    """

    pipeline_class: ClassVar[Any] = Flux2KleinPipeline
    t5_tokenizer: ClassVar[str] = "tokenizer"

    @property
    def _scale(self) -> float:
        return 1.0 if self._pipeline.config.is_distilled else self.config.guidance

    def _tokens(self, tokenizer: str, prompts: Sequence[str]) -> Sequence[Sequence[int]]:
        return chat_tokens(getattr(self._pipeline, tokenizer), prompts, enable_thinking=False)

    def _encode_text(self, prompts: list[str]) -> PromptEmbedding:
        states, _ = self._pipeline.encode_prompt(
            prompts, self.device, max_sequence_length=self.config.max_sequence_length
        )
        return PromptEmbedding(states, states[:, :, 0] * 0 + 1)

    def _mu(self, scheduler: Any, num_steps: int) -> float:
        return compute_empirical_mu(self._latent_size[0] * self._latent_size[1] // 4, num_steps)

    def _predict(self, x: Tensor, sigma: Tensor, text: PromptEmbedding) -> Tensor:
        return self._forward(
            hidden_states=x,
            timestep=sigma,
            encoder_hidden_states=text.states,
            txt_ids=self._pipeline._prepare_text_ids(text.states[:1]).to(x.device),
            img_ids=self._image_ids,
        )

    def _set_size(self, height: int, width: int) -> None:
        super()._set_size(height, width)
        self._image_ids = self._pipeline._prepare_latent_ids(torch.empty(1, *self._noise_shape)).to(self.device)

    @property
    def _noise_shape(self) -> tuple[int, int, int]:
        rows, columns = self._latent_size
        return (4 * self._pipeline.vae.config.latent_channels, rows // 2, columns // 2)

    def _pack(self, latents: Tensor) -> Tensor:
        return self._pipeline._pack_latents(latents)

    def _decode(self, x: Tensor) -> Tensor:
        vae = self._pipeline.vae
        latents = x.mT.reshape(len(x), *self._noise_shape)
        mean, std = vae.bn.running_mean, (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
        latents = latents * std.view(1, -1, 1, 1) + mean.view(1, -1, 1, 1)
        decoded: Tensor = vae.decode(self._pipeline._unpatchify_latents(latents), return_dict=False)[0]
        return decoded
