"""Text conditioning, as every policy hands it to its network."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PromptEmbedding:
    """Text conditioning of n samples: the encoders' states ``[n, L, d]`` and CLIP's pooled vector ``[n, p]``."""

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

    def repeat(self, count: int) -> "PromptEmbedding":
        """``count`` copies of each sample, side by side."""
        return PromptEmbedding(self.states.repeat_interleave(count, 0), self.pooled.repeat_interleave(count, 0))

    @staticmethod
    def cat(parts: "Sequence[PromptEmbedding]") -> "PromptEmbedding":
        """Samples of all parts, in order."""
        return PromptEmbedding(torch.cat([p.states for p in parts]), torch.cat([p.pooled for p in parts]))
