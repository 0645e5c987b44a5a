"""Conclusions of a grid: its judged claims as tables, and sentences computed from them."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.cells.labels import Cell
from analysis.cells.study import Study, first_seeds, first_seeds_of_cells
from analysis.decisions import LEVEL, LOOKS, OUTCOMES, Outcome, pairs_needed, power
from analysis.formats import MISSING, Entry, entry_text, interval_text, markdown_table, number
from analysis.runs.sources import protocol_sha256, seal_sha256, was_under_other_rules
from analysis.statistics import Interval
from analysis.verdicts.checks import Checked, checks_of
from analysis.verdicts.earlier import EARLIER, EARLIER_NOTE
from analysis.verdicts.judging import NEVER, judge_together
from analysis.verdicts.planned import FAMILIES, Family, judge_family
from analysis.verdicts.protocol import BASE, MARGIN_SHARE, MIN_PAIRS, Judged, judge_grid, method_claims, pooled_claims
from harness.foundation.errors import ConfigError

HEAD = ("Claim", "Verdict", "Difference", "Of the base's gain", "The paper's", "Pairs", "Power", "Pairs needed")
"""Headings of a table of judged claims, with differences that have one-sided 95 % bounds."""


POWER = 0.8
PLAN_HEAD = (
    "Claim",
    "Sd of a pair",
    "Effect sought",
    "Pairs",
    "Power",
    "Runs",
    "Core-hours",
    "Pairs with an early look",
)
PLAN_NOTE = (
    f"To find {MARGIN_SHARE:.0%} of the base's gain, or the paper's relative gain where that is smaller, with "
    f"probability {POWER:g} in the first step of Holm's procedure, one thread per run. The standard deviation "
    "is that of these runs, and from so few pairs known roughly."
)


class Conclusions(NamedTuple):
    """Conclusions from the runs of one study."""

    families: Mapping[str, Sequence[Judged]]
    """Claims that were judged together, by title; the first family is the one that the runs were made for."""
    runs: int
    """Number of finished runs."""
    other_rules: int
    """Number of finished runs that were made while other or unknown rules were in force."""
    plans: Sequence[Sequence[str]]
    """``plan_rows`` of the first family."""
    checks: Sequence[Checked]
    """Checks of the decision rule on the study's own runs."""
    opening: str
    """Sentences on what is compared and, if planned, how often the runs are looked at."""
    words: Mapping[str, str]
    """Split of the words on which a family's differences are measured, by title."""

    @property
    def main(self) -> Sequence[Judged]:
        """The first family."""
        return next(iter(self.families.values()))


def conclude(study: Study, planned_seeds: int | None = None) -> Conclusions | None:
    """Judge a study's claims; None if no claim has a pair of finished runs.

    Args:
        study: study with its runs; judged by its ``FAMILIES`` or ``EARLIER`` if it has any, otherwise as a grid.
        planned_seeds: seeds per cell of a grid, at least 4, if an early look is planned: claims are judged on the first
            half of the seeds at the first level of ``LOOKS``, and those left undecided on all seeds at the second.
    """
    planned = planned_families(study)
    if planned:
        of_plan = runs_of_plan(study)
        _require_names_of_plan(of_plan, planned)
        families: dict[str, Sequence[Judged]] = {f.name: ranked(_judge_family(of_plan, f)) for f in planned}
        opening = EARLIER_NOTE if planned[0] in EARLIER else "Each claim compares two cells."
    else:
        families, opening = _judge_as_grid(study, planned_seeds)
    if not any(one.pairs for family in families.values() for one in family):
        return None
    environments = study.environments
    others = sum(_was_under_other_rules(environment, bool(planned)) for environment in environments)
    main = next(iter(families.values()))
    checks = checks_of(of_plan, main[0].gain, [one.claim for one in main]) if planned else []
    words = dict.fromkeys(families, study.endpoint)
    if any(study.untrained(BASE.cell(method))[1] != study.endpoint for method in _methods_of_bases(study, main)):
        opening += " The base's gain is that on validation words: the untrained model was not measured on others."
    return Conclusions(families, len(environments), others, plan_rows(study, main), checks, opening, words)


