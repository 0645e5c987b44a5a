"""Map of the gain of choosing prompts by the share of reward variance that the prompt explains, and a test of it.

The map is over random prompts at equal iterations, where candidates are free. Whether choosing is worth its cost is a
difference from random prompts with the larger group of equal cost: a line through it at the outer two levels predicts
the middle one, which tests whether the prompt's share says where choosing pays.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.cells.study import Study
from analysis.decisions import Contrast
from analysis.formats import Entry, WideTable
from analysis.statistics import Interval
from analysis.verdicts.conclusions import share_of_gain
from analysis.verdicts.planned import FAMILIES, FLOW_GRPO, LARGER_GROUP, PAIRS, PAIRS_OF_RULES
from analysis.verdicts.protocol import Claim, Judged, Side, judge_grid
from harness.foundation.places import ROOT

PROBES = {"study": "miniature", "study-letters-luck": "letters-luck", "study-luck": "miniature-luck"}
"""Experiments of the map, each with the probe of the untrained model that it starts from."""
_AGAINST_RANDOM = {"curriculum": 1, "medium": 1, "hardest": 1, "easiest": -1}
"""Claims that compare a rule with random prompts; -1 if random prompts are the treatment."""
_UNKNOWN = {"cosine": math.nan, "cosine_low": math.nan, "cosine_high": math.nan}
PAID = ("curriculum", "medium", "hardest")
"""The paper's rules that sample candidates in order to gain by it."""


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
        probe = _probe(experiment)
        if probe is None:
            continue
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


def _probe(experiment: str) -> dict[str, Any] | None:
    """Content of the probe of an experiment's untrained model; None for other experiments, and in an installed wheel,
    which has no committed results."""
    path = ROOT / "results" / "testbed" / f"probe-{PROBES.get(experiment)}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _cosines_with_random(probe: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    found = {}
    for one in probe.get("gradients", {}).get("cosines", ()):
        if one["first"] == "random":
            found[one["second"]] = {"cosine": one["value"], "cosine_low": one["low"], "cosine_high": one["high"]}
    return found


def prediction_frame(studies: Sequence[Study]) -> pd.DataFrame:
    """Table of the test of the map, with a row per rule of ``PAID`` that is decided at all three levels.

    Args:
        studies: of the experiments in ``PROBES``; others are ignored.

    Returns:
        Columns selection; below, above and measured: difference from the larger group of equal cost at the level with
        the smallest, largest and middle prompt's share, as a share of the base's gain there; predicted: the value at
        the middle level of the line through the outer two; missed, with missed_low and missed_high (95 %): measured
        less predicted; threshold: prompt's share at which the line crosses 0, NaN unless between the outer levels.
    """
    probes = {study: probe for study in studies if (probe := _probe(study.experiment)) is not None}
    if len(probes) < len(PROBES):
        return pd.DataFrame()
    shares = {study: float(probe["summary"]["prompt_share"]["estimate"]) for study, probe in probes.items()}
    levels = sorted(shares, key=lambda study: shares[study])
    bottom, middle, top = (shares[study] for study in levels)
    weight, rows = (middle - bottom) / (top - bottom), []
    for rule in PAID:
        below, measured, above = (_at_equal_cost(study, rule) for study in levels)
        if below is None or measured is None or above is None:
            continue
        missed = _weighted_sum([(1, measured), (weight - 1, below), (-weight, above)])
        low, high = missed.bounds(0.025)
        slope = (above.mean - below.mean) / (top - bottom)
        threshold = bottom - below.mean / slope if below.mean * above.mean < 0 else math.nan
        rows.append(
            {"selection": rule, "below": below.mean, "above": above.mean, "measured": measured.mean}
            | {"predicted": measured.mean - missed.mean, "missed": missed.mean, "missed_low": low, "missed_high": high}
            | {"threshold": threshold}
        )
    return pd.DataFrame(rows)


def _at_equal_cost(study: Study, rule: str) -> Contrast | None:
    """A rule less the larger group of random prompts, as a share of the base's gain; None while that is not known."""
    claim = Claim(rule, "", ((Side(rule, fusion=False), LARGER_GROUP),), (FLOW_GRPO,), None)
    [one] = judge_grid(study, [claim], PAIRS if study.experiment == FAMILIES[0].experiment else PAIRS_OF_RULES)
    if one.contrast is None or not one.gain > 0:
        return None
    return Contrast(one.contrast.mean / one.gain, one.contrast.error / one.gain, one.contrast.degrees)


def _weighted_sum(parts: Sequence[tuple[float, Contrast]]) -> Contrast:
    """Sum of independent contrasts with weights; degrees of freedom by Welch and Satterthwaite."""
    variances = [(weight * one.error) ** 2 for weight, one in parts]
    spread = sum(v**2 / one.degrees for v, (_, one) in zip(variances, parts, strict=True))
    degrees = sum(variances) ** 2 / spread if spread else sum(one.degrees for _, one in parts)
    return Contrast(sum(weight * one.mean for weight, one in parts), math.sqrt(sum(variances)), degrees)


def prediction_table(frame: pd.DataFrame) -> WideTable:
    """Table of ``prediction_frame`` for readers."""
    title = (
        "Against the larger group of equal cost, of the base's gain: the line through the outer levels of the map "
        "predicts the middle one, given the probes' shares. Pays from: share at which that line crosses 0"
    )
    head = ["Rule", "Most luck", "Least luck", "Middle: predicted", "Measured", "Missed by, 95 %", "Pays from"]
    rows = []
    for row in frame.to_dict("records"):
        missed = Interval(row["missed"], row["missed_low"], row["missed_high"])
        shown = [_percent(row[name]) for name in ("below", "above", "predicted", "measured")]
        threshold = Entry(row["threshold"], digits=2)
        rows.append((row["selection"], [*shown, _percent(missed.estimate)._replace(interval=missed), threshold]))
    return WideTable(title, head, rows)


def _percent(share: float) -> Entry:
    return Entry(share, digits=0, signed=True, percent=True)
