"""What the study looks at beside its primary claims: by the same rule, each claim for itself, and no conclusion."""

from collections.abc import Iterator
from typing import NamedTuple

from analysis.cells.labels import METHOD_NAMES
from analysis.claims import METRIC, Arm, Claim

REWARDS = ("ocr", "ocr-v4", "ocr+0.5*colour")
UNSEEN = {
    "ocr": ("ocr-v4", "ocr-v4/word_accuracy", "colour"),
    "ocr-v4": ("ocr", "ocr/word_accuracy", "colour"),
    "ocr+0.5*colour": ("ocr-v4", "ocr-v4/word_accuracy"),
}
"""Measures that a reward did not train on."""
VARIANTS_OF_ADAGRPO = (
    "decay 0.5",
    "decay 0.95",
    "B 6",
    "B 24",
    "G 4",
    "G 16",
    "branches 0",
    "branches 0 1 2 3",
    "P 2",
    "anchor before",
)
WEIGHTS = {5.0: 2, 15.0: 3}
"""Of fusion, beside the release's, with their planned pairs."""
_REWARD_SEEDS = 6
"""Of the cells trained on another reward than ``ocr``."""
OTHER_SETTINGS = ("G 4", "G 16", "branches 0", "branches 0 1 2 3", "P 2", "model weak", "240 iterations")
"""Of base and + AdaGRPO alike."""
BASE, ADAGRPO = Arm(), Arm(selection="curriculum", fusion_weight=1.0)


class Question(NamedTuple):
    """A claim that is not among the primary ones, and what it is measured by."""

    group: str
    claim: Claim
    metric: str = METRIC


def _adagrpo(arm: Arm) -> Arm:
    return arm._replace(selection="curriculum", fusion_weight=1.0)


def questions() -> list[Question]:
    """All that is looked at, in the order of tables."""
    return [*_components(), *_rewards(), *_unseen_judges(), *_settings()]


def _components() -> Iterator[Question]:
    few, some = 8, 12
    hardest, curriculum = Arm(selection="hardest"), Arm(selection="curriculum")
    yield Question("selection", Claim("hardest", "The hardest prompts beat random prompts", hardest, BASE, some))
    claim = Claim(
        "medium-hardest", "Median difficulty beats the hardest prompts", Arm(selection="medium"), hardest, some
    )
    yield Question("selection", claim)
    fused = Arm(fusion_weight=1.0)
    yield Question("components", Claim("fusion-alone", "Fusion alone beats the base", fused, BASE, few))
    claim = Claim("curriculum-alone", "Curriculum adds to fusion", ADAGRPO, fused, few)
    yield Question("components", claim)
    for selection in ("easiest", "hardest", "medium"):
        plain = Arm(selection=selection)
        claim = Claim(
            f"fusion-{selection}", f"Fusion adds to {selection} prompts", plain._replace(fusion_weight=1.0), plain, 4
        )
        yield Question("components", claim)
    for weight, seeds in ((1.0, 6), (15.0, 3)):
        fused = ADAGRPO._replace(fusion_weight=weight)
        statement = f"Fusion of weight {weight:g} beats its control that only rescales"
        claim = Claim(f"rescaled {weight:g}", statement, fused, fused._replace(variant="fusion rescaled"), seeds)
        yield Question("components", claim)
    longer = BASE._replace(variant="140 iterations")
    claim = Claim("equal-iterations", "+ AdaGRPO beats a base that runs as much longer", ADAGRPO, longer, few)
    yield Question("equal compute", claim)
    claim = Claim("equal-curriculum", "Curriculum beats a base that runs as much longer", curriculum, longer, few)
    yield Question("equal compute", claim)


def _rewards() -> Iterator[Question]:
    for reward in REWARDS[1:]:
        for method, name in METHOD_NAMES.items():
            base = Arm(method, reward=reward)
            statement = f"{name} + AdaGRPO beats {name}, trained on {reward}"
            yield Question("rewards", Claim(f"{method}-{reward}", statement, _adagrpo(base), base, _REWARD_SEEDS))


def _unseen_judges() -> Iterator[Question]:
    planned = {"flow_grpo": 16, "dance_grpo": 10, "flow_cps": 10}
    for reward in REWARDS:
        for method, name in METHOD_NAMES.items():
            base = Arm(method, reward=reward)
            for metric in UNSEEN[reward]:
                statement = f"{name} + AdaGRPO beats {name} in {metric}, trained on {reward}"
                seeds = planned[method] if reward == "ocr" else _REWARD_SEEDS
                claim = Claim(f"{method}-{reward}-{metric}", statement, _adagrpo(base), base, seeds)
                yield Question("unseen judges", claim, metric)


def _settings() -> Iterator[Question]:
    for variant in VARIANTS_OF_ADAGRPO:
        claim = Claim(
            variant, f"+ AdaGRPO with {variant} beats + AdaGRPO", ADAGRPO._replace(variant=variant), ADAGRPO, 2
        )
        yield Question("one at a time", claim)
    for weight, seeds in WEIGHTS.items():
        heavier = ADAGRPO._replace(fusion_weight=weight)
        claim = Claim(f"weight {weight:g}", f"Fusion weight {weight:g} beats weight 1", heavier, ADAGRPO, seeds)
        yield Question("one at a time", claim)
    own, shared = (ADAGRPO._replace(variant=v) for v in ("capability per_rank, P 2", "P 2"))
    claim = Claim("per-rank", "A capability shared by ranks beats one a rank, P 2", shared, own, 2)
    yield Question("one at a time", claim)
    for variant in OTHER_SETTINGS:
        base = BASE._replace(variant=variant)
        seeds = 1 if "iterations" in variant else 2
        claim = Claim(f"adagrpo {variant}", f"+ AdaGRPO beats the base with {variant}", _adagrpo(base), base, seeds)
        yield Question("other settings", claim)
