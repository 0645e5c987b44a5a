"""The page that says how packages and project compared: docs/reward-parity.md."""

import importlib.metadata
from collections.abc import Mapping

from harness.rewards.files.twin_models import PROMPTS, SIZES
from harness.rewards.parity import SPREAD, TOLERANCE, Outcome
from harness.rewards.remote.isolated import REQUIREMENTS

_TITLES = {"hpsv2": "HPS-v2", "hpsv3": "HPS-v3"}
_CHECKPOINTS = {
    "hpsv2": "ViT-H/14, 986 million weights, float16 file",
    "hpsv3": "a small Qwen2-VL and the full-size head",
}


def table(outcomes: Mapping[str, Outcome]) -> list[str]:
    """Markdown lines: a column a reward."""
    rows = {
        "package": [_versions(name, (name,)) for name in outcomes],
        "its environment": [_versions(name, ("torch", "transformers", "open_clip_torch")) for name in outcomes],
        "checkpoint": [_CHECKPOINTS[name] for name in outcomes],
        "scores compared": [str(len(outcome.pairs)) for outcome in outcomes.values()],
        "largest difference": [f"{outcome.comparison.deviation:.1e}" for outcome in outcomes.values()],
        "spread over pictures (one prompt)": [f"{o.comparison.over_pictures:.2g}" for o in outcomes.values()],
        "spread over prompts (one picture)": [f"{o.comparison.over_prompts:.2g}" for o in outcomes.values()],
    }
    for error in dict.fromkeys(error for outcome in outcomes.values() for error in outcome.planted):
        found = (outcome.planted.get(error) for outcome in outcomes.values())
        rows[f"planted error: {error}"] = ["" if value is None else f"{value:.2g}" for value in found]
    rows["verdict"] = ["; ".join(outcome.problems) or "the same scores" for outcome in outcomes.values()]
    heads = ["", *(_TITLES[name] for name in outcomes)]
    lines = [heads, ["---"] * len(heads), *([key, *cells] for key, cells in rows.items())]
    return [f"| {' | '.join(cells)} |" for cells in lines]


_PAGE = """\
# Rewards and the packages they were published with

Written by `make check-reward-parity`. Both sides score the same checkpoints of random weights, each in its own
environment (this project: {here}): uint8 pictures of {sizes} and {num_prompts} prompts
(quotes, HTML, accents, Chinese, one too long for CLIP), preprocessing included, float32 on a CPU.

The check fails above {tolerance:g}. It also fails if the scores spread (standard deviation) by less than {spread:g},
or if one of the planted errors goes unnoticed: their rows are the largest difference that each makes.

{table}
"""


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


def _versions(reward: str, packages: tuple[str, ...]) -> str:
    """Those of the packages that a reward's environment pins."""
    pins = dict(
        line.split("==")
        for line in (REQUIREMENTS / f"{reward}.txt").read_text(encoding="utf-8").split()
        if "==" in line
    )
    return ", ".join(f"{package} {pins[package]}" for package in packages if package in pins)
