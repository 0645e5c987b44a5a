"""The study's claims judged from its runs by the protocol: what the paper says, what this study says, the verdict."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis import claims, paper
from analysis.cells.labels import Cell, judge_name
from analysis.cells.logs import Logs
from analysis.cells.study import Study
from analysis.claims import (
    CLAIMED_OVERHEAD,
    EXPERIMENT,
    METRIC,
    PRIMARY,
    STUDY_SEEDS,
    Arm,
    Claim,
    Judgement,
    Pair,
    Verdict,
    judge_alone,
    judge_consistency,
    judge_family,
    judge_overhead,
    settle,
)
from analysis.formats import MISSING, interval_text, markdown, markdown_table, number
from analysis.statistics import paired_summary
from analysis.verdicts.afterwards import Reading, read_afterwards, readings_table, sentences
from analysis.verdicts.exploratory import ADAGRPO, BASE, PairOf, questions

PRIMARY_FAMILY = "primary"
COLUMNS = ["family", "claim", "metric", "paper", "ours", "pairs", "verdict", "validation", "validation_verdict"]
HEAD = ["Claim", "Verdict", "Difference here", "The paper", "Pairs", "Detectable"]
HEAD += ["On validation words", "Verdict there"]


class Row(NamedTuple):
    """A row of the claims table."""

    family: str
    statement: str
    measure: str
    paper: str
    ours: str
    pairs: str
    """Finished pairs of the planned ones."""
    verdict: Verdict | None
    """None where nothing is claimed."""
    validation: str = MISSING
    """The same difference on validation words."""
    validation_verdict: Verdict | None = None
    numbers: Mapping[str, Any] = MappingProxyType({})
    """All digits, for the CSV."""

    @property
    def detectable(self) -> str:
        """Smallest true difference that so many pairs find with probability .8."""
        return number(self.numbers.get("detectable_difference", math.nan))


class ClaimsTable(NamedTuple):
    """Everything that a page says of claims."""

    primary: Sequence[Row]
    exploratory: Sequence[Row]
    runs: int
    """Finished runs of the study."""
    other_protocol: int
    """Those made under another version of the protocol than the present one, or under an unknown one."""
    readings: Sequence[Reading] = ()
    """What the primary claims that have pairs say one-sided."""


def claims_table(studies: Sequence[Study], logs: Logs) -> ClaimsTable | None:
    """Judge all claims of a report's studies; None for a report that holds no run of the study."""
    own = {study.reward: study for study in studies if study.experiment == EXPERIMENT}
    if not own:
        return None
    is_finished = (logs.summary["experiment"] == EXPERIMENT) & (logs.summary["state"] == "finished")
    made_under = [logs.environments[int(i)].get("protocol_sha256") for i in np.flatnonzero(is_finished)]
    protocol = hashlib.sha256(Path(claims.__file__).read_bytes()).hexdigest()
    others = list(_exploratory(own))
    unseen = [row for row in others if row.family == "unseen judges" and row.numbers["reward"] == BASE.reward]
    return ClaimsTable(
        _primary(own),
        [*others, _consistency(unseen), *_overhead(own.get(BASE.reward))],
        len(made_under),
        sum(one != protocol for one in made_under),
        [
            read_afterwards(claim, pairs.pair, *pairs.study.untrained(cell_of(claim.control)))
            for claim in PRIMARY
            if (pairs := _measured(own, claim)).study and pairs.judged
        ],
    )


def claims_frame(table: ClaimsTable) -> pd.DataFrame:
    """The claims table with run ids, as tables/claims.csv has it."""
    records = []
    for row in (*table.primary, *table.exploratory):
        shown = dict(zip(COLUMNS, row[:9], strict=True)) | {"validation_verdict": row.validation_verdict or ""}
        records.append(shown | dict(row.numbers))
    return pd.DataFrame(records)


def claims_markdown(table: ClaimsTable) -> str:
    """Primary and exploratory claims as tables of GitHub's Markdown."""
    titled = {"Primary claims": table.primary, "Exploratory: each for itself, no conclusion": table.exploratory}
    parts = [f"**{title}**\n\n{_markdown(rows)}" for title, rows in titled.items()]
    if table.readings:
        parts.append("\n\n".join([*sentences(table.readings), markdown(readings_table(table.readings))]))
    return "\n".join([f"{protocol_note(table)}\n", *parts])


def claims_digest(table: ClaimsTable, links: Mapping[str, str]) -> str:
    """The primary claims as a README shows them, with links to read further: addresses by name."""
    further = " · ".join(f"[{name}]({address})" for name, address in links.items())
    opening = f"**The paper's claims, tested.** {protocol_note(table)}"
    rest = f"These are the primary claims; {len(table.exploratory)} exploratory ones, and all else: {further}."
    again = " ".join(sentences(table.readings)[:2]) + "\n\n" if table.readings else ""
    return f"{opening}\n\n{_markdown(table.primary, len(HEAD) - 3)}\n{again}{rest}"


