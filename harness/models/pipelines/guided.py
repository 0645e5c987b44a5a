"""Base class of policies with classifier-free guidance."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.models.pipelines.embedding import PromptEmbedding
from harness.models.pipelines.policy import Policy
from harness.models.pipelines.truncation import all_tokens


class GuidedPolicy(Policy):
    """Policy with classifier-free guidance, v = v_empty + w (v_text - v_empty), where w is ``_scale``.

    The empty prompt and the prompts share one forward of 2n samples; for w <= 1 guidance is off, v = v_text.
    """

    @property
    def _scale(self) -> float:
        """The weight w, from ``model.guidance`` in the pipeline's convention."""
        return self.config.guidance

    def velocity(self, x: Tensor, sigma: Tensor | float, text: PromptEmbedding) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(len(x))
        x = x.float()
        if self._scale <= 1:
            return self._predict(x, sigma, text)
        both = PromptEmbedding.cat([self.encode([""]).repeat(len(x)), text])
        without, with_text = self._predict(torch.cat([x, x]), sigma.repeat(2), both).chunk(2)
        return self._guide(without, with_text)

    @abstractmethod
    def _predict(self, x: Tensor, sigma: Tensor, text: PromptEmbedding) -> Tensor:
        """The network's unguided prediction of eps - x0; sigma is ``[n]``."""

    def _guide(self, without: Tensor, with_text: Tensor) -> Tensor:
        return without + self._scale * (with_text - without)


def chat_tokens(tokenizer: Any, prompts: Sequence[str], enable_thinking: bool) -> Sequence[Sequence[int]]:
    """Tokens, not truncated, of prompts as user messages in the tokenizer's chat template."""
    said = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=enable_thinking,
        )
        for prompt in prompts
    ]
    return all_tokens(tokenizer, said)
