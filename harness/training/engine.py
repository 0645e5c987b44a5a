"""Weights in training and their optimiser. An update is one AdamW step, however the processes divide the work."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from harness.config import OptimizerConfig
from harness.foundation.errors import TrainingError
from harness.models.pipelines.loading import DTYPES
from harness.models.pipelines.policy import Policy
from harness.models.pipelines.quantised import adamw_8bit
from harness.training.processes import Processes


class Engine:
    """Data parallelism (``runtime.engine=ddp``), in which every process holds all weights; also for a single process.

    Gradients are averaged over processes once per update, in one exchange, however many backward passes it has.

    Args:
        policy: policy whose weights are trained; keep its reference first, if it needs one.

    Attributes:
        parameters: parameters in training, by name; the same names in all processes.
        averages: moving averages of the weights, by name, if the settings ask for them; sharded like the weights.
        rounding: statistics of the latest update of a 16-bit network, over every 97th value: ``tiny_gradients``, the
            share of gradients below 10 times AdamW's epsilon, where epsilon determines the size of the step; and, if
            all weights are trained, ``moved_weights``, the share whose 16 bits have changed. Empty in float32.
    """

    keeps_step: ClassVar[bool] = False
    """Whether every forward and backward pass is collective, so that all processes must make equally many."""

    def __init__(self, policy: Policy, settings: OptimizerConfig, processes: Processes) -> None:
        self.settings, self.processes = settings, processes
        self.parameters = policy.trainable()
        make = torch.optim.AdamW if settings.moments == "fp32" else adamw_8bit
        self.optimizer: Any = make(
            self.parameters.values(),
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
        )
        dtype = DTYPES[policy.config.precision]
        self._low = None if dtype == torch.float32 else dtype
        self.rounding: dict[str, float] = {}
        keeps_averages = settings.weight_ema is not None
        self.averages = {name: p.detach().clone() for name, p in self.parameters.items()} if keeps_averages else {}

    def update(self, losses: Sequence[Callable[[], Tensor]], scale: float = 1.0) -> float:
        """Make one optimiser step on the sum of the losses, averaged over processes, with gradient clipping.

        Args:
            losses: functions that compute the losses. Each is called after the backward pass of the one before, so that
                only one forward's activations are in memory at a time.
            scale: loss scale for the backward pass, a power of 2, so that no gradient vanishes in half precision.

        Returns:
            Norm of the averaged gradient before clipping. If it is not finite, no step was taken, and the parameters
            keep the gradient to be looked at.
        """
        self.optimizer.zero_grad(set_to_none=True)
        for loss in losses:
            (loss() * scale).backward()
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        if scale != 1:
            torch._foreach_mul_(gradients, 1 / scale)
        norm = self._averaged_norm(gradients)
        if math.isfinite(norm):  # else clipping would make all gradients NaN or 0, not only the faulty ones
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.settings.max_grad_norm, norm)
            self._step()
            self.optimizer.zero_grad(set_to_none=True)  # frees the gradients' memory before the next rollout
        return float(norm)

    def _step(self) -> None:
        if self._low is None:
            self.optimizer.step()
            return
        sampled = [_sample(p.grad) for p in self.parameters.values() if p.grad is not None]
        is_tiny = torch.cat(sampled).abs() < 10 * self.settings.epsilon
        before = [_sample(p).to(self._low) for p in self.parameters.values()]
        self.optimizer.step()
        self.rounding = {"tiny_gradients": is_tiny.float().mean().item()}
        if self.settings.tuning == "full":
            now = [_sample(p).to(self._low) for p in self.parameters.values()]
            has_moved = torch.cat([new != old for new, old in zip(now, before, strict=True)])
            self.rounding["moved_weights"] = has_moved.float().mean().item()

    def require_alike(self, iteration: int) -> None:
        """Raise TrainingError unless all processes hold the same weights, by a bitwise checksum. Collective.

        All processes receive the same gradients and take the same steps, so a difference is a fault of one of them.
        """
        parts = [p.detach().view(torch.int32).sum(dtype=torch.int64) for p in self.parameters.values()]
        sums = self.processes.gather_objects(int(torch.stack(parts).sum()), "comparing weights")
        apart = [rank for rank, own in enumerate(sums) if own != sums[0]]
        if apart:
            raise TrainingError(
                f"the weights of rank {apart[0]} are not those of rank 0 at iteration {iteration}: look at that GPU; "
                "the checkpoint before this one is whole"
            )

    def _averaged_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Average the gradients over processes and return their norm."""
        self.processes.average(gradients, "averaging gradients")
        return torch.nn.utils.get_total_norm(gradients)

    def move_averages(self, updates: int) -> None:
        """Update the averages: average <- d * average + (1 - d) * weights, where the decay d is ``weight_ema``.

        Of the updates since training began only every ``weight_ema_interval``-th moves them.
        """
        if self.settings.weight_ema is not None and updates % self.settings.weight_ema_interval == 0:
            for name, average in self.averages.items():
                average.lerp_(self.parameters[name].detach(), 1 - self.settings.weight_ema)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Context manager in which the network has the averaged weights, if the run keeps averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # In place, because FSDP2 keeps memory of its own behind the parameters.
        for name, average in self.averages.items():
            kept = average.clone()
            average.copy_(self.parameters[name])
            self.parameters[name].copy_(kept)

    def whole_weights(self) -> dict[str, Tensor] | None:
        """Trained weights by name, on the CPU of the main process; empty on the others. Collective.

        None if the network of each process already holds them whole, as it does here.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """Weights, averages and optimiser state, as tensors or, if they are sharded, as DTensors."""
        return {
            "parameters": {name: p.detach() for name, p in self.parameters.items()},
            "averages": self.averages,
            "optimizer": self.optimizer.state_dict(),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Tensors of ``state_dict`` by path, to be overwritten in place; missing AdamW moments are created as zeros."""
        for number, parameter in enumerate(self.parameters.values()):
            if self.optimizer.state[parameter]:
                continue
            if self.settings.moments == "8bit":
                self.optimizer.init_state(self.optimizer.param_groups[0], parameter, 0, number)
            else:
                self.optimizer.state[parameter] |= {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                }
        return flat(self.state_dict())


def _sample(tensor: Tensor) -> Tensor:
    """Every 97th value of a tensor, or of this process's shard of it."""
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return own.detach().flatten()[::97]


def flat(state: Any, path: str = "") -> dict[str, Tensor]:
    """Tensors of nested mappings, by the keys that lead to them, joined by ``/``."""
    if isinstance(state, Tensor):
        return {path: state}
    if not isinstance(state, dict):
        return {}
    inner = [flat(value, f"{path}/{key}" if path else str(key)) for key, value in state.items()]
    return {name: tensor for part in inner for name, tensor in part.items()}
