"""The paper's published numbers, from results/paper/."""

import math
from functools import cache
from typing import Any

import pandas as pd

from harness.foundation.names import METHODS
from harness.foundation.places import ROOT

_FOLDER = ROOT / "results" / "paper"

REWARD_NAMES = {"hpsv2": "HPS-v2", "hpsv3": "HPS-v3", "hpsv3+clip": "HPS-v3 + CLIP"}
"""The paper's training rewards."""
JUDGES = ("hpsv2", "hpsv3", "ur_v2_alignment", "ur_v2_coherence", "ur_v2_style", "clip", "image_reward", "ur_v1")
"""The judges, which are columns of the paper's main table."""
_OWN_JUDGE = {"hpsv2": "hpsv2", "hpsv3": "hpsv3", "hpsv3+clip": "hpsv3"}
"""The judge by which a gain is measured: the one that was trained on."""


@cache
def main_table() -> pd.DataFrame:
    """Main table: columns training_reward ("none" for the untrained model), method, adagrpo (bool), and ``JUDGES``."""
    table = pd.read_csv(_FOLDER / "table1.csv", keep_default_na=False)
    return table.assign(adagrpo=table["adagrpo"] == "yes")


@cache
def selection_table() -> pd.DataFrame:
    """Final HPS-v3 score of Flow-GRPO by selection rule: columns strategy, final_hpsv3."""
    return pd.read_csv(_FOLDER / "selection_strategies.csv")


def reward_curves() -> pd.DataFrame:
    """Training reward of Flow-GRPO, read off the paper's figure.

    Returns:
        Columns training_reward, method ("Flow-GRPO", or "AdaGRPO" for Flow-GRPO + AdaGRPO), iteration, reward.
    """
    return pd.read_csv(_FOLDER / "reward_curves.csv")


def untrained_hpsv3() -> float:
    """HPS-v3 score of the untrained FLUX.1-dev."""
    table = main_table()
    return float(table.loc[table["training_reward"] == "none", "hpsv3"].item())


def extra_gains() -> dict[tuple[str, str], float]:
    """Extra gain of + AdaGRPO over its base method, as a share of the base's gain, by training reward and method.

    It is (AdaGRPO - base) / (base - untrained), by the judge that was trained on (HPS-v3 for HPS-v3 + CLIP).
    """
    scores: dict[Any, Any] = main_table().set_index(["training_reward", "method", "adagrpo"]).to_dict("index")
    gains = {}
    for reward, judge in _OWN_JUDGE.items():
        untrained = scores["none", "FLUX.1-dev", False][judge]
        for method in METHODS.values():
            base, ours = (scores[reward, method, adagrpo][judge] for adagrpo in (False, True))
            gains[reward, method] = (ours - base) / (base - untrained)
    return gains


_SELECTIONS = {
    "curriculum": ("random", "curriculum"),
    "medium": ("random", "medium"),
    "curriculum-medium": ("medium", "curriculum"),
    "easiest": ("easiest", "random"),
    "hardest": ("random", "hardest"),
    "medium-hardest": ("hardest", "medium"),
}
"""Strategies that a claim compares, by its name; the one that it calls worse comes first."""


def share_of_base_gain(claim: str) -> float:
    """The paper's difference for a claim, as a share of the gain of its base method; NaN if it reports none.

    The base method uses random prompts; for claims about selection rules and fusion it is Flow-GRPO.
    """
    strategies = selection_table().set_index("strategy")["final_hpsv3"]
    rows = main_table()
    finals = rows[rows["training_reward"] == "hpsv3"].set_index(["method", "adagrpo"])["hpsv3"]
    base = strategies["random"]
    if claim in _SELECTIONS:
        before, after = strategies[list(_SELECTIONS[claim])]
    elif claim in METHODS:
        base = before = finals[METHODS[claim], False]
        after = finals[METHODS[claim], True]
    elif claim == "fusion":
        before, after = strategies["curriculum"], finals["Flow-GRPO", True]
    else:
        return math.nan
    return float((after - before) / (base - untrained_hpsv3()))


def overhead() -> float:
    """AdaGRPO's extra network forwards per iteration at the paper's setting, as a share of the base's."""
    forwards = pd.read_csv(_FOLDER / "cost.csv").set_index("cell")["sample_forwards"]
    return float(forwards["adagrpo"] / forwards["base"] - 1)
