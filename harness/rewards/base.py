"""What a reward is: a name, and a score per picture."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from harness.foundation.errors import HarnessError
from harness.models.pipelines.truncation import TextReader

Pending = Callable[[], dict[str, Tensor]]
"""Waits for scores that were submitted: ``{component: [B]}``; raises what scoring raised."""


class RewardError(HarnessError, RuntimeError):
    """A reward cannot score, in one line: which reward, which picture where it is one, what to do."""

    def __init__(self, message: str, image: int | None = None) -> None:
        super().__init__(message)
        self.image = image
        """Index of the picture in the batch, if it is one."""


class Reward(ABC):
    """A scorer of pictures against prompts.

    Pictures are ``[B, 3, H, W]`` floats in [0, 1], already rounded to multiples of 1/255, so that the score of a
    saved PNG equals the score seen in training.
    """

    name: str
    """Key of this reward in configs, metrics and tables."""
    resolution: float = 0.0
    """Largest difference, in score units, that the rest of a batch makes to the score of one picture: scores this close
    count as equal (docs/rewards.md has what was measured). 0 where scores depend on nothing but picture and prompt."""
    is_remote: bool = False
    """Whether another process computes it, so that this one can go on meanwhile."""

    @abstractmethod
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score each picture.

        Args:
            images: ``[B, 3, H, W]`` in [0, 1], rounded to 1/255.
            prompts: B prompt strings, one per picture.

        Returns:
            ``[B]`` float32 on the CPU, higher is better.
        """

    def measure(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """All that is worth reporting of each picture: ``{metric name: [B]}``, the score under ``name``."""
        return {self.name: self.score(images, prompts)}

    @property
    def parts(self) -> "Sequence[Reward]":
        """The rewards it is made of, those of weight 0 too; a plain reward is its own only part."""
        return (self,)

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight of each component of the score; a plain reward is its own only component."""
        return {self.name: 1.0}

    def submit(self, images: Tensor, prompts: Sequence[str]) -> Pending:
        """Start scoring; the scores by component are to be summed by ``total``.

        A remote reward is under way when this returns; one computed here is done.
        """
        scores = {self.name: self.score(images, prompts)}
        return lambda: scores

    def total(self, components: Mapping[str, Tensor]) -> Tensor:
        """The score, of what ``submit`` gave."""
        return components[self.name]

    def close(self) -> None:  # noqa: B027 - most rewards hold nothing
        """Give back what the reward holds outside of this process."""

    def check_prompt(self, prompt: str) -> None:  # noqa: B027 - most rewards take any prompt
        """Raise ValueError if this reward cannot score pictures of a prompt; called before a run starts."""

    def text_readers(self) -> Sequence[TextReader]:
        """Text encoders of this reward that read the start of a prompt only; most rewards have none.

        Raises:
            RewardError: they are not on this machine.
        """
        return ()

    def check_ready(self) -> None:
        """Raise, with what to do, if something that scoring needs is not on this machine; loads no model."""
        self.fingerprint()

    @abstractmethod
    def fingerprint(self) -> str:
        """A string that changes whenever scores could change: sha256 of weights and tokenizers, precision, and version
        of the formula.

        Raises:
            HarnessError: what it needs is not on this machine.
        """


class ImageError(Exception):
    """One picture of a batch cannot be scored: its index in the batch, and why."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


class BatchedReward(Reward):
    """A reward whose scores are computed ``batch_size`` pictures at a time; the size does not change them."""

    def __init__(self, name: str, batch_size: int) -> None:
        self.name, self.batch_size = name, batch_size

    @abstractmethod
    def _measure_batch(self, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Metrics ``{name: [b]}``, the score under the reward's name.

        Args:
            levels: ``[b, 3, H, W]`` uint8 on the CPU, b <= batch_size.
            prompts: b prompt strings.

        Raises:
            ImageError: one picture cannot be scored.
            RewardError: none can.
        """

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score each picture, see ``Reward.score``.

        Raises:
            ValueError: images out of contract (``check_images``).
            RewardError: a picture cannot be scored or its score is not finite (names its index), or the model fails.
        """
        return self.measure(images, prompts)[self.name]

    def measure(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """All metrics of each picture, ``{name: [B] float32}``; raises as ``score``."""
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
            raise RewardError(f"reward {self.name!r}: picture {index}: {error}", index) from None
        except torch.OutOfMemoryError:
            raise RewardError(
                f"reward {self.name!r}: no GPU memory for {len(levels)} pictures at a time; "
                f"lower rewards.{self.name}.batch_size"
            ) from None
        for metric, values in measured.items():
            if not (finite := values.isfinite()).all():
                row = int((~finite).nonzero()[0])
                problem = f"{metric} is {values[row].item()}, not finite"
                raise RewardError(f"reward {self.name!r}: picture {start + row}: {problem}", start + row)
        return {metric: values.float().cpu() for metric, values in measured.items()}


def check_images(images: Tensor, prompts: Sequence[str], reward_name: str) -> Tensor:
    """Check what a reward was given and return the pictures as a PNG would hold them.

    Rewards compute from the returned bytes, so a score depends on the saved picture and on nothing else.

    Args:
        images: ``[B, 3, H, W]`` float32 or float64 in [0, 1], rounded to 1/255 (to within 1e-3 of a level), B >= 1.
        prompts: B prompt strings.
        reward_name: which reward complains in the errors.

    Returns:
        ``[B, 3, H, W]`` uint8 on the CPU.

    Raises:
        ValueError: wrong shape, dtype, count, range or rounding, or a value that is not finite; names the reward and,
            where it is one picture that is wrong, its index in the batch.
    """

    def check(problem: str, wrong: Tensor | bool) -> None:
        if torch.as_tensor(wrong).any():
            which = f"picture {int(wrong.flatten(1).any(1).nonzero()[0])} " if isinstance(wrong, Tensor) else ""
            raise ValueError(f"reward {reward_name!r}: {which}{problem}")

    is_shape = images.ndim == 4 and images.shape[1] == 3 and 0 not in images.shape
    check(f"pictures must be [B, 3, H, W] with B, H, W >= 1, not {list(images.shape)}", not is_shape)
    is_float = images.dtype in (torch.float32, torch.float64)
    check(f"pictures must be float32 or float64 in [0, 1], not {images.dtype}", not is_float)
    check(f"{len(images)} images but {len(prompts)} prompts", len(prompts) != len(images))
    levels = images.detach().cpu() * 255
    check("has values that are not finite", ~levels.isfinite())
    check("has values outside [0, 1]", (levels < -1e-3) | (levels > 255 + 1e-3))
    check("is not rounded: pictures must be rounded to 1/255", (levels - levels.round()).abs() > 1e-3)
    return levels.round().to(torch.uint8)
