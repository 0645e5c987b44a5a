"""Whether choosing prompts by samples of them is worth it, from a probe alone: the rule, and where it draws its lines.

The lines come from reasoning, not from training: no study has been fitted to them yet. The probe's page says so.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from analysis.formats import number

IDLE_SHARE = 0.1
"""Where the prompt's share of the reward's variance is surely below this, a sample of a candidate tells of its noise:
its correlation with the prompt's mean is the root of the share, .32 at most."""
TELLING_SHARE = 0.3
"""Where it is surely above this, one sample tells more than half of what there is (correlation .55)."""
FLAT_SHARE = 0.2
"""Groups without spread that make avoiding them pay: 1 / (1 - .2) = 1.25, about the paper's price of 1.24."""

Answer = Literal["worth it", "not worth it", "cannot tell"]


class Verdict(NamedTuple):
    """The probe's sentence."""

    answer: Answer
    reason: str


def judge(found: Mapping[str, Any]) -> Verdict:
    """Whether samples of candidates buy more than the same forwards spent on siblings.

    A group of G + g instead of G siblings has a signal (G + g) / G as large beside its noise, so that one update's
    quality gains the root of that, whatever the model; a rule's groups gain, in proportion, what they are more widely
    spread, or what is no longer lost in groups without spread. Both count for a rule, as far as they are sure.

    Args:
        found: of the probe: ``prompt_share`` (estimate, low, high); ``no_spread`` (likewise, share of groups);
            ``siblings_gain``, the root less 1; ``choices`` by rule, with ``gain`` of spread over random prompts,
            ``gain_error`` (standard error) and ``forwards``.
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
