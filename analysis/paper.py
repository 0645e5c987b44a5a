"""The paper's published numbers, from results/paper/."""

import math
from collections.abc import Iterator

import pandas as pd

from harness.foundation.places import ROOT

_FOLDER = ROOT / "results" / "paper"

REWARD_NAMES = {"hpsv2": "HPS-v2", "hpsv3": "HPS-v3", "hpsv3+clip": "HPS-v3 + CLIP"}
"""The paper's training rewards."""
JUDGES = ("hpsv2", "hpsv3", "ur_v2_alignment", "ur_v2_coherence", "ur_v2_style", "clip", "image_reward", "ur_v1")
"""The judges, which are columns of the paper's main table."""
_OWN_JUDGE = {"hpsv2": "hpsv2", "hpsv3": "hpsv3", "hpsv3+clip": "hpsv3"}


def main_table() -> pd.DataFrame:
    """Main table: columns training_reward ("none" for the untrained model), method, adagrpo (bool), and ``JUDGES``."""
    table = pd.read_csv(_FOLDER / "table1.csv", keep_default_na=False)
    return table.assign(adagrpo=table["adagrpo"] == "yes")


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


def extra_gains() -> pd.DataFrame:
    """Extra gain of + AdaGRPO over its base method, as a share of the base's gain over the untrained model.

    It is (AdaGRPO - base) / (base - untrained), by the judge that was trained on (HPS-v3 for HPS-v3 + CLIP).

    Returns:
        Columns training_reward, method, share.
    """
    untrained = main_table().query("training_reward == 'none'").iloc[0]
    rows = []
    for reward, method, base, ours in _pairs():
        judge = _OWN_JUDGE[reward]
        rows.append((reward, method, (ours[judge] - base[judge]) / (base[judge] - untrained[judge])))
    return pd.DataFrame(rows, columns=["training_reward", "method", "share"])


def _pairs() -> Iterator[tuple[str, str, pd.Series, pd.Series]]:
    """Yield training reward, method, and the rows of the main table without and with AdaGRPO."""
    table = main_table().query("training_reward != 'none'")
    for (reward, method), pair in table.groupby(["training_reward", "method"]):
        [base], [ours] = ([row for _, row in pair[pair["adagrpo"] == adagrpo].iterrows()] for adagrpo in (False, True))
        yield str(reward), str(method), base, ours


_SELECTIONS = {
    "curriculum": ("random", "curriculum"),
    "medium": ("random", "medium"),
    "curriculum-medium": ("medium", "curriculum"),
    "easiest": ("easiest", "random"),
    "hardest": ("random", "hardest"),
    "medium-hardest": ("hardest", "medium"),
}
"""Strategies that a claim compares, by its name; the one that it calls worse comes first."""
_METHODS = {"flow_grpo": "Flow-GRPO", "dance_grpo": "DanceGRPO", "flow_cps": "Flow-CPS"}
"""Method that + AdaGRPO is claimed to improve, by the claim's name."""


def ends_of(claim: str) -> tuple[float, float] | None:
    """Final HPS-v3 scores of a claim's control and treatment, by its name; None if the paper reports none."""
    strategies = selection_table().set_index("strategy")["final_hpsv3"]
    rows = main_table()
    finals = rows[rows["training_reward"] == "hpsv3"].set_index(["method", "adagrpo"])["hpsv3"]
    if claim in _SELECTIONS:
        before, after = _SELECTIONS[claim]
        return float(strategies[before]), float(strategies[after])
    if claim in _METHODS:
        return float(finals[_METHODS[claim], False]), float(finals[_METHODS[claim], True])
    return (float(strategies["curriculum"]), float(finals["Flow-GRPO", True])) if claim == "fusion" else None


def share_of_base_gain(claim: str) -> float:
    """The paper's difference for a claim, as a share of the gain of its base method; NaN if it reports none.

    The base method uses random prompts; for claims about selection rules and fusion it is Flow-GRPO.
    """
    ends = ends_of(claim)
    random = float(selection_table().set_index("strategy")["final_hpsv3"]["random"])
    base = ends[0] if ends and claim in _METHODS else random
    return (ends[1] - ends[0]) / (base - untrained_hpsv3()) if ends else math.nan


def overhead() -> float:
    """AdaGRPO's extra network forwards per iteration at the paper's setting, as a share of the base's."""
    forwards = pd.read_csv(_FOLDER / "cost.csv").set_index("cell")["sample_forwards"]
    return float(forwards["adagrpo"] / forwards["base"] - 1)
