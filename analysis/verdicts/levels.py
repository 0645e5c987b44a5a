"""The map: what choosing prompts gains over random ones, against the share of reward variance that is the prompt's."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.verdicts.protocol import Judged
from harness.foundation.places import ROOT

PROBES = {"study": "miniature", "study-letters-luck": "letters-luck", "study-luck": "miniature-luck"}
"""Experiments of the map, and the probe of the untrained model that each of them trains."""
_AGAINST_RANDOM = {"curriculum": 1, "medium": 1, "hardest": 1, "easiest": -1}
"""Claims about one rule and random prompts; -1 where random prompts are the treatment."""
_UNKNOWN = {"cosine": math.nan, "cosine_low": math.nan, "cosine_high": math.nan}


def map_frame(judged: Mapping[str, Sequence[Judged]]) -> pd.DataFrame:
    """A row per experiment and rule of the paper that has a contrast.

    Args:
        judged: the first family of each experiment.

    Returns:
        Columns experiment, prompt_share with share_low and share_high (the probe's ICC and its 95 % interval),
        no_spread, selection, cosine with cosine_low and cosine_high (of the rule's expected update with that of random
        prompts, untrained; missing where the probe was made without gradients), pairs, and difference with lower and
        upper (one-sided 95 % bounds), of rule less random as a share of the base's gain there.
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
            bounds = sorted(sign * bound / one.gain for bound in one.contrast.bounds())
            rows.append(
                {"experiment": experiment, "prompt_share": share["estimate"], "share_low": share["low"]}
                | {"share_high": share["high"], "no_spread": summary["no_spread"]["estimate"]}
                | {"selection": one.claim.name, **cosines.get(one.claim.name, _UNKNOWN)}
                | {"pairs": one.pairs, "difference": sign * one.contrast.mean / one.gain}
                | {"lower": bounds[0], "upper": bounds[1]}
            )
    return pd.DataFrame(rows)


def _cosines_with_random(probe: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    found = {}
    for one in probe.get("gradients", {}).get("cosines", ()):
        if one["first"] == "random":
            found[one["second"]] = {"cosine": one["value"], "cosine_low": one["low"], "cosine_high": one["high"]}
    return found
