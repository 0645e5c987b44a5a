"""Policy for Stable Diffusion 3 and 3.5 pipelines."""

from typing import Any, ClassVar

from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from harness.config import ConfigError
from harness.models.pipelines.embedding import PromptEmbedding
from harness.models.pipelines.policy import Policy


class StableDiffusion3Policy(Policy):
    """Stable Diffusion 3 network in training, with latents ``[n, 16, h, w]``."""

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

    def _unshifted(self, num_steps: int) -> dict[str, Any]:
        return {"num_inference_steps": num_steps}

    def _predict(self, x: Tensor, sigma: Tensor, text: PromptEmbedding) -> Tensor:
        return self._forward(
            hidden_states=x,
            timestep=1000 * sigma,
            encoder_hidden_states=text.states,
            pooled_projections=text.pooled,
        )

    def _set_size(self, height: int, width: int) -> None:
        super()._set_size(height, width)
        patches = self.transformer.config.pos_embed_max_size * self.transformer.config.patch_size
        largest = patches * self._pipeline.vae_scale_factor
        if max(height, width) > largest:
            raise ConfigError(f"a picture of {height} x {width}: this network has positions up to {largest} pixels")