def planned_families(study: Study) -> list[Family]:
    """Families of claims planned for a study's experiment, if it is trained on ocr; [] for a grid."""
    return [one for one in (*FAMILIES, *EARLIER) if (one.experiment, study.reward) == (study.experiment, "ocr")]


def runs_of_plan(study: Study) -> Study:
    """The runs of a study's experiment that its planned claims are decided on."""
    return first_seeds_of_cells(study, _planned_seeds(planned_families(study)))


def _require_names_of_plan(study: Study, families: Sequence[Family]) -> None:
    """Refuse runs of which most are like a variant of the plan, such as "G 12": then no name means what it is there."""
    planned = [claim for family in families for claim, _ in family.claims]
    variants = {side.variant for claim in planned for comparison in claim.comparisons for side in comparison}
    for cell, members in study.cells:
        config = members.iloc[0]["config"]
        own = {f"G {config.get('rollout', {}).get('group_size')}", f"{config['iterations']} iterations"}
        if not cell.variant and (usual := own & variants):
            raise ConfigError(
                f"{members.iloc[0]['folder']}: experiment {study.experiment} has so many runs with {min(usual)} that "
                "cells are not named as in its plan; give runs that are not planned an experiment of their own"
            )


def _methods_of_bases(study: Study, family: Sequence[Judged]) -> set[str]:
    cells = dict(study.cells)
    return {method for one in family for method in one.claim.methods if BASE.cell(method) in cells}


def _planned_seeds(families: Sequence[Family]) -> dict[Cell, int]:
    """Seeds of each cell that the claims are decided on: a decided claim stays as it is if seeds are added."""
    counts: dict[Cell, int] = {}
    for claim, pairs in (planned for family in families for planned in family.claims):
        for side in (side for comparison in claim.comparisons for side in comparison):
            for cell in map(side.cell, claim.methods):
                counts[cell] = max(pairs, counts.get(cell, 0))
    return counts


def _judge_family(study: Study, family: Family) -> list[Judged]:
    """Same as ``judge_family``, where all gains are known; otherwise see ``judge_together``."""
    gains = [one.gain for one in judge_grid(study, [claim for claim, _ in family.claims], NEVER)]
    return judge_family(study, family) if np.isfinite(gains).all() else judge_together(study, family.claims)


def ranked(family: Sequence[Judged]) -> Sequence[Judged]:
    """Sort a family whose claims all share one control, best first; any other family stays as it is."""
    if len({(one.claim.methods, control) for one in family for _, control in one.claim.comparisons}) > 1:
        return family
    return sorted(family, key=lambda one: -one.contrast.mean if one.contrast else math.inf)


def _judge_as_grid(study: Study, planned_seeds: int | None) -> tuple[dict[str, Sequence[Judged]], str]:
    methods = list(dict.fromkeys(cell.method for cell, _ in study.grid_cells))
    if not methods:
        return {}, ""
    kinds = {"Over all methods": pooled_claims(methods)}
    if len(methods) > 1:
        kinds["Each method for itself"] = method_claims(methods)
    opening = "A choice of prompts is compared with and without fusion, fusion with every choice of prompts."
    if planned_seeds is None:
        planned = max((members["seed"].nunique() for _, members in study.grid_cells), default=0)
        return {
            title: judge_together(study, [(one, planned) for one in claims]) for title, claims in kinds.items()
        }, opening
    half = planned_seeds // 2
    looks = [(first_seeds(study, n), n, level) for n, level in zip((half, planned_seeds), LOOKS, strict=True)]
    families: dict[str, Sequence[Judged]] = {}
    for title, claims in kinds.items():
        both = (judge_together(seen, [(one, seeds) for one in claims], level) for seen, seeds, level in looks)
        families[title] = [late if early.verdict == "undecided" else early for early, late in zip(*both, strict=True)]
    look = (
        f" Looked at twice: at {half} seeds of each cell, which spends {LOOKS[0]:g} of the level, and at "
        f"{planned_seeds}, which spends {LOOKS[1]:g}; a claim that the first look decides stays decided."
    )
    return families, opening + look


def _was_under_other_rules(environment: Mapping[str, Any], is_planned: bool) -> bool:
    executions = (environment, *environment.get("resumed", ()))
    protocols = {one.get("protocol_sha256") for one in executions} if is_planned else set()
    return was_under_other_rules(environment) or not protocols <= {protocol_sha256()}


