"""Map of the gain of choosing prompts over random ones, by the share of reward variance that the prompt explains."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.verdicts.conclusions import share_of_gain
from analysis.verdicts.protocol import Judged
from harness.foundation.places import ROOT

PROBES = {"study": "miniature", "study-letters-luck": "letters-luck", "study-luck": "miniature-luck"}
"""Experiments of the map, each with the probe of the untrained model that it starts from."""
_AGAINST_RANDOM = {"curriculum": 1, "medium": 1, "hardest": 1, "easiest": -1}
"""Claims that compare a rule with random prompts; -1 if random prompts are the treatment."""
_UNKNOWN = {"cosine": math.nan, "cosine_low": math.nan, "cosine_high": math.nan}


def map_frame(judged: Mapping[str, Sequence[Judged]]) -> pd.DataFrame:
    """Table of the map, with a row per experiment and each of the paper's rules that has a contrast.

    Args:
        judged: the first family of each experiment, by name.

    Returns:
        Columns experiment, prompt_share with share_low and share_high (the probe's ICC and its 95 % interval),
        no_spread, selection, cosine with cosine_low and cosine_high (between the expected updates of the rule and of
        random prompts, untrained; NaN if the probe was made without gradients), pairs, and difference with lower and
        upper (one-sided 95 % bounds): rule less random, as a share of the base's gain in the experiment; NaN unless
        the base gained.
    """
    rows = []
    for experiment, family in judged.items():
        if experiment not in PROBES:
            continue
        path = ROOT / "results" / "testbed" / f"probe-{PROBES[experiment]}.json"
        probe = json.loads(path.read_text(encoding="utf-8"))
        summary, cosines = probe["summary"], _cosines_with_random(probe)
        share = summary["prompt_share"]
        for one in family:
            sign = _AGAINST_RANDOM.get(one.claim.name)
            if sign is None or one.contrast is None:
                continue
            bounds = sorted(share_of_gain(sign * bound, one.gain) for bound in one.contrast.bounds())
            rows.append(
                {"experiment": experiment, "prompt_share": share["estimate"], "share_low": share["low"]}
                | {"share_high": share["high"], "no_spread": summary["no_spread"]["estimate"]}
                | {"selection": one.claim.name, **cosines.get(one.claim.name, _UNKNOWN)}
                | {"pairs": one.pairs, "difference": share_of_gain(sign * one.contrast.mean, one.gain)}
                | {"lower": bounds[0], "upper": bounds[1]}
            )
    return pd.DataFrame(rows)


def _cosines_with_random(probe: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    found = {}
    for one in probe.get("gradients", {}).get("cosines", ()):
        if one["first"] == "random":
            found[one["second"]] = {"cosine": one["value"], "cosine_low": one["low"], "cosine_high": one["high"]}
    return found
