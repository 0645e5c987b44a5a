"""Does the project score as the published packages do? Both score the same random checkpoints, preprocessing included.

``python -m tests.parity [NAME ...] [--output PAGE]``, which ``make check-reward-parity`` calls. A comparison that
cannot fail shows nothing: the scores must differ among themselves by far more than the tolerance, and the same
comparison must fail on each planted error.
"""

import argparse
import importlib.metadata
import math
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.config import RewardConfig
from harness.foundation.errors import HarnessError
from harness.foundation.files import write_atomically
from harness.foundation.names import REWARDS
from harness.rewards.base import Reward
from harness.rewards.files.twins import PROMPTS, write_hpsv2, write_hpsv3
from harness.rewards.native.hpsv2 import SIDE, HpsV2, preprocess
from harness.rewards.native.hpsv3 import HpsV3, RewardModel
from harness.rewards.native.open_clip import vit_h_14
from harness.rewards.remote.isolated import REQUIREMENTS, IsolatedReward

TOLERANCE = 1e-5
"""Largest difference allowed between two scores of the same picture and prompt, in float32."""
SPREAD = 100 * TOLERANCE
"""Smallest spread of the scores that the comparison needs."""
SIZES = ((512, 512), (768, 1024), (900, 300))
"""Height and width of the pictures."""

Pairs = Sequence[tuple[int, int]]
"""Which pictures are scored for which prompts, by number."""

EVERY_PAIR: Pairs = [(picture, prompt) for picture in range(len(SIZES)) for prompt in range(len(PROMPTS))]
EACH_ONCE: Pairs = [(picture, prompt) for picture, prompt in EVERY_PAIR if 0 in (picture, prompt)]
"""Every picture for the first prompt, every prompt for the first picture: all that a model of two towers can show."""


@dataclass(frozen=True)
class Outcome:
    """How package and project compare on one reward."""

    package: Tensor
    project: Tensor
    pairs: Pairs
    planted: Mapping[str, float]
    """Largest difference that each planted error makes."""

    @property
    def deviation(self) -> float:
        """Largest difference between the two."""
        return deviation(self.package, self.project)

    @property
    def spreads(self) -> tuple[float, float]:
        """Standard deviation over all pictures for the first prompt, and over all prompts for the first picture."""
        rows = torch.tensor([[prompt == 0, picture == 0] for picture, prompt in self.pairs])
        over_pictures, over_prompts = (self.package[of].double().std(correction=0).item() for of in rows.T)
        return over_pictures, over_prompts

    @property
    def problems(self) -> list[str]:
        """Why the check fails; empty if it does not."""
        problems = [f"{error} goes unnoticed" for error, found in self.planted.items() if found <= TOLERANCE]
        if min(self.spreads) < SPREAD:
            problems.append(f"the scores spread by less than {SPREAD:g}: this comparison shows nothing")
        if not self.deviation <= TOLERANCE:
            problems.append(f"package and project differ by {self.deviation:.2g}, more than {TOLERANCE:g}")
        return problems


def deviation(first: Tensor, second: Tensor) -> float:
    """The largest difference."""
    return (first.double() - second.double()).abs().max().item()


