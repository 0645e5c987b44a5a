"""A stochastic step: adagrpo train method.kernel=example.py:Example method.eta=0.3"""

import torch

from harness.transitions import Kernel, SDETransition


class Example(Kernel):
    """The flow's own step, with noise of ``eta`` times the square root of the step's length added."""

    def _transition(self, x, v, sigma, sigma_next, fallback):
        length = sigma - sigma_next
        spread = torch.full_like(sigma, self.eta)
        return SDETransition(mean=x - length * v, std=spread * length.sqrt(), diffusion=spread)
