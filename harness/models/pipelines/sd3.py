"""The policy for Stable Diffusion 3 and 3.5 pipelines."""

from typing import Any, ClassVar

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from harness.config import ConfigError
from harness.models.pipelines.embedding import PromptEmbedding
from harness.models.pipelines.policy import Policy


class StableDiffusion3Policy(Policy):
    """A Stable Diffusion 3 network in training; latents are ``[n, 16, h, w]``.

    A guidance scale w above 1 is classifier-free guidance, v = v_empty + w (v_text - v_empty), of the empty prompt and
    the prompt in one forward of 2n samples; w <= 1 is the network's own prediction, as in the pipeline.
    """

    pipeline_class: ClassVar[Any] = StableDiffusion3Pipeline
    t5_tokenizer: ClassVar[str] = "tokenizer_3"

    def _encode_text(self, prompts: list[str]) -> PromptEmbedding:
        states, _, pooled, _ = self._pipeline.encode_prompt(
            prompts,
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.config.max_sequence_length,
        )
        return PromptEmbedding(states, pooled)

    def sigmas(self, num_steps: int) -> Tensor:
        scheduler = self._scheduler()
        scheduler.set_timesteps(num_steps, mu=self._mu(scheduler) if self.config.shift == "dynamic" else None)
        return scheduler.sigmas.float()

    def velocity(self, x: Tensor, sigma: Tensor | float, text: PromptEmbedding) -> Tensor:
        timestep = 1000 * torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(len(x))
        x = x.float()
        if self.config.guidance <= 1:
            return self._predict(x, timestep, text)
        empty = self.encode([""]).repeat(len(x))
        both = PromptEmbedding.cat([empty, text])
        without, with_text = self._predict(x.repeat(2, 1, 1, 1), timestep.repeat(2), both).chunk(2)
        return without + self.config.guidance * (with_text - without)

    def _predict(self, x: Tensor, timestep: Tensor, text: PromptEmbedding) -> Tensor:
        return self._forward(
            hidden_states=x, timestep=timestep, encoder_hidden_states=text.states, pooled_projections=text.pooled
        )

    def _set_size(self, height: int, width: int) -> None:
        super()._set_size(height, width)
        patches = self.transformer.config.pos_embed_max_size * self.transformer.config.patch_size
        largest = patches * self._pipeline.vae_scale_factor
        if max(height, width) > largest:
            raise ConfigError(f"a picture of {height} x {width}: this network has positions up to {largest} pixels")
