"""Head of a report's page: the verdicts in a sentence, and the numbers behind them."""

import math
from collections.abc import Sequence

import pandas as pd

from analysis.cells.labels import METHOD_NAMES
from analysis.cells.logs import TRAINING_REWARD
from analysis.cells.study import MIN_SEEDS_FOR_INTERVAL, Study, adagrpo_pairs
from analysis.formats import MISSING, Entry, WideTable, number
from analysis.report.tables import difference_entry
from analysis.statistics import Interval
from analysis.verdicts.compared import AT_END
from analysis.verdicts.conclusions import POWER, Conclusions, sentences, share_of_gain
from analysis.verdicts.planned import FAMILIES, PRIMARY
from analysis.verdicts.protocol import MARGIN_SHARE, Judged
from harness.foundation.places import ROOT

_SHARE = f"{MARGIN_SHARE:.0%} of the base's gain"


def is_comparison(found: Conclusions | None) -> bool:
    """Whether the conclusions compare named cells, see ``analysis.verdicts.compared``."""
    return found is not None and AT_END in found.families


def headline(found: Conclusions | None) -> str:
    """Sentences with the verdicts on the compared cells, or on the whole method."""
    if found is not None and is_comparison(found):
        return " ".join(sentences(found.main))
    whole = [one for one in found.main if "AdaGRPO" in one.claim.statement] if found else []
    return " ".join(sentences(whole)) or "What was reached; too little to decide anything."


def added_by_study(study: Study) -> WideTable | None:
    """The study's verdicts on its primary claims, for a page of the default grid; None before there are any."""
    path = ROOT / "results" / "study" / "tables" / "conclusions.csv"
    is_default = (study.experiment, study.reward) == ("miniature", "ocr") and study.is_miniature
    if not is_default or not path.is_file():
        return None
    frame, statements = pd.read_csv(path), {claim.name: claim.statement for claim, _ in PRIMARY}
    rows: list[tuple[str, list[Entry | str]]] = []
    for row in frame[frame["family"] == FAMILIES[0].name].to_dict("records"):
        interval = Interval(row["difference"], row["lower_bound"], row["upper_bound"])
        difference = Entry(row["difference"], interval=interval, signed=True)
        share = Entry(share_of_gain(row["difference"], row["gain"]), digits=0, signed=True, percent=True)
        pairs = f"{row['pairs']} of {row['planned_pairs']}"
        rows.append((statements[row["claim"]], [str(row["verdict"]), difference, share, pairs]))
    return WideTable("", ["Claim", "Verdict", "Difference", "Of the base's gain", "Pairs"], rows)


def cautions(family: Sequence[Judged]) -> list[str]:
    """Remarks on each difference that was found but is or may be too small to matter, and on the power behind it."""
    said = []
    for one in family:
        if one.verdict not in ("supported", "opposite") or one.contrast is None:
            continue
        low, high = one.contrast.bounds()
        if max(low, -high) >= one.margin:
            continue
        is_small = max(-low, high) < one.margin
        remark = f"The difference of {one.claim.name} {'is' if is_small else 'may still be'} below {_SHARE}"
        if one.power < POWER:
            pairs = f"{one.pairs_needed} pairs" if one.pairs_needed else "more pairs"
            remark += (
                f", which {one.pairs} pairs find with power {number(one.power, 2)}: what little power finds is larger "
                f"than the truth on average; {pairs} would tell"
            )
        said.append(f"{remark}.")
    return said


def head_table(study: Study, found: Conclusions | None) -> WideTable | None:
    """Table of the trained reward: of the compared cells, else base and + AdaGRPO per method, else all cells."""
    if found is not None and is_comparison(found):
        return comparison_table(study, found)
    rows = _pairs(study)
    head = ["", "Difference", "Base", "+ AdaGRPO", "Untrained", "Pairs"]
    if not rows:
        rows, head = _cells(study), ["", "Difference to base", "Trained", "Untrained", "Seeds"]
    has_interval = any(entries[0].interval for _, entries in rows)
    spread = f"with two-sided 95 % intervals from {MIN_SEEDS_FOR_INTERVAL} pairs on" if has_interval else "± their sd"
    values = f"Reward {study.reward} on {study.endpoint} prompts, mean ± sd over seeds"
    title = f"{values}; differences are paired by seed, {spread}"
    return WideTable(title, head, rows) if rows else None


def comparison_table(study: Study, found: Conclusions) -> WideTable:
    """Table with a row per claim: verdict, difference with bounds, and the power of its pairs."""
    rows = [
        (title if len(family) == 1 else f"{one.claim.name}, {title[0].lower()}{title[1:]}", _judged(one))
        for title, family in found.families.items()
        for one in family
    ]
    words = ", ".join(f"{title[0].lower()}{title[1:]} on {found.words[title]} prompts" for title in found.families)
    title = (
        f"Reward {study.reward}, {words}; differences are paired by seed, with one-sided 95 % bounds. Power, and the "
        f"pairs needed for a power of .8: to find {_SHARE}"
    )
    return WideTable(title, ["", "Difference", "Verdict", "Pairs (needed)", "Power", "Of the base's gain"], rows)


def _judged(one: Judged) -> list[Entry | str]:
    pairs, power = f"{one.pairs} ({one.pairs_needed or MISSING})", Entry(one.power, digits=2)
    if one.contrast is None:
        return [MISSING, one.verdict, pairs, power, MISSING]
    low, high = one.contrast.bounds()
    # Show two significant digits of the bounds' reach, since 3 decimals are few for rewards that hardly move.
    reach = (high - low) / 2
    digits = max(3, 1 - math.floor(math.log10(reach))) if reach > 0 else 3
    mean = one.contrast.mean
    difference = Entry(mean, interval=Interval(mean, low, high), digits=digits, signed=True)
    share = Entry(share_of_gain(mean, one.gain), digits=0, signed=True, percent=True)
    return [difference, one.verdict, pairs, power, share]


def _pairs(study: Study) -> list[tuple[str, list[Entry]]]:
    rows = []
    for base, treatments in adagrpo_pairs(study):
        start = study.start(base)
        for cell in treatments:
            values = [study.values(one, TRAINING_REWARD) for one in (base, cell)]
            comparison = study.compare(cell, TRAINING_REWARD)
            entries = [*(Entry(of_cell.mean(), of_cell.std()) for of_cell in values), Entry(start)]
            pairs = Entry(len(comparison.seeds) if comparison else 0, digits=0)
            name = cell.label if len(treatments) > 1 else METHOD_NAMES.get(cell.method, cell.method)
            rows.append((name, [difference_entry(comparison), *entries, pairs]))
    return rows


def _cells(study: Study) -> list[tuple[str, list[Entry]]]:
    rows = []
    for cell, _ in study.cells:
        values = study.values(cell, TRAINING_REWARD)
        entries = [Entry(values.mean(), values.std()), Entry(study.start(cell)), Entry(len(values), digits=0)]
        rows.append((cell.label, [difference_entry(study.compare(cell, TRAINING_REWARD)), *entries]))
    return rows
