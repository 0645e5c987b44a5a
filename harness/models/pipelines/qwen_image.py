"""Policy for Qwen-Image pipelines."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import QwenImagePipeline
from torch import Tensor

from harness.models.pipelines.embedding import PromptEmbedding
from harness.models.pipelines.policy import Policy
from harness.models.pipelines.truncation import all_tokens


class QwenImagePolicy(Policy):
    """Qwen-Image network in training, with packed latents ``[n, tokens, channels]``.

    ``model.guidance`` is the pipeline's ``true_cfg_scale``, and the negative prompt is the empty one.
    """

    pipeline_class: ClassVar[Any] = QwenImagePipeline
    t5_tokenizer: ClassVar[str] = "tokenizer"

    def _tokens(self, tokenizer: str, prompts: Sequence[str]) -> Sequence[Sequence[int]]:
        # The network sees only the states after the instruction to the text encoder.
        start, template = self._pipeline.prompt_template_encode_start_idx, self._pipeline.prompt_template_encode
        whole = all_tokens(getattr(self._pipeline, tokenizer), [template.format(prompt) for prompt in prompts])
        return [tokens[start:] for tokens in whole]

    def _encode_text(self, prompts: list[str]) -> PromptEmbedding:
        length = self.config.max_sequence_length
        states, mask = self._pipeline.encode_prompt(prompts, self.device, max_sequence_length=length)
        counts = [states.shape[1]] * len(states) if mask is None else mask.sum(1).tolist()
        return PromptEmbedding.padded([row[:count] for row, count in zip(states, counts, strict=True)], length)

    def _predict(self, x: Tensor, sigma: Tensor, text: PromptEmbedding) -> Tensor:
        longest = max(lengths := text.lengths)
        rows, columns = self._latent_size[0] // 2, self._latent_size[1] // 2
        return self._forward(
            hidden_states=x,
            timestep=sigma,
            encoder_hidden_states=text.states[:, :longest],
            encoder_hidden_states_mask=None if min(lengths) == longest else text.pooled[:, :longest],
            img_shapes=[[(1, rows, columns)]],  # of all samples; one for each would be compiled per batch size
        )

    def _guide(self, without: Tensor, with_text: Tensor) -> Tensor:
        """Guide as in the pipeline: each token is rescaled to its norm without guidance."""
        guided = super()._guide(without, with_text)
        return guided * (with_text.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))

    @property
    def _noise_shape(self) -> tuple[int, int, int]:
        return (self._pipeline.vae.config.z_dim, *self._latent_size)

    def _pack(self, latents: Tensor) -> Tensor:
        return self._pipeline._pack_latents(latents, *latents.shape)

    def _decode(self, x: Tensor) -> Tensor:
        vae = self._pipeline.vae
        latents = self._pipeline._unpack_latents(x, self._height, self._width, self._pipeline.vae_scale_factor)
        mean, std = (
            torch.tensor(of, device=x.device).view(1, -1, 1, 1, 1)
            for of in (vae.config.latents_mean, vae.config.latents_std)
        )
        decoded: Tensor = vae.decode(latents * std + mean, return_dict=False)[0][:, :, 0]
        return decoded
