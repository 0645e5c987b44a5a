"""Verdict of a probe on whether choosing prompts by samples of them is worth it: the decision rule and its thresholds.

The thresholds come from reasoning, not from training, as the page says: in the study capability-matched prompts were
worth less than siblings at each share of the variance (.19, .47, .61), so that there was no crossing to fit.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from analysis.formats import number

IDLE_SHARE = 0.1
"""If the prompt's share of the reward's variance is surely below this, a candidate's sample mostly reflects its noise:
its correlation with the prompt's mean is the square root of the share, .32 at most."""
TELLING_SHARE = 0.3
"""If the share is surely above this, one sample is informative (its correlation with the prompt's mean is .55)."""
FLAT_SHARE = 0.2
"""Share of groups without spread above which avoiding them pays: 1 / (1 - .2) = 1.25, about the paper's cost, 1.24."""

Answer = Literal["worth it", "not worth it", "cannot tell"]


class Verdict(NamedTuple):
    """The probe's answer and its reason."""

    answer: Answer
    reason: str


def judge(found: Mapping[str, Any]) -> Verdict:
    """Judge whether sampling candidates buys more than the same forwards spent on more siblings.

    With G + g instead of G siblings a group's signal-to-noise ratio is (G + g) / G as large, so that an update improves
    by the square root of that, whatever the model. A rule's groups gain in proportion to their wider spread, or by
    avoiding groups without spread. Both count for a rule, as far as they are certain.

    Args:
        found: summary of the probe: ``prompt_share`` (estimate, low, high); ``no_spread`` (the same, share of groups);
            ``siblings_gain``, that square root less 1; ``choices`` by rule, with ``gain`` of spread over random
            prompts, ``gain_error`` (standard error) and ``forwards``.
    """
    share, flat, siblings = found["prompt_share"], found["no_spread"], found["siblings_gain"]
    paid = {name: one for name, one in found["choices"].items() if one["forwards"] > 0}
    if not paid or share["low"] != share["low"]:
        return Verdict("cannot tell", "too few prompts were measured, or all rewards are equal")
    low = {name: one["gain"] - 2 * one["gain_error"] for name, one in paid.items()}
    high = {name: one["gain"] + 2 * one["gain_error"] for name, one in paid.items()}
    best, most = max(low, key=lambda name: low[name]), max(high.values())
    price = f"as much compute in larger groups gains {_percent(siblings)}"
    if share["high"] < IDLE_SHARE:
        return Verdict(
            "not worth it",
            f"the prompt decides at most {share['high']:.0%} of the reward's variance: a sample tells of its noise",
        )
    if most < siblings and flat["high"] < FLAT_SHARE:
        return Verdict("not worth it", f"no rule's groups are spread by more than {_percent(most)} wider; {price}")
    if share["low"] > TELLING_SHARE and (low[best] > siblings or flat["low"] > FLAT_SHARE):
        reason = f"{best} finds groups spread at least {_percent(low[best])} wider; {price}"
        if low[best] <= siblings:
            reason = f"at least {flat['low']:.0%} of random prompts' groups teach nothing, and a sample tells which"
        return Verdict("worth it", reason)
    shares = " to ".join(number(share[bound], 2) for bound in ("low", "high"))
    return Verdict(
        "cannot tell",
        f"the prompt's share of the variance is {shares}; the best rule's groups ({best}) are at least "
        f"{_percent(low[best])} wider, none's are more than {_percent(most)}; {price}",
    )


def _percent(share: float) -> str:
    return f"{number(100 * share, 0, signed=True)} %"