def protocol_note(table: ClaimsTable) -> str:
    """What holds of all verdicts, in sentences."""
    levels = sorted({f"{100 * row.numbers['confidence']:.1f} %" for row in table.primary if row.numbers["confidence"]})
    of_levels = " to ".join(dict.fromkeys((levels[0], levels[-1]))) if levels else "no confidence yet"
    text = (
        f"{table.runs} finished runs. Verdicts by analysis/claims.py: supported where the interval lies above 0, not "
        f"supported where it lies below 0 or within ±{claims.MARGIN:g}, else inconclusive. Intervals resample seeds "
        "and words. Holm's procedure keeps the chance of any false “supported” among the primary claims at 5 %: "
        f"their intervals are of {of_levels}, those of other tables of {100 * claims.CONFIDENCE:g} %. A "
        "claim is inconclusive while planned pairs are missing."
    )
    if table.other_protocol:
        text += f" {table.other_protocol} of the runs were made under another version of that file."
    return text


def _markdown(rows: Sequence[Row], num_columns: int = len(HEAD)) -> str:
    lines = [
        [
            row.statement + (f" ({row.measure})" if row.measure else ""),
            *(row.verdict or MISSING, row.ours, row.paper, row.pairs, row.detectable),
            *(row.validation, row.validation_verdict or MISSING),
        ]
        for row in rows
    ]
    return markdown_table(HEAD[:num_columns], [line[:num_columns] for line in lines])


# --- claims that are a difference of two cells ----------------------------------------------------------------------


def cell_of(arm: Arm) -> Cell:
    """The cell that a protocol's arm means."""
    return Cell(arm.method, arm.selection, arm.fusion_weight > 0, arm.fusion_weight, arm.variant)


class _Pairs(NamedTuple):
    """Pairs of finished runs that count for a claim."""

    study: Study | None
    seeds: Sequence[int]
    pair: Pair
    runs: pd.DataFrame
    """Rows of ``summary``."""

    @property
    def judged(self) -> Pair | None:
        """None below two seeds."""
        return self.pair if len(self.seeds) > 1 else None


_Own = Mapping[str, Study]
"""The study's parts by the reward that was trained on."""


def _primary(own: _Own) -> list[Row]:
    on_test, on_validation = ([_measured(own, one, METRIC, s) for one in PRIMARY] for s in ("test", "validation"))
    families = [judge_family([pairs.judged for pairs in of_split]) for of_split in (on_test, on_validation)]
    return [
        _row(PRIMARY_FAMILY, *one) for one in zip(PRIMARY, [METRIC] * len(PRIMARY), on_test, *families, strict=True)
    ]


def _exploratory(own: _Own) -> Iterator[Row]:
    for group, claim, measure, margin, pair_of in questions():
        pairs = _find(own, claim, pair_of) if pair_of else _measured(own, claim, measure)
        validation = judge_alone(_measured(own, claim, split="validation").judged) if measure == METRIC else None
        yield _row(group, claim, measure, pairs, judge_alone(pairs.judged, margin), validation)


def _measured(own: _Own, claim: Claim, metric: str = METRIC, split: str = "test") -> _Pairs:
    return _find(own, claim, lambda study, *cells, among: study.pair(*cells, metric, split, among))


def _find(own: _Own, claim: Claim, pair_of: PairOf) -> _Pairs:
    study = own.get(claim.control.reward)
    cells = dict(study.cells) if study else {}
    arms = cell_of(claim.treatment), cell_of(claim.control)
    if study is None or not set(arms) <= set(cells):
        return _Pairs(study, [], Pair(np.empty(0), np.empty(0)), pd.DataFrame(columns=["run_id", "seed", "processor"]))
    seeds, pair = pair_of(study, *arms, among=STUDY_SEEDS[: claim.seeds])
    rows = pd.concat([cells[arm] for arm in arms])
    return _Pairs(study, seeds, pair, rows[rows["seed"].isin(seeds) & rows["run_id"].isin(study.finished)])


