"""The map: what choosing prompts gains over random ones, against the share of reward variance that is the prompt's."""

import json
from collections.abc import Mapping, Sequence

import pandas as pd

from analysis.verdicts.protocol import Judged
from harness.foundation.places import ROOT

PROBES = {"study": "miniature", "study-letters-luck": "letters-luck", "study-luck": "miniature-luck"}
"""Experiments of the map, and the probe of the untrained model that each of them trains."""
_AGAINST_RANDOM = {"curriculum": 1, "medium": 1, "hardest": 1, "easiest": -1}
"""Claims about one rule and random prompts; -1 where random prompts are the treatment."""


def map_frame(judged: Mapping[str, Sequence[Judged]]) -> pd.DataFrame:
    """A row per experiment and rule of the paper that has a contrast.

    Args:
        judged: the first family of each experiment.

    Returns:
        Columns experiment, prompt_share with share_low and share_high (the probe's ICC and its 95 % interval),
        no_spread, selection, pairs, and difference with lower and upper (one-sided 95 % bounds), of rule less
        random as a share of the base's gain there.
    """
    rows = []
    for experiment, family in judged.items():
        if experiment not in PROBES:
            continue
        path = ROOT / "results" / "testbed" / f"probe-{PROBES[experiment]}.json"
        summary = json.loads(path.read_text(encoding="utf-8"))["summary"]
        share = summary["prompt_share"]
        for one in family:
            sign = _AGAINST_RANDOM.get(one.claim.name)
            if sign is None or one.contrast is None:
                continue
            bounds = sorted(sign * bound / one.gain for bound in one.contrast.bounds())
            rows.append(
                {"experiment": experiment, "prompt_share": share["estimate"], "share_low": share["low"]}
                | {"share_high": share["high"], "no_spread": summary["no_spread"]["estimate"]}
                | {"selection": one.claim.name, "pairs": one.pairs, "difference": sign * one.contrast.mean / one.gain}
                | {"lower": bounds[0], "upper": bounds[1]}
            )
    return pd.DataFrame(rows)
