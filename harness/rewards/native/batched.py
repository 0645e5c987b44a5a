"""Rewards that score a few images at a time, here or elsewhere: batching, checks and errors in one place."""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.rewards.base import Pending, Reward, RewardError, check_images

if TYPE_CHECKING:
    from harness.config import RewardConfig


class ImageError(Exception):
    """One image of a batch cannot be scored: its index in the batch, and why."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


class BatchedReward(Reward):
    """A reward whose scores are computed ``batch_size`` images at a time; the size does not change them."""

    def __init__(self, name: str, batch_size: int) -> None:
        self.name, self.batch_size = name, batch_size

    @abstractmethod
    def _measure_batch(self, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Metrics ``{name: [b]}``, the score under the reward's name.

        Args:
            levels: ``[b, 3, H, W]`` uint8 on the CPU, b <= batch_size.
            prompts: b prompt strings.

        Raises:
            ImageError: one image cannot be scored.
            RewardError: none can.
        """

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score each image, see ``Reward.score``.

        Raises:
            ValueError: images out of contract (``check_images``).
            RewardError: an image cannot be scored or its score is not finite (names its index), or the model fails.
        """
        return self.measure(images, prompts)[self.name]

    def measure(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """All metrics of each image, ``{name: [B] float32}``; raises as ``score``."""
        levels = check_images(images, prompts, self.name)
        parts: dict[str, list[Tensor]] = defaultdict(list)
        with self._scoring():
            for start in range(0, len(levels), self.batch_size):
                end = start + self.batch_size
                for metric, values in self._checked(levels[start:end], prompts[start:end], start).items():
                    parts[metric].append(values)
        return {metric: torch.cat(values) for metric, values in parts.items()}

    def _scoring(self) -> AbstractContextManager[None]:
        """Within: all that scoring needs is in place."""
        return nullcontext()

    def _checked(self, levels: Tensor, prompts: Sequence[str], start: int) -> dict[str, Tensor]:
        try:
            measured = self._measure_batch(levels, prompts)
        except ImageError as error:
            index = start + error.index
            raise RewardError(f"reward {self.name!r}: image {index}: {error}", index) from None
        except torch.OutOfMemoryError:
            raise RewardError(
                f"reward {self.name!r}: no GPU memory for {len(levels)} images at a time; "
                f"lower rewards.{self.name}.batch_size"
            ) from None
        for metric, values in measured.items():
            if not (finite := values.isfinite()).all():
                row = int((~finite).nonzero()[0])
                problem = f"{metric} is {values[row].item()}, not finite"
                raise RewardError(f"reward {self.name!r}: image {start + row}: {problem}", start + row)
        return {metric: values.float().cpu() for metric, values in measured.items()}


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


class RemoteReward(BatchedReward):
    """A reward computed by another process: scoring runs in a thread that waits, so that this process can go on."""

    elsewhere = True
    _failures = 0
    """How many submitted parts could not be scored."""

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        # One thread: requests are answered in the order they were made.
        return ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"reward-{self.name}")

    def submit(self, images: Tensor, prompts: Sequence[str]) -> Pending:
        """Start scoring in the background, see ``Reward.submit``.

        When a part cannot be scored, parts that wait behind it are not tried: each might take its whole timeout, and
        this process could not end before.
        """
        before = self._failures

        def work() -> dict[str, Tensor]:
            if self._failures != before:
                raise RewardError(f"reward {self.name!r}: not asked, since what was to be scored before failed")
            try:
                return {self.name: self.score(images, prompts)}
            except Exception:
                self._failures += 1
                raise

        return self._thread.submit(work).result
