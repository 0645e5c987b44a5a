"""Does the project score as the published packages do? Both score the same random checkpoints, preprocessing included.

A comparison that cannot fail shows nothing: the scores must differ among themselves by far more than the tolerance, and
the same comparison must fail on each of three planted errors.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.config import RewardConfig
from harness.rewards.base import Reward, RewardError
from harness.rewards.files.twin_models import PROMPTS, SIZES, pictures, write_hpsv2, write_hpsv3
from harness.rewards.native.hpsv2 import SIDE, HpsV2, preprocess
from harness.rewards.native.hpsv3 import HpsV3, RewardModel
from harness.rewards.remote.isolated import IsolatedReward

TOLERANCE = 1e-5
"""Largest difference allowed between two scores of the same picture and prompt, in float32."""
SPREAD = 100 * TOLERANCE
"""Smallest spread of the scores that the comparison needs."""

REWARDS = ("hpsv2", "hpsv3")


Pairs = Sequence[tuple[int, int]]
"""Which pictures are scored for which prompts, by number."""

EVERY_PAIR: Pairs = [(picture, prompt) for picture in range(len(SIZES)) for prompt in range(len(PROMPTS))]
EACH_ONCE: Pairs = [(picture, prompt) for picture, prompt in EVERY_PAIR if 0 in (picture, prompt)]
"""Every picture for the first prompt, every prompt for the first picture: all that a model of two towers can show."""


@dataclass(frozen=True)
class Comparison:
    """Two sets of scores of the same pairs."""

    deviation: float
    """Largest difference between the two."""
    over_pictures: float
    """Standard deviation over all pictures for the first prompt."""
    over_prompts: float
    """Standard deviation over all prompts for the first picture."""

    @classmethod
    def of(cls, package: Tensor, project: Tensor, pairs: Pairs) -> "Comparison":
        """Compare ``[pairs]`` scores."""
        for_prompt = torch.tensor([prompt == 0 for _, prompt in pairs])
        of_picture = torch.tensor([picture == 0 for picture, _ in pairs])
        spreads = (package[rows].double().std(correction=0).item() for rows in (for_prompt, of_picture))
        return cls(_deviation(package, project), *spreads)

    @property
    def problem(self) -> str | None:
        """Why the comparison fails; None if it does not."""
        if min(self.over_pictures, self.over_prompts) < SPREAD:
            return f"the scores spread by less than {SPREAD:g}: this comparison shows nothing"
        if not self.deviation <= TOLERANCE:
            return f"package and project differ by {self.deviation:.2g}, more than {TOLERANCE:g}"
        return None


@dataclass(frozen=True)
class Outcome:
    """How package and project compare on one reward."""

    pairs: Pairs
    comparison: Comparison
    planted: Mapping[str, float]
    """Largest difference that each planted error makes."""

    @property
    def problems(self) -> list[str]:
        """Why the check fails; empty if it does not."""
        unnoticed = [f"{error} goes unnoticed" for error, deviation in self.planted.items() if deviation <= TOLERANCE]
        return [*([self.comparison.problem] if self.comparison.problem else []), *unnoticed]


def check_parity(names: Sequence[str], say: Callable[[str], None]) -> dict[str, Outcome]:
    """Compare package and project on each reward.

    Args:
        names: of ``REWARDS``; their environments must be there.
        say: receives a line of progress at a time.

    Raises:
        RewardError: no such reward, its environment is missing, or it cannot score.
    """
    for name in names:
        if name not in REWARDS:
            raise RewardError(f"no package to compare {name!r} with; there are {', '.join(REWARDS)}")
        _ = IsolatedReward(name, RewardConfig()).command  # minutes may pass before a missing one would be noticed
    outcomes = {}
    for name in names:
        with tempfile.TemporaryDirectory(prefix="adagrpo-parity-") as folder:
            say(f"{name}: writing a random checkpoint")
            outcomes[name] = {"hpsv2": _hpsv2, "hpsv3": _hpsv3}[name](Path(folder), say)
    return outcomes


def _hpsv2(folder: Path, say: Callable[[str], None]) -> Outcome:
    write_hpsv2(folder / "HPS_v2.1_compressed.pt")
    settings = RewardConfig(path=str(folder / "HPS_v2.1_compressed.pt"), precision="fp32", device="cpu")
    package = _package_scores("hpsv2", settings, EACH_ONCE, say)
    project, cropping = HpsV2(settings), HpsV2(settings)
    comparison = Comparison.of(package, _scores(project, EACH_ONCE), EACH_ONCE)
    vars(cropping)["_towers"] = replace(project._towers, pixels=_centre_crop)
    # A planted error that a few pairs show need not be paid for on all.
    few: Pairs = [(1, 0), (2, 0)]
    rows = [EACH_ONCE.index(pair) for pair in few]
    planted = {
        "centre crop instead of padding": _deviation(package[rows], _scores(cropping, few)),
        "shuffled prompts": _deviation(package[rows], _scores(project, few, shuffled=True)),
    }
    return Outcome(EACH_ONCE, comparison, planted)


def _hpsv3(folder: Path, say: Callable[[str], None]) -> Outcome:
    checkpoint, base = write_hpsv3(folder)
    settings = RewardConfig(path=str(checkpoint), base=str(base), precision="fp32", device="cpu")
    package = _package_scores("hpsv3", settings, EVERY_PAIR, say)
    project, on_a_plane = HpsV3(settings), HpsV3(settings)
    on_a_plane.model_class = _OnAPlane
    planted = {
        "shuffled prompts": _deviation(package, _scores(project, EVERY_PAIR, shuffled=True)),
        "mrope positions": _deviation(package, _scores(on_a_plane, EVERY_PAIR)),
    }
    return Outcome(EVERY_PAIR, Comparison.of(package, _scores(project, EVERY_PAIR), EVERY_PAIR), planted)


def _package_scores(name: str, settings: RewardConfig, pairs: Pairs, say: Callable[[str], None]) -> Tensor:
    reward = IsolatedReward(name, settings.model_copy(update={"backend": "package"}))
    say(f"{name}: the package scores {len(pairs)} pairs of {len(SIZES)} pictures and {len(PROMPTS)} prompts")
    try:
        scores = _scores(reward, pairs)
    finally:
        reward.close()
    say(f"{name}: the project scores")
    return scores


def _scores(reward: Reward, pairs: Pairs, shuffled: bool = False) -> Tensor:
    """``[pairs]``; shuffled, every picture is scored for the next prompt."""
    scores = torch.empty(len(pairs))
    for number, picture in enumerate(pictures()):
        rows = [row for row, (of, _) in enumerate(pairs) if of == number]
        prompts = [PROMPTS[(pairs[row][1] + shuffled) % len(PROMPTS)] for row in rows]
        if rows:
            scores[rows] = reward.score((picture.float() / 255).expand(len(rows), -1, -1, -1), prompts)
    return scores


def _deviation(first: Tensor, second: Tensor) -> float:
    """The largest difference."""
    return (first.double() - second.double()).abs().max().item()


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