def pictures() -> list[Tensor]:
    """One uint8 picture ``[3, H, W]`` of each size: coloured waves, a dark block off the centre, and noise."""
    generator = torch.Generator().manual_seed(7)
    found = []
    for number, (height, width) in enumerate(SIZES, start=1):
        rows, columns = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
        phase = 2 * math.pi * torch.rand(3, 1, 1, generator=generator)
        waves = 0.5 + 0.4 * torch.sin(2 * math.pi * (number * rows + (number + 1) * columns) + phase)
        waves[:, : height // 4, : width // 5] *= 0.2
        noise = 0.1 * torch.randn(3, height, width, generator=generator)
        found.append(((waves + noise).clamp(0, 1) * 255).round().to(torch.uint8))
    return found


def compare_hpsv2(folder: Path) -> Outcome:
    """At full size: 986 million weights."""
    write_hpsv2(folder / "HPS_v2.1_compressed.pt", vit_h_14())
    settings = RewardConfig(path=str(folder / "HPS_v2.1_compressed.pt"), precision="fp32", device="cpu")
    package = _of_package("hpsv2", settings, EACH_ONCE)
    project, cropping = HpsV2("hpsv2", settings), HpsV2("hpsv2", settings)
    cropping.pixels = centre_crop
    # A planted error that a few pairs show need not be paid for on all.
    few: Pairs = [(1, 0), (2, 0)]
    rows = [EACH_ONCE.index(pair) for pair in few]
    planted = {
        "centre crop instead of padding": deviation(package[rows], _scores(cropping, few)),
        "shuffled prompts": deviation(package[rows], _scores(project, few, shuffled=True)),
    }
    return Outcome(package, _scores(project, EACH_ONCE), EACH_ONCE, planted)


def compare_hpsv3(folder: Path) -> Outcome:
    """With a small Qwen2-VL and the head at full size."""
    checkpoint, base = write_hpsv3(folder)
    settings = RewardConfig(path=str(checkpoint), base=str(base), precision="fp32", device="cpu")
    package = _of_package("hpsv3", settings, EVERY_PAIR)
    project, on_a_plane = HpsV3("hpsv3", settings), HpsV3("hpsv3", settings)
    on_a_plane.model_class = OnAPlane
    planted = {
        "shuffled prompts": deviation(package, _scores(project, EVERY_PAIR, shuffled=True)),
        "mrope positions": deviation(package, _scores(on_a_plane, EVERY_PAIR)),
    }
    return Outcome(package, _scores(project, EVERY_PAIR), EVERY_PAIR, planted)


COMPARISONS = {"hpsv2": compare_hpsv2, "hpsv3": compare_hpsv3}


def _of_package(name: str, settings: RewardConfig, pairs: Pairs) -> Tensor:
    reward = IsolatedReward(name, settings.model_copy(update={"backend": "package"}))
    print(
        f"{name}: the package scores {len(pairs)} pairs of {len(SIZES)} pictures and {len(PROMPTS)} prompts", flush=True
    )
    try:
        return _scores(reward, pairs)
    finally:
        reward.close()


def _scores(reward: Reward, pairs: Pairs, shuffled: bool = False) -> Tensor:
    """``[pairs]``; shuffled, every picture is scored for the next prompt."""
    scores = torch.empty(len(pairs))
    for number, picture in enumerate(pictures()):
        rows = [row for row, (of, _) in enumerate(pairs) if of == number]
        prompts = [PROMPTS[(pairs[row][1] + shuffled) % len(PROMPTS)] for row in rows]
        if rows:
            scores[rows] = reward.score((picture.float() / 255).expand(len(rows), -1, -1, -1), prompts)
    return scores


# --- planted errors -------------------------------------------------------------------------------------------------


def centre_crop(levels: Tensor) -> Tensor:
    """The preprocessing of CLIP itself: shortest side to 224, then the middle square."""
    height, width = levels.shape[-2:]
    scale = SIDE / min(height, width)
    size = round(height * scale), round(width * scale)
    pixels = F.interpolate(levels.float() / 255, size, mode="bicubic", antialias=True, align_corners=False)
    top, left = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    square = pixels[..., top : top + SIDE, left : left + SIDE].clamp(0, 1)
    return preprocess((square * 255).round().to(torch.uint8))


class OnAPlane(RewardModel):
    """Picture tokens where Qwen2-VL places them: on a plane of rows and columns."""

    def positions(self, ids: Tensor, grid: Tensor) -> Tensor:
        kinds = (ids == self.backbone.config.image_token_id).int()
        return self.backbone.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=grid)[0]


# --- the page: docs/reward-parity.md --------------------------------------------------------------------------------

