"""Base classes of rewards, which give a score to each picture."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from harness.foundation.errors import ConfigError, HarnessError
from harness.models.pipelines.truncation import TextReader

Pending = Callable[[], dict[str, Tensor]]
"""Function that waits for submitted scores and returns ``{component: [B]}``; raises what scoring raised."""


class RewardError(HarnessError, RuntimeError):
    """A reward cannot score. The message is one line: which reward, which picture if it is a single one, what to do."""

    def __init__(self, message: str, image: int | None = None) -> None:
        super().__init__(message)
        self.image = image
        """Index of the picture in the batch, if a single one is the cause."""


class Reward(ABC):
    """Function that scores pictures for prompts. A subclass defines ``measure``, or ``score`` if it has no other
    metrics.

    Pictures are ``[B, 3, H, W]`` floats in [0, 1], already rounded to multiples of 1/255, so that the score of a
    saved PNG equals the score seen in training.
    """

    name: str
    """Key of this reward in configurations, metrics and tables."""
    resolution: float = 0.0
    """Largest influence, in score units, of the rest of a batch on the score of one picture: scores this close count as
    equal (measurements are in docs/rewards.md). 0 if scores depend only on picture and prompt."""
    is_remote: bool = False
    """Whether another process computes the scores, so that this one can continue in the meantime."""

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score each picture.

        Args:
            images: ``[B, 3, H, W]`` in [0, 1], rounded to 1/255.
            prompts: B prompt strings, one per picture.

        Returns:
            ``[B]`` float32 on the CPU, higher is better.
        """
        return self.measure(images, prompts)[self.name]

    def measure(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Compute all metrics to report for each picture: ``{metric name: [B]}``, with the score under ``name``."""
        return {self.name: self.score(images, prompts)}

    @property
    def parts(self) -> "Sequence[Reward]":
        """Rewards of which this one is composed, including those of weight 0; a plain reward is its own only part."""
        return (self,)

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight of each component of the score; a plain reward is its own only component."""
        return {self.name: 1.0}

    def submit(self, images: Tensor, prompts: Sequence[str]) -> Pending:
        """Start scoring; the result is scores by component, which ``total`` combines.

        A remote reward computes in the background after this returns; a local one has finished.
        """
        scores = {self.name: self.score(images, prompts)}
        return lambda: scores

    def total(self, components: Mapping[str, Tensor]) -> Tensor:
        """Combine the scores by component of ``submit`` into the score."""
        return components[self.name]

    def close(self) -> None:  # noqa: B027 - most rewards hold nothing
        """Release what the reward holds outside this process, such as a worker."""

    def check_prompt(self, prompt: str) -> None:  # noqa: B027 - most rewards take any prompt
        """Raise ValueError if this reward cannot score pictures of a prompt; called before a run starts."""

    def text_readers(self) -> Sequence[TextReader]:
        """Text encoders of this reward that read only the start of a long prompt; most rewards have none.

        Raises:
            RewardError: their files are not on this machine.
        """
        return ()

    def check_ready(self) -> None:
        """Raise an error that says what to do if scoring needs something that is missing here; loads no model."""
        self.fingerprint()

    @abstractmethod
    def fingerprint(self) -> str:
        """String that changes whenever scores could change: the sha256 of weights and tokenizers, the precision, and
        the version of the formula.

        Raises:
            HarnessError: a file that it needs is not on this machine.
        """


class ScoringError(Exception):
    """A batch cannot be scored: the reason, and the index of the picture that causes it, if it is known."""

    def __init__(self, reason: str, image: int | None = None) -> None:
        super().__init__(reason)
        self.image = image


def require_device(name: str, device: str) -> None:
    """Raise ConfigError if a reward's ``device`` is a GPU that is not here."""
    count = torch.cuda.device_count()
    if device.startswith("cuda") and int(device.partition(":")[2] or 0) >= count:
        raise ConfigError(f"rewards.{name}.device: {device} is not here, of {count} GPUs; use another, auto or cpu")


class BatchedReward(Reward):
    """Reward that scores ``batch_size`` pictures at a time; the size changes scores by no more than ``resolution``."""

    def __init__(self, name: str, batch_size: int) -> None:
        self.name, self.batch_size = name, batch_size

    @abstractmethod
    def _measure_batch(self, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Compute metrics ``{name: [b]}``, with the score under the reward's name.

        Args:
            levels: ``[b, 3, H, W]`` uint8 on the CPU, b <= batch_size.
            prompts: b prompt strings.

        Raises:
            ScoringError: a picture cannot be scored; the first, unless the error says which.
            RewardError: no picture can be scored.
        """

    def measure(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Compute all metrics of each picture, ``{name: [B] float32}``.

        Raises:
            ValueError: invalid images, see ``check_images``.
            RewardError: a picture cannot be scored or its score is not finite (names its index), or the model fails.
        """
        levels = check_images(images, prompts, self.name)
        parts: dict[str, list[Tensor]] = defaultdict(list)
        for start in range(0, len(levels), self.batch_size):
            end = start + self.batch_size
            for metric, values in self._checked(levels[start:end], prompts[start:end], start).items():
                parts[metric].append(values)
        return {metric: torch.cat(values) for metric, values in parts.items()}

    def _checked(self, levels: Tensor, prompts: Sequence[str], start: int) -> dict[str, Tensor]:
        try:
            measured = self._measure_batch(levels, prompts)
        except ScoringError as error:
            index = start + (error.image or 0)
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
    """Check the inputs of a reward and return the pictures as bytes, as in a PNG.

    Rewards compute from the returned bytes, so that a score depends only on the saved picture.

    Args:
        images: ``[B, 3, H, W]`` float32 or float64 in [0, 1], rounded to 1/255 (to within 1e-3 of a level), B >= 1.
        prompts: B prompt strings.
        reward_name: name of the reward in error messages.

    Returns:
        ``[B, 3, H, W]`` uint8 on the CPU.

    Raises:
        ValueError: wrong shape, dtype, count, range or rounding, or a value that is not finite; names the reward and,
            if it is about values, the index of the first wrong picture.
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
