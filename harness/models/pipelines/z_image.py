"""Policy for Z-Image pipelines."""

from collections.abc import Sequence
from typing import Any, ClassVar

from diffusers import ZImagePipeline
from torch import Tensor

from harness.config import ConfigError
from harness.models.pipelines.embedding import PromptEmbedding
from harness.models.pipelines.policy import Policy
from harness.models.pipelines.truncation import chat_tokens


class ZImagePolicy(Policy):
    """Z-Image network in training, with latents ``[n, 16, h, w]``.

    ``model.guidance`` is the pipeline's: v = v_text + guidance (v_text - v_empty), where 0 means no guidance.
    """

    pipeline_class: ClassVar[Any] = ZImagePipeline
    t5_tokenizer: ClassVar[str] = "tokenizer"

    @property
    def _scale(self) -> float:
        return 1 + self.config.guidance

    def _set_execution(self) -> None:
        if self.config.execution.compile == "auto":
            raise ConfigError("model.execution.compile=auto: Z-Image's network takes lists; take blocks, or never")
        super()._set_execution()

    def _tokens(self, tokenizer: str, prompts: Sequence[str]) -> Sequence[Sequence[int]]:
        return chat_tokens(getattr(self._pipeline, tokenizer), prompts, enable_thinking=True)

    def _encode_text(self, prompts: list[str]) -> PromptEmbedding:
        length = self.config.max_sequence_length
        # A copy, because the pipeline puts each prompt into its template in place.
        states, _ = self._pipeline.encode_prompt(
            [*prompts], self.device, do_classifier_free_guidance=False, max_sequence_length=length
        )
        return PromptEmbedding.padded(states, length)

    def _predict(self, x: Tensor, sigma: Tensor, text: PromptEmbedding) -> Tensor:
        """Predict eps - x0; the network's own time runs from noise (0) to the picture (1), and it predicts x0 - eps."""
        states = [row[:count] for row, count in zip(text.states, text.lengths, strict=True)]
        return -self._forward(x=list(x.unsqueeze(2)), t=1 - sigma, cap_feats=states).squeeze(2)
