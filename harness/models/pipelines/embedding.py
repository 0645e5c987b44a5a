"""Text conditioning in the form that all policies share."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PromptEmbedding:
    """Text conditioning of n samples: the encoders' states ``[n, L, d]`` and CLIP's pooled vector ``[n, p]``.

    For models without CLIP, ``pooled`` is a mask ``[n, L]`` of the states that belong to the text, see ``padded``.
    """

    states: Tensor
    pooled: Tensor

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, rows: slice | Tensor) -> "PromptEmbedding":
        return PromptEmbedding(self.states[rows], self.pooled[rows])

    @property
    def summary(self) -> Tensor:
        """Mean of the encoders' states, ``[n, d]``, which ranks prompts by difficulty better than CLIP's vector.

        States of zeros are padding (``padded``), and not counted: else the mean would measure a prompt's length.
        """
        counts = self.states.any(-1).sum(1, keepdim=True).clamp_min(1)
        return self.states.float().mean(dim=1) * (self.states.shape[1] / counts)

    @property
    def num_bytes(self) -> int:
        """Size of both tensors in bytes."""
        return self.states.nbytes + self.pooled.nbytes

    @staticmethod
    def padded(states: "Sequence[Tensor]", length: int) -> "PromptEmbedding":
        """Combine prompts of different lengths, ``[k, d]`` each, padded with zeros to a common length."""
        zeros = [nn.functional.pad(of_prompt, (0, 0, 0, length - len(of_prompt))) for of_prompt in states]
        counts = torch.tensor([[len(of_prompt)] for of_prompt in states], device=states[0].device)
        is_text = torch.arange(length, device=counts.device) < counts
        return PromptEmbedding(torch.stack(zeros), is_text.to(states[0].dtype))

    @property
    def lengths(self) -> list[int]:
        """Number of each sample's states that belong to the text, for embeddings made by ``padded``."""
        return self.pooled.bool().sum(1).tolist()

    def repeat(self, count: int) -> "PromptEmbedding":
        """Repeat each sample ``count`` times, with the copies of a sample adjacent."""
        return PromptEmbedding(self.states.repeat_interleave(count, 0), self.pooled.repeat_interleave(count, 0))

    @staticmethod
    def cat(parts: "Sequence[PromptEmbedding]") -> "PromptEmbedding":
        """Concatenate the samples of all parts."""
        return PromptEmbedding(torch.cat([p.states for p in parts]), torch.cat([p.pooled for p in parts]))
