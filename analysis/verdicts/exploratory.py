"""What the study looks at beside its primary claims: by the same rule, each claim for itself, and no conclusion."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from analysis.cells.equal_cost import equal_cost_pair
from analysis.cells.labels import METHOD_NAMES, Cell
from analysis.cells.spending import AXES
from analysis.cells.study import Study
from analysis.claims import MARGIN, METRIC, PRIMARY, Arm, Claim, Pair
from analysis.verdicts.stability import roughness_pair

REWARDS = ("ocr", "ocr-v4", "ocr+0.5*colour")
UNSEEN = {
    "ocr": ("ocr-v4", "ocr-v4/word_accuracy", "colour"),
    "ocr-v4": ("ocr", "ocr/word_accuracy", "colour"),
    "ocr+0.5*colour": ("ocr-v4", "ocr-v4/word_accuracy"),
}
"""Measures that a reward did not train on."""
VARIANTS_OF_ADAGRPO = (
    *("decay 0.5", "decay 0.95", "B 6", "B 24", "G 4", "G 16"),
    *("branches 0", "branches 0 1 2 3", "P 2", "anchor before"),
)
WEIGHTS = {5.0: 2, 15.0: 3}
"""Weights of fusion beside the release's, with their planned pairs."""
_REWARD_SEEDS = 6
"""Seeds of the cells trained on another reward than ``ocr``."""
OTHER_SETTINGS = ("G 4", "G 16", "branches 0", "branches 0 1 2 3", "P 2", "model weak", "240 iterations")
"""Variants of base and + AdaGRPO alike."""
BASE, ADAGRPO = Arm(), Arm(selection="curriculum", fusion_weight=1.0)


PairOf = Callable[..., tuple[list[int], Pair]]
"""Makes the pair of a study and two cells, among some seeds."""


class Question(NamedTuple):
    """A claim that is not among the primary ones, and what it is measured by."""

    group: str
    claim: Claim
    measure: str = METRIC
    margin: float | None = MARGIN
    pair_of: PairOf | None = None
    """What finds the values; None for the measure's final ones, on test words."""


def questions() -> list[Question]:
    """All that is looked at, in the order of tables."""
    return [*_components(), *_rewards(), *_unseen_judges(), *_settings(), *_curves()]


def _asked(group: str, name: str, statement: str, treatment: Arm, control: Arm, seeds: int) -> Question:
    return Question(group, Claim(name, statement, treatment, control, seeds))


def _adagrpo(arm: Arm) -> Arm:
    return arm._replace(selection="curriculum", fusion_weight=1.0)


def _components() -> Iterator[Question]:
    few, some = 8, 12
    medium, hardest, curriculum = (Arm(selection=selection) for selection in ("medium", "hardest", "curriculum"))
    yield _asked("selection", "hardest", "The hardest prompts beat random prompts", hardest, BASE, some)
    beats_hardest = "Median difficulty beats the hardest prompts"
    yield _asked("selection", "medium-hardest", beats_hardest, medium, hardest, some)
    fused = Arm(fusion_weight=1.0)
    yield _asked("components", "fusion-alone", "Fusion alone beats the base", fused, BASE, few)
    yield _asked("components", "curriculum-alone", "Curriculum adds to fusion", ADAGRPO, fused, few)
    for selection in ("easiest", "hardest", "medium"):
        plain, statement = Arm(selection=selection), f"Fusion adds to {selection} prompts"
        yield _asked("components", f"fusion-{selection}", statement, plain._replace(fusion_weight=1.0), plain, 4)
    for weight, seeds in ((1.0, 6), (15.0, 3)):
        fused = ADAGRPO._replace(fusion_weight=weight)
        statement = f"Fusion of weight {weight:g} beats its control that only rescales"
        control = fused._replace(variant="fusion rescaled")
        yield _asked("components", f"rescaled {weight:g}", statement, fused, control, seeds)
    longer = BASE._replace(variant="140 iterations")
    for name, what, arm in (("iterations", "+ AdaGRPO", ADAGRPO), ("curriculum", "Curriculum", curriculum)):
        statement = f"{what} beats a base that runs as much longer"
        yield _asked("equal compute", f"equal-{name}", statement, arm, longer, few)


def _rewards() -> Iterator[Question]:
    for reward in REWARDS[1:]:
        for method, name in METHOD_NAMES.items():
            base, statement = Arm(method, reward=reward), f"{name} + AdaGRPO beats {name}, trained on {reward}"
            yield _asked("rewards", f"{method}-{reward}", statement, _adagrpo(base), base, _REWARD_SEEDS)


def _unseen_judges() -> Iterator[Question]:
    planned = {"flow_grpo": 16, "dance_grpo": 10, "flow_cps": 10}
    for reward in REWARDS:
        for method, name in METHOD_NAMES.items():
            base, seeds = Arm(method, reward=reward), planned[method] if reward == "ocr" else _REWARD_SEEDS
            for metric in UNSEEN[reward]:
                statement = f"{name} + AdaGRPO beats {name} in {metric}, trained on {reward}"
                claim = Claim(f"{method}-{reward}-{metric}", statement, _adagrpo(base), base, seeds)
                yield Question("unseen judges", claim, metric, None)


def _settings() -> Iterator[Question]:
    group = "one at a time"
    for variant in VARIANTS_OF_ADAGRPO:
        other, statement = ADAGRPO._replace(variant=variant), f"+ AdaGRPO with {variant} beats + AdaGRPO"
        yield _asked(group, variant, statement, other, ADAGRPO, 2)
    for weight, seeds in WEIGHTS.items():
        heavier, name = ADAGRPO._replace(fusion_weight=weight), f"weight {weight:g}"
        yield _asked(group, name, f"Fusion {name} beats weight 1", heavier, ADAGRPO, seeds)
    own, shared = (ADAGRPO._replace(variant=v) for v in ("capability per_rank, P 2", "P 2"))
    yield _asked(group, "per-rank", "A capability shared by ranks beats one a rank, P 2", shared, own, 2)
    for variant in OTHER_SETTINGS:
        base, statement = BASE._replace(variant=variant), f"+ AdaGRPO beats the base with {variant}"
        seeds = 1 if "iterations" in variant else 2
        yield _asked("other settings", f"adagrpo {variant}", statement, _adagrpo(base), base, seeds)


def _curves() -> Iterator[Question]:
    """What is read off the curves of base and + AdaGRPO: values at equal cost, and which is smoother."""
    for claim in (claim for claim in PRIMARY if claim.name in METHOD_NAMES):
        for axis in AXES:
            statement = claim.statement.replace(" beats ", " at equal cost beats ")
            at_cost = claim._replace(name=f"{claim.name} by {axis.name}", statement=statement)
            measure, pair_of = f"validation reward at equal {axis.words}", partial(equal_cost_pair, axis=axis.name)
            yield Question("equal compute", at_cost, measure, pair_of=pair_of)
        statement = claim.statement.replace(" beats ", " has smoother curves than ")
        smoother = claim._replace(name=f"smooth-{claim.name}", statement=statement)
        yield Question("stability", smoother, "roughness of the base less its own", None, _less_rough)


def _less_rough(study: Study, treatment: Cell, control: Cell, among: Sequence[int]) -> tuple[list[int], Pair]:
    return roughness_pair(study, control, treatment, among)