def _row(family: str, claim: Claim, metric: str, pairs: _Pairs, test: Judgement, validation: Judgement | None) -> Row:
    """A claim as it is judged with so many pairs; ``validation`` of what is measured by the reward trained on alone."""
    count, paired = len(pairs.seeds), paired_summary(*pairs.pair)
    test = settle(test, count, claim.seeds)
    validation = validation and settle(validation, count, claim.seeds)
    # Two models of processor, between which rewards differ as well.
    mixed = int((pairs.runs.groupby("seed")["processor"].nunique() > 1).sum())
    numbers: dict[str, Any] = {
        "name": claim.name,
        "treatment": cell_of(claim.treatment).label,
        "control": cell_of(claim.control).label,
        "reward": claim.control.reward,
        "seeds": count,
        "planned_seeds": claim.seeds,
        "difference": paired.difference,
        **_digits("", test),
        "sd": paired.sd,
        "correlation": paired.correlation,
        "detectable_difference": paired.detectable,
        **(_digits("validation_", validation) if validation else {}),
        "pairs_on_two_processors": mixed,
        "run_ids": " ".join(sorted(set(pairs.runs["run_id"]))),
    }
    return Row(
        family,
        claim.statement,
        "" if metric == METRIC else metric,
        _published(claim.name),
        interval_text(test.interval) if test.interval else number(paired.difference, signed=True),
        f"{count} of {claim.seeds}" + (f" ({mixed} on two processors)" if mixed else ""),
        test.verdict,
        interval_text(validation.interval) if validation and validation.interval else MISSING,
        validation.verdict if validation else None,
        numbers,
    )


def _digits(prefix: str, judgement: Judgement) -> dict[str, float]:
    _, low, high = judgement.interval or (math.nan,) * 3
    digits = {"low": low, "high": high, "confidence": judgement.confidence, "p_value": judgement.p_value}
    return {f"{prefix}{name}": value for name, value in digits.items()}


def _published(name: str) -> str:
    """What the paper reports of a claim, one run each, Flow-GRPO on HPS-v3 where it does not say otherwise."""
    ends = paper.ends_of(name)
    return f"{number(ends[1] - ends[0], 2, signed=True)} HPS-v3 ({ends[0]:.2f} → {ends[1]:.2f})" if ends else MISSING


# --- claims that are no difference of two cells ---------------------------------------------------------------------


def _consistency(unseen: Sequence[Row]) -> Row:
    """Gains on judges that were not trained on, counted: the paper's pairs of cells by judge, and ours."""
    there = [row for row in unseen if row.numbers["seeds"]]
    positive = sum(row.numbers["difference"] > 0 for row in there)
    found = sum(row.verdict == "supported" for row in there)
    return Row(
        "unseen judges",
        "+ AdaGRPO gains on every judge that was not trained on",
        "",
        "; ".join(f"{judge_name(name)} {count} of {pairs}" for name, (count, pairs) in paper.unseen_gains().items()),
        f"{positive} of {len(there)} above 0, {found} with an interval above 0" if there else MISSING,
        f"{len(there)} of {len(unseen)} comparisons",
        judge_consistency([row.verdict or "no runs yet" for row in unseen]),
        numbers={
            "name": "consistent",
            "run_ids": " ".join(sorted({i for row in there for i in row.numbers["run_ids"].split()})),
        },
    )


def _overhead(study: Study | None) -> list[Row]:
    """What candidates cost per iteration: counted at the paper's setting, which decides the claim, and measured."""
    counted = paper.overhead()
    rows = [
        Row(
            "overhead",
            f"AdaGRPO costs about {CLAIMED_OVERHEAD:.0%} more an iteration",
            "network forwards at the paper's setting",
            f"about {CLAIMED_OVERHEAD:.0%}",
            f"{counted:+.0%}",
            "counted",
            judge_overhead(counted),
            numbers={"name": "overhead", "difference": counted, "run_ids": ""},
        )
    ]
    cells = dict(study.cells) if study else {}
    pair = cell_of(BASE), cell_of(ADAGRPO)
    if study and set(pair) <= set(cells):
        base, ours = (cells[cell] for cell in pair)
        rows.append(_ratio("network forwards, a trained sample as 3", "compute", base, ours))
        rows.append(_ratio("reward calls", "reward_calls", base, ours))
        rows.append(_ratio("seconds of training", "train_seconds", study.timed(base), study.timed(ours)))
    return rows


def _ratio(name: str, column: str, base: pd.DataFrame, ours: pd.DataFrame) -> Row:
    finished = [rows[rows["state"] == "finished"] for rows in (base, ours)]
    means = [float(rows[column].mean()) for rows in finished]
    share = means[1] / means[0] - 1 if min(map(len, finished)) else math.nan
    ids = sorted({i for rows in finished for i in rows["run_id"]})
    return Row(
        "overhead",
        "AdaGRPO's cost an iteration here",
        name,
        MISSING,
        f"{share:+.0%}" if math.isfinite(share) else MISSING,
        "measured",
        "no runs yet" if math.isnan(share) else None,
        numbers={"name": f"overhead {column}", "difference": share, "run_ids": " ".join(ids)},
    )