def plan_rows(study: Study, family: Sequence[Judged]) -> list[list[str]]:
    """Rows of a table with headings ``PLAN_HEAD``: what it takes to decide each claim with a spread.

    The present runs are treated as a pilot that gives the sd; from few pairs it is itself only known to a factor of
    about 2, see docs/testbed.md.
    """
    finished = study.summary[study.summary["state"] == "finished"]
    hours = float((finished["train_seconds"] + finished["evaluation_seconds"]).mean()) / 3600
    return [_plan(judged, hours) for judged in family if judged.sd > 0 and math.isfinite(judged.margin)]


def _plan(judged: Judged, hours: float) -> list[str]:
    """Row of a claim: pairs are those over all strata; half of them are looked at first in the last column."""
    effect = judged.margin if judged.paper is None else min(judged.margin, judged.paper)
    strata = len(judged.strata)
    pairs, with_look = (
        pairs_needed(effect, judged.sd, level / judged.family, strata, POWER) for level in (LEVEL, LOOKS[-1])
    )
    row = [judged.claim.statement, number(judged.sd), number(effect)]
    if pairs is None:  # unknown, or too many
        return [*row, *[MISSING] * (len(PLAN_HEAD) - len(row))]
    reached = power(effect, judged.sd, pairs, LEVEL / judged.family, strata)
    runs = pairs * strata * len({side for comparison in judged.claim.comparisons for side in comparison})
    row += [number(pairs * strata, 0), number(reached, 2), number(runs, 0), number(runs * hours, 1)]
    return [*row, number(with_look * strata, 0) if with_look else MISSING]


def sentences(family: Sequence[Judged], with_numbers: bool = True) -> list[str]:
    """Sentences on a family: its decided claims, with differences, and others with the pairs that a decision takes."""
    said = []
    for outcome in OUTCOMES:
        those = [one for one in family if one.verdict == outcome]
        if those:
            listed = "; ".join(f"{_compared(one)}{f' ({_difference(one)})' * with_numbers}" for one in those)
            said.append(f"{_OPENINGS[outcome]}: {listed}.")
    undecided = [one for one in family if one.verdict == "undecided"]
    if undecided:
        said.append(f"Undecided at this size: {'; '.join(map(_open, undecided))}.")
    return said


_OPENINGS: dict[Outcome, str] = {
    "supported": "Supported here",
    "opposite": "The opposite was found",
    "equivalent": f"No difference worth having, within {MARGIN_SHARE:.0%} of the base's gain",
    "smaller than the paper's": "Smaller here than the paper's share of the gain",
}
_BEATS = re.compile(r" beats? ")


def _compared(one: Judged) -> str:
    """What a claim compares: its statement if that was found, else without saying which side is the better one."""
    return one.claim.statement if one.verdict == "supported" else _BEATS.sub(" against ", one.claim.statement)


def _open(one: Judged) -> str:
    if one.contrast is None and one.planned < MIN_PAIRS:
        return f"{_compared(one)} (one seed has no spread)"
    if one.contrast is None and not math.isfinite(one.gain) and one.pairs >= one.planned * len(one.strata):
        return f"{_compared(one)} (the base's gain is not known)"
    if one.contrast is None:
        planned = one.planned * len(one.strata)
        return f"{_compared(one)} ({one.pairs} of {planned} planned pairs are finished, each on one processor)"
    needed = f"{one.pairs_needed * len(one.strata)} pairs" if one.pairs_needed else "an unknown number of pairs"
    return f"{_compared(one)} ({_difference(one)}; to find {MARGIN_SHARE:.0%} of the gain takes {needed})"


def rows(family: Sequence[Judged]) -> list[list[str]]:
    """Rows of a table with headings ``HEAD``, one per claim."""
    return [
        [
            one.claim.statement,
            one.verdict,
            _difference(one),
            _share(share_of_gain(one.contrast.mean, one.gain) if one.contrast else math.nan),
            _share(math.nan if one.claim.paper_share is None else one.claim.paper_share),
            f"{one.pairs} of {one.planned * len(one.strata)}",
            number(one.power, 2),
            str(needed * len(one.strata)) if math.isfinite(one.margin) and (needed := one.pairs_needed) else MISSING,
        ]
        for one in family
    ]


