"""Text conditioning, as every policy hands it to its network."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PromptEmbedding:
    """Text conditioning of n samples: the encoders' states ``[n, L, d]`` and CLIP's pooled vector ``[n, p]``.

    Without CLIP, in place of its vector, is which of the states are of text, ``[n, L]``, see ``padded``.
    """

    states: Tensor
    pooled: Tensor

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, rows: slice | Tensor) -> "PromptEmbedding":
        return PromptEmbedding(self.states[rows], self.pooled[rows])

    @property
    def summary(self) -> Tensor:
        """``[n, d]``: the mean of the encoders' states, which ranks prompts by difficulty better than CLIP's vector."""
        return self.states.float().mean(dim=1)

    @property
    def num_bytes(self) -> int:
        """Memory that the numbers take."""
        return self.states.nbytes + self.pooled.nbytes

    @staticmethod
    def padded(states: "Sequence[Tensor]", length: int) -> "PromptEmbedding":
        """Of prompts of different lengths, ``[k, d]`` each: zeros behind them to a common length."""
        zeros = [nn.functional.pad(of_prompt, (0, 0, 0, length - len(of_prompt))) for of_prompt in states]
        counts = torch.tensor([[len(of_prompt)] for of_prompt in states], device=states[0].device)
        is_text = torch.arange(length, device=counts.device) < counts
        return PromptEmbedding(torch.stack(zeros), is_text.to(states[0].dtype))

    @property
    def lengths(self) -> list[int]:
        """How many states of each sample are of text, where ``padded`` made them."""
        return self.pooled.bool().sum(1).tolist()

    def repeat(self, count: int) -> "PromptEmbedding":
        """``count`` copies of each sample, side by side."""
        return PromptEmbedding(self.states.repeat_interleave(count, 0), self.pooled.repeat_interleave(count, 0))

    @staticmethod
    def cat(parts: "Sequence[PromptEmbedding]") -> "PromptEmbedding":
        """Samples of all parts, in order."""
        return PromptEmbedding(torch.cat([p.states for p in parts]), torch.cat([p.pooled for p in parts]))
