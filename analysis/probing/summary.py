"""Summary of a probe: what a model, a reward and a prompt list offer to a selection rule, as numbers and tables.

A rule can matter only if the prompt determines how good a picture gets, if prompts differ, and if the rewards of a
group differ, since otherwise nothing is learnt from it.
"""

from collections.abc import Iterable, Mapping
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import spearmanr

from analysis.formats import Entry, entry_text, markdown_table, number
from analysis.statistics import Interval, Resampled, Values, mean_interval, resampling_weights

BINS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
"""Bin edges for the distribution of prompt means, for a reward in [0, 1]."""
NO_SPREAD = 1e-3
"""A group whose rewards' standard deviation is below this teaches nothing."""


def summary(rewards: ArrayLike, groups: ArrayLike, judged: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """Summarise the measurements of a model in numbers.

    Args:
        rewards: ``[prompts, noises]`` rewards of deterministic samples, at least 2 of each.
        groups: ``[prompts, groups, G]`` rewards of siblings, sampled as in training.
        judged: ``[prompts, noises]`` scores of the pictures of ``rewards`` by judges that are not trained on, by name.
    """
    pictures = np.asarray(rewards, dtype=float)
    means = pictures.mean(axis=1)
    spreads = np.asarray(groups, dtype=float).std(axis=2, ddof=1)
    return {
        "prompts": pictures.shape[0],
        "noises": pictures.shape[1],
        "mean": float(pictures.mean()),
        "prompt_share": intraclass_correlation(pictures)._asdict(),
        "prompt_mean_deciles": np.percentile(means, range(10, 100, 10)).tolist(),
        "prompt_mean_bins": (np.histogram(means, BINS)[0] / len(means)).tolist(),
        "within_prompt_std": float(np.sqrt(pictures.var(axis=1, ddof=1).mean())),
        "group_std": {"mean": float(spreads.mean()), "deciles": np.percentile(spreads, [10, 50, 90]).tolist()},
        "no_spread": mean_interval((spreads < NO_SPREAD).mean(axis=1))._asdict(),
        "told_of_spread": _told_of_spread(pictures, spreads.mean(axis=1)),
        "judges": {name: _agreement(pictures, np.asarray(values, dtype=float)) for name, values in judged.items()},
    }


def intraclass_correlation(values: Values) -> Interval:
    """Share of the variance of single values that lies between units: one-way random effects, ICC(1).

    With n units of k values each, unit means m_i and unit variances s_i^2: MSB = k var(m), MSW = mean(s_i^2), and
    ICC = (MSB - MSW) / (MSB + (k - 1) MSW) (Shrout and Fleiss 1979, "Intraclass correlations", Psychological Bulletin
    86(2)). The 95 % interval bootstraps units, since values need not be normal; NaN if all values are equal.

    Args:
        values: ``[units, k]``, at least 2 of each.
    """
    units, count = values.shape
    [weights] = resampling_weights([units])
    means = values.mean(axis=1)
    between = count * units / (units - 1) * (weights @ means**2 - (weights @ means) ** 2)
    within = weights @ values.var(axis=1, ddof=1)
    with np.errstate(invalid="ignore"):
        return Resampled((between - within) / (between + (count - 1) * within), [units]).interval()


def _told_of_spread(rewards: Values, spreads: Values) -> dict[str, float]:
    """Rank correlations over prompts with a group's standard deviation; a screening rule needs the first to be high.

    They are means over all samples, or pairs of samples, that a rule might have seen.
    """
    pairs = [abs(one - other) for one, other in combinations(rewards.T, 2)]
    levels = list(-abs(rewards.T - rewards.mean()))
    found = {"two samples' difference": pairs, "all samples' deviation": [rewards.std(axis=1)], "nearness": levels}
    with np.errstate(invalid="ignore"):
        return {name: float(np.mean([spearmanr(one, spreads)[0] for one in of])) for name, of in found.items()}


def _agreement(rewards: Values, judged: Values) -> dict[str, float | None]:
    """Correlations of a judge with the reward: of prompt means, and of deviations from the prompt's mean."""
    ours, theirs = (values - values.mean(axis=1, keepdims=True) for values in (rewards, judged))
    return {
        "prompts": _correlation(rewards.mean(axis=1), judged.mean(axis=1)),
        "within_prompts": _correlation(ours.ravel(), theirs.ravel()),
    }


def _correlation(x: Values, y: Values) -> float | None:
    return None if min(x.std(), y.std()) == 0 else float(np.corrcoef(x, y)[0, 1])


def table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown table with a row per fact and a column per model, headed by its name."""
    judges = dict.fromkeys(judge for one in summaries.values() for judge in one["judges"])
    columns = [facts(one, judges) for one in summaries.values()]
    return markdown_table(["", *summaries], [[label, *(of[label] for of in columns)] for label in columns[0]])


def choices_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown table with a row per rule, a column per model, and cells as ``choice_text`` writes them."""
    rules = dict.fromkeys(rule for one in summaries.values() for rule in one["choices"])
    rows = [[rule, *(choice_text(one["choices"].get(rule)) for one in summaries.values())] for rule in rules]
    return markdown_table(["rule", *summaries], rows)


def choice_text(chosen: Mapping[str, float] | None) -> str:
    """Spread ± 2 standard errors, reward, flat groups, forwards: "0.227 ± 0.042, reward 0.51, 0% flat, 56"."""
    if chosen is None:
        return "–"
    spread, error = number(chosen["spread"]), number(2 * chosen["spread_error"])
    return f"{spread} ± {error}, reward {number(chosen['mean'], 2)}, {chosen['flat']:.0%} flat, {chosen['forwards']:,}"


def facts(one: Mapping[str, Any], judges: Iterable[str]) -> dict[str, str]:
    """One model's column of the table, by row label."""
    share, spread = Interval(**one["prompt_share"]), one["group_std"]
    bins = list(zip(pairwise(BINS), one["prompt_mean_bins"], strict=True))
    in_unit = sum(one["prompt_mean_bins"]) > 0.999  # else the reward has another scale than [0, 1]
    return {
        "prompts x noises": f"{one['prompts']} x {one['noises']}",
        "mean reward": number(one["mean"]),
        "share of the variance that is the prompt's": entry_text(Entry(share.estimate, interval=share, digits=2)),
        "deciles of prompt means": _numbers(one["prompt_mean_deciles"]),
        **(
            {f"prompts of mean {low:g} to {high:g}": f"{of_bin:.0%}" for (low, high), of_bin in bins} if in_unit else {}
        ),
        "sd of a prompt's pictures": number(one["within_prompt_std"]),
        "sd of a group: mean (deciles 1, 5, 9)": f"{number(spread['mean'])} ({_numbers(spread['deciles'])})",
        "groups without spread": f"{one['no_spread']['estimate']:.0%}",
        **{f"rank correlation with a group's sd: {k}": number(v, 2) for k, v in one["told_of_spread"].items()},
        **{f"agreement with {j}: prompts, within a prompt": _agreement_text(one["judges"].get(j, {})) for j in judges},
    }


def _numbers(values: Iterable[float]) -> str:
    return " ".join(number(value, 2) for value in values)


def _agreement_text(agreement: Mapping[str, float | None]) -> str:
    values = [agreement.get(key) for key in ("prompts", "within_prompts")]
    return ", ".join(number(float("nan") if value is None else value, 2) for value in values)
