"""What policies with classifier-free guidance share."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.models.pipelines.embedding import PromptEmbedding
from harness.models.pipelines.policy import Policy
from harness.models.pipelines.truncation import all_tokens


class GuidedPolicy(Policy):
    """A network whose guidance is classifier-free, v = v_empty + w (v_text - v_empty), with w = ``_scale``.

    The empty prompt and the prompt are one forward of 2n samples; w <= 1 is the network's own prediction.
    """

    @property
    def _scale(self) -> float:
        """w, by ``model.guidance`` as the pipeline takes it."""
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
        """The network's own prediction of eps - x0; sigma is ``[n]``."""

    def _guide(self, without: Tensor, with_text: Tensor) -> Tensor:
        return without + self._scale * (with_text - without)


def chat_tokens(tokenizer: Any, prompts: Sequence[str], enable_thinking: bool) -> Sequence[Sequence[int]]:
    """Tokens of prompts that a user says to a language model, uncut, by the tokenizer's own template."""
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