def share_of_gain(difference: float, gain: float) -> float:
    """Difference as a share of the base's gain; NaN unless the base gained."""
    return difference / gain if gain > 0 else math.nan


def conclusions_frame(study: Study, conclusions: Conclusions) -> pd.DataFrame:
    """Table with all numbers of the judged claims: the content of tables/conclusions.csv."""
    records = []
    for family, judged in conclusions.families.items():
        for one in judged:
            low, high = one.contrast.bounds() if one.contrast else (math.nan, math.nan)
            records.append(
                {"experiment": study.experiment, "reward": study.reward, "family": family, "claim": one.claim.name}
                | {"verdict": one.verdict, "difference": one.contrast.mean if one.contrast else math.nan}
                | {"lower_bound": low, "upper_bound": high, "sd": one.sd, "pairs": one.pairs}
                | {"planned_pairs": one.planned * len(one.strata), "gain": one.gain, "margin": one.margin}
                | {"paper": math.nan if one.paper is None else one.paper, "power": one.power}
                | {"equivalence_power": one.equivalence_power}
                | {f"p_{kind.replace(' ', '_')}": p for kind, p in one.decision.p_values.items()}
            )
    return pd.DataFrame(records)


def conclusions_markdown(study: Study, conclusions: Conclusions) -> str:
    """Render the judged claims as tables in GitHub's Markdown."""
    parts = [note(conclusions, study.endpoint), ""]
    for title, family in conclusions.families.items():
        parts += [f"**{study.experiment}, trained on {study.reward}. {title}**", ""]
        parts.append(markdown_table(HEAD, rows(family)))
    if conclusions.plans:
        parts += [f"**{study.experiment}. What a decision takes.** {PLAN_NOTE}", ""]
        parts.append(markdown_table(PLAN_HEAD, conclusions.plans))
    for check in conclusions.checks:
        parts += [f"**{study.experiment}. {check.name}.** {check.note}", "", markdown_table(check.head, check.rows)]
    return "\n".join(parts)


def note(conclusions: Conclusions, words: str = "test") -> str:
    """Explain in sentences how the verdicts are reached; ``words`` is the split on which differences are measured."""
    share, lacking = f"{MARGIN_SHARE:.0%} of the base's gain", sum(one.contrast is None for one in conclusions.main)
    provisional = (
        f"Provisional: {lacking} of the claims lack pairs; when these come in, verdicts of the others may change, too. "
    )
    return (
        f"{provisional if 0 < lacking < len(conclusions.main) else ''}"
        f"Differences are of the reward on {words} words, paired by seed, with one-sided 95 % bounds. "
        f"{conclusions.opening} Verdicts of {len(conclusions.main)} claims by one-sided tests under Holm's procedure: "
        f"supported or opposite where no difference is rejected, equivalent where both ±{share} are, smaller than the "
        "paper's where its share of the gain is, else undecided. A kind of verdict is wrong for any claim with "
        f"probability {LEVEL:g} at most. Power: to find {share} in the first step of Holm's procedure. "
        f"{_seal(conclusions)}"
    )


def digest(conclusions: Conclusions, links: Mapping[str, str]) -> str:
    """Render the first family for a README: sentences, the table, and links (addresses by name)."""
    said = "\n".join(f"- {sentence}" for sentence in sentences(conclusions.main, with_numbers=False))
    table = markdown_table(HEAD[:-2], [row[:-2] for row in rows(conclusions.main)])
    further = " · ".join(f"[{name}]({address})" for name, address in links.items())
    return f"{said}\n\n{table}\n{further}"


def _seal(conclusions: Conclusions) -> str:
    others, seal = conclusions.other_rules, seal_sha256()[:12]
    if others:
        return f"Other rules than these ({seal}) were in force when {others} of the {conclusions.runs} runs were made."
    return f"The rules are those that were in force when each of the {conclusions.runs} runs was made (seal {seal})."


def _difference(one: Judged) -> str:
    if one.contrast is None:
        return MISSING
    return interval_text(Interval(one.contrast.mean, *one.contrast.bounds()))


def _share(value: float) -> str:
    return entry_text(Entry(value, digits=0, signed=True, percent=True))
