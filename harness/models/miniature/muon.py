"""Muon in float32: an optimiser that orthogonalises the momentum matrix before each step (Keller Jordan, 2024)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


def orthogonalised(matrix: Tensor) -> Tensor:
    """Move a matrix's singular values to about 1 (between .7 and 1.2) and keep its singular vectors.

    Newton-Schulz: X <- a X + (b X X^T + c (X X^T)^2) X, five times, from X of Frobenius norm 1; ``[m, n]`` float32.
    """
    a, b, c = _COEFFICIENTS
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = wide / wide.norm().clamp_min(1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon with ``adjust_lr_fn="match_rms_adamw"`` and no weight decay, but in float32.

    torch's version iterates in bfloat16, which a CPU without bfloat16 units multiplies 40 times slower than float32: a
    step of the miniature then takes four times as long as its forward and backward pass.

    Args:
        parameters: matrices to optimise.
        lr: learning rate; the root mean square of an update is about 0.2 lr, as with AdamW.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make one update with Nesterov momentum."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state: dict[str, Any] = self.state[parameter]
                average = state.setdefault("momentum_buffer", torch.zeros_like(parameter))
                average.lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalised(parameter.grad.lerp(average, group["momentum"]))
                parameter.add_(update, alpha=-group["lr"] * 0.2 * max(parameter.shape) ** 0.5)
