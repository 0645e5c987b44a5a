"""Base class of rewards that are computed by a network in this process."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from harness.config import RewardConfig
from harness.foundation.names import REWARDS
from harness.rewards.base import BatchedReward, RewardError, require_device
from harness.rewards.files.checkpoints import locate, sha256_of

# Convolutions in float32 on a GPU, as on a CPU: torch's default has factors of 10 bits (TF32).
torch.backends.cudnn.allow_tf32 = False


class NetworkReward(BatchedReward):
    """Reward computed by a network in this process, which is on its device always or, if offloaded, while it scores."""

    resolutions: ClassVar[dict[str, float]]
    """``Reward.resolution`` by precision of the network, the default precision first."""
    version: ClassVar[str]
    """Version of the formula; increase it with any change of scores."""

    def __init__(self, name: str, settings: RewardConfig) -> None:
        super().__init__(name, settings.batch_size)
        self._settings = settings
        usual, *_ = self.resolutions
        self._precision: str = settings.precision or usual
        self.resolution = self.resolutions[self._precision]

    def check_ready(self) -> None:
        require_device(self.name, self._settings.device)
        super().check_ready()

    def fingerprint(self) -> str:
        return f"{sha256_of(self._files())}:{self._precision}:{self.version}"

    @property
    @abstractmethod
    def _network(self) -> nn.Module:
        """The frozen network, loaded to ``_home`` at the first use."""

    def _files(self) -> Iterable[Path]:
        """Files that scores depend on."""
        return [self._checkpoint]

    @property
    def _place(self) -> str:
        return self._settings.path or REWARDS[self.name].path

    @cached_property
    def _checkpoint(self) -> Path:
        return locate(self.name, "path", self._place)

    @property
    def _dtype(self) -> torch.dtype:
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[self._precision]

    @property
    def _device(self) -> torch.device:
        """Device on which the network scores; ``auto`` is this process's CUDA device if there is one."""
        device = self._settings.device
        return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)

    @property
    def _home(self) -> torch.device:
        """Device of the network between scores."""
        return torch.device("cpu") if self._settings.offload else self._device

    def measure(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """See ``BatchedReward.measure``; an offloaded network is moved to its device meanwhile."""
        kept: list[tuple[Tensor, Tensor]] = []
        try:
            network = self._network
            for tensor in [*network.parameters(), *network.buffers()] if self._settings.offload else []:
                kept.append((tensor, tensor.data))
                tensor.data = tensor.data.to(self._device)
            return super().measure(images, prompts)
        except torch.OutOfMemoryError:
            raise RewardError(
                f"reward {self.name!r}: no GPU memory for its model; set rewards.{self.name}.offload or .device"
            ) from None
        finally:
            # The network is frozen, so the tensors in main memory are unchanged and nothing is copied back.
            for tensor, data in kept:
                tensor.data = data
