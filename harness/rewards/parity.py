"""Does the project score as the published packages do? Both score the same random checkpoints, preprocessing included.

A comparison that cannot fail shows nothing: the scores must differ among themselves by far more than the tolerance, and
the same comparison must fail on each of three planted errors.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.config import RewardConfig
from harness.rewards.base import Reward, RewardError
from harness.rewards.hpsv2 import SIDE, HpsV2, preprocess
from harness.rewards.hpsv3 import HpsV3, RewardModel
from harness.rewards.isolated import IsolatedReward
from harness.rewards.parity_models import PROMPTS, SIZES, pictures, write_hpsv2, write_hpsv3

TOLERANCE = 1e-5
"""Largest difference allowed between two scores of the same picture and prompt, in float32."""
SPREAD = 100 * TOLERANCE
"""Smallest spread of the scores that the comparison needs."""

REWARDS = ("hpsv2", "hpsv3")


@dataclass(frozen=True)
class Comparison:
    """Two sets of scores ``[pictures, prompts]`` of the same pictures and prompts."""

    deviation: float
    """Largest difference between the two."""
    over_pictures: float
    over_prompts: float
    """Standard deviation over pictures (prompts), averaged over prompts (pictures)."""

    @classmethod
    def of(cls, package: Tensor, project: Tensor) -> "Comparison":
        package, project = package.double(), project.double()
        over_pictures, over_prompts = (package.std(dim, correction=0).mean().item() for dim in (0, 1))
        return cls((package - project).abs().max().item(), over_pictures, over_prompts)

    @property
    def problem(self) -> str | None:
        """Why the comparison fails; None if it does not."""
        if min(self.over_pictures, self.over_prompts) < SPREAD:
            return f"the scores spread by less than {SPREAD:g}: this comparison shows nothing"
        if not self.deviation <= TOLERANCE:
            return f"package and project differ by {self.deviation:.2g}, more than {TOLERANCE:g}"
        return None


def check_parity(names: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """Compare package and project on each reward, print the figures, and return what failed.

    Args:
        names: of ``REWARDS``; their environments must be there.
        say: receives a line at a time.

    Raises:
        RewardError: an environment is missing, or a reward cannot score.
    """
    problems = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="adagrpo-parity-") as folder:
            say(f"{name}: writing a random checkpoint")
            compare, planted = {"hpsv2": _hpsv2, "hpsv3": _hpsv3}[name](Path(folder), say)
        say(
            f"{name}: largest difference {compare.deviation:.2g}; scores spread by {compare.over_pictures:.2g} over "
            f"pictures and {compare.over_prompts:.2g} over prompts"
        )
        if compare.problem:
            problems.append(f"{name}: {compare.problem}")
        for error, comparison in planted.items():
            say(f"{name}: planted error, {error}: largest difference {comparison.deviation:.2g}")
            if comparison.deviation <= TOLERANCE:
                problems.append(f"{name}: {error} goes unnoticed")
    return problems


Outcome = tuple[Comparison, dict[str, Comparison]]


def _hpsv2(folder: Path, say: Callable[[str], None]) -> Outcome:
    write_hpsv2(folder / "HPS_v2.1_compressed.pt")
    settings = RewardConfig(path=str(folder / "HPS_v2.1_compressed.pt"), precision="fp32", device="cpu")
    package = _package_scores("hpsv2", settings, say)
    project = HpsV2(settings)
    say("hpsv2: the project scores")
    comparison = Comparison.of(package, _scores(project, PROMPTS))
    cropping = HpsV2(settings)
    vars(cropping)["_towers"] = replace(project._towers, pixels=_centre_crop)
    one = PROMPTS[:1]  # a planted error that one prompt shows need not be paid for eight times
    return comparison, {
        "centre crop instead of padding": Comparison.of(package[:, :1], _scores(cropping, one)),
        "shuffled prompts": Comparison.of(package[:, :1], _scores(project, PROMPTS[1:2])),
    }


def _hpsv3(folder: Path, say: Callable[[str], None]) -> Outcome:
    checkpoint, base = write_hpsv3(folder)
    settings = RewardConfig(path=str(checkpoint), base=str(base), precision="fp32", device="cpu")
    package = _package_scores("hpsv3", settings, say)
    project, on_a_plane = HpsV3(settings), HpsV3(settings)
    on_a_plane.model_class = _OnAPlane
    say("hpsv3: the project scores")
    return Comparison.of(package, _scores(project, PROMPTS)), {
        "shuffled prompts": Comparison.of(package, _scores(project, (*PROMPTS[1:], PROMPTS[0]))),
        "mrope positions": Comparison.of(package, _scores(on_a_plane, PROMPTS)),
    }


def _package_scores(name: str, settings: RewardConfig, say: Callable[[str], None]) -> Tensor:
    reward = IsolatedReward(name, settings.model_copy(update={"backend": "package"}))
    say(f"{name}: the package scores {len(SIZES)} pictures for {len(PROMPTS)} prompts")
    try:
        return _scores(reward, PROMPTS)
    finally:
        reward.close()


def _scores(reward: Reward, prompts: Sequence[str]) -> Tensor:
    """``[pictures, prompts]``."""
    rows = []
    for picture in pictures():
        images = (picture.float() / 255).expand(len(prompts), -1, -1, -1)
        rows.append(reward.score(images, prompts))
    return torch.stack(rows)


# --- planted errors -------------------------------------------------------------------------------------------------


def _centre_crop(levels: Tensor) -> Tensor:
    """The preprocessing of CLIP itself: shortest side to 224, then the middle square."""
    height, width = levels.shape[-2:]
    scale = SIDE / min(height, width)
    size = round(height * scale), round(width * scale)
    pixels = F.interpolate(levels.float() / 255, size, mode="bicubic", antialias=True, align_corners=False)
    top, left = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    square = pixels[..., top : top + SIDE, left : left + SIDE].clamp(0, 1)
    return preprocess((square * 255).round().to(torch.uint8))


class _OnAPlane(RewardModel):
    """Picture tokens where Qwen2-VL places them: on a plane of rows and columns."""

    def positions(self, ids: Tensor, grid: Tensor) -> Tensor:
        kinds = (ids == self.backbone.config.image_token_id).int()
        return self.backbone.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=grid)[0]


def require(names: Sequence[str]) -> None:
    """Raise RewardError for a name without a package to compare with."""
    for name in names:
        if name not in REWARDS:
            raise RewardError(f"no package to compare {name!r} with; there are {', '.join(REWARDS)}")