_CHECKPOINTS = {
    "hpsv2": "ViT-H/14, 986 million weights, float16 file",
    "hpsv3": "a small Qwen2-VL and the full-size head",
}
_PAGE = """\
# Rewards and the packages they were published with

Written by `make check-reward-parity`. Both sides score the same checkpoints of random weights, each in its own
environment (this project: {here}): uint8 pictures of {sizes} and {num_prompts} prompts
(quotes, HTML, accents, Chinese, one too long for CLIP), preprocessing included, float32 on a CPU.

The check fails above {tolerance:g}. It also fails if the scores spread (standard deviation) by less than {spread:g},
or if one of the planted errors goes unnoticed: their rows are the largest difference that each makes.

{table}
"""


def table(outcomes: Mapping[str, Outcome]) -> list[str]:
    """Markdown lines: a column per reward."""
    planted = dict.fromkeys(error for outcome in outcomes.values() for error in outcome.planted)
    columns = [_column(name, outcome, planted) for name, outcome in outcomes.items()]
    return [f"| {head} | {' | '.join(column[head] for column in columns)} |" for head in columns[0]]


def _column(name: str, outcome: Outcome, planted: Iterable[str]) -> dict[str, str]:
    over_pictures, over_prompts = outcome.spreads
    errors = {error: f"{outcome.planted[error]:.2g}" if error in outcome.planted else "" for error in planted}
    return {
        "": REWARDS[name].label,
        "---": "---",
        "package": _versions(name, name),
        "its environment": _versions(name, "torch", "transformers", "open_clip_torch"),
        "checkpoint": _CHECKPOINTS[name],
        "scores compared": str(len(outcome.pairs)),
        "largest difference": f"{outcome.deviation:.1e}",
        "spread over pictures (one prompt)": f"{over_pictures:.2g}",
        "spread over prompts (one picture)": f"{over_prompts:.2g}",
        **{f"planted error: {error}": made for error, made in errors.items()},
        "verdict": "; ".join(outcome.problems) or "the same scores",
    }


def page(outcomes: Mapping[str, Outcome]) -> str:
    """The whole page."""
    return _PAGE.format(
        here=", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("torch", "transformers")),
        sizes=", ".join(f"{width}x{height}" for height, width in SIZES),
        num_prompts=len(PROMPTS),
        tolerance=TOLERANCE,
        spread=SPREAD,
        table="\n".join(table(outcomes)),
    )


def _versions(reward: str, *packages: str) -> str:
    """Versions of the packages that a reward's environment pins."""
    lines = (REQUIREMENTS / f"{reward}.txt").read_text(encoding="utf-8").split()
    pins = dict(line.split("==") for line in lines if "==" in line)
    return ", ".join(f"{package} {pins[package]}" for package in packages if package in pins)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="hpsv2, hpsv3 (default: both); a few minutes")
    parser.add_argument("--output", type=Path, help="page to write, such as docs/reward-parity.md (default: none)")
    options = parser.parse_args(arguments)
    names = options.names or list(COMPARISONS)
    if unknown := set(names) - set(COMPARISONS):
        parser.error(f"no package to compare {', '.join(unknown)} with; there are {', '.join(COMPARISONS)}")
    outcomes = {}
    try:
        for name in names:
            _ = IsolatedReward(name, RewardConfig()).command  # minutes may pass before a missing one would be noticed
        for name in names:
            with tempfile.TemporaryDirectory(prefix="adagrpo-parity-") as folder:
                outcomes[name] = COMPARISONS[name](Path(folder))
    except HarnessError as error:
        parser.error(str(error))
    print("\n".join(table(outcomes)))
    if options.output is not None:
        write_atomically(options.output, page(outcomes))
    problems = [f"{name}: {problem}" for name, outcome in outcomes.items() for problem in outcome.problems]
    for problem in problems:
        print(f"FAILED {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
