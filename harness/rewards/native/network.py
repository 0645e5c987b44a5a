"""Rewards that a network of this process computes."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.rewards.base import BatchedReward, RewardError

if TYPE_CHECKING:
    from harness.config import RewardConfig


class NetworkReward(BatchedReward):
    """A reward computed by a network in this process, on a GPU for good or, offloaded, only while it scores."""

    def __init__(self, name: str, settings: "RewardConfig") -> None:
        super().__init__(name, settings.batch_size)
        self._settings = settings

    @property
    @abstractmethod
    def _network(self) -> nn.Module:
        """The network, frozen; loaded at the first use, to ``_home``."""

    @property
    def _device(self) -> torch.device:
        """Where the network scores: ``auto`` is this process's CUDA device if there is one."""
        device = self._settings.device
        return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)

    @property
    def _home(self) -> torch.device:
        """Where the network is between scores."""
        return torch.device("cpu") if self._settings.offload else self._device

    @contextmanager
    def _scoring(self) -> Iterator[None]:
        kept: list[tuple[Tensor, Tensor]] = []
        try:
            network = self._network
            for tensor in [*network.parameters(), *network.buffers()] if self._settings.offload else []:
                kept.append((tensor, tensor.data))
                tensor.data = tensor.data.to(self._device)
            yield
        except torch.OutOfMemoryError:
            raise RewardError(
                f"reward {self.name!r}: no GPU memory for its model; set rewards.{self.name}.offload or .device"
            ) from None
        finally:
            # The network is frozen: what is in main memory is what was scored with, and nothing is copied back.
            for tensor, data in kept:
                tensor.data = data
