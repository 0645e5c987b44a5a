"""The claims table: what the paper says, what this study says, and the verdict, as people read it and as CSV."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis import claims, paper
from analysis.cells.labels import judge_name
from analysis.cells.logs import Logs
from analysis.cells.study import Study
from analysis.claims import CLAIMED_OVERHEAD, EXPERIMENT, Judgement, Verdict, judge_consistency, judge_overhead
from analysis.formats import MISSING, markdown, markdown_row, number
from analysis.verdicts.afterwards import Reading, read_afterwards, readings_table, sentences
from analysis.verdicts.exploratory import ADAGRPO, BASE
from analysis.verdicts.verdicts import PRIMARY_FAMILY, Compared, cell_of, judge_claims

COLUMNS = ["family", "claim", "metric", "paper", "ours", "pairs", "verdict", "validation", "validation_verdict"]
_HEAD = ["Claim", "Verdict", "Difference here", "The paper", "Pairs", "Detectable"]
_HEAD += ["On validation words", "Verdict there"]


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
    validation: str
    """The same difference on validation words."""
    validation_verdict: Verdict | None
    numbers: Mapping[str, Any]
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
    """Of these, made under another version of the protocol than the present one, or under an unknown one."""
    readings: Sequence[Reading] = ()
    """Of the primary claims that have pairs: what they say one-sided."""


def claims_table(studies: Sequence[Study], logs: Logs) -> ClaimsTable | None:
    """Judge all claims; None for a report that holds no run of the study.

    Args:
        studies: of the report.
        logs: that they were made from.
    """
    own = [study for study in studies if study.experiment == EXPERIMENT]
    if not own:
        return None
    compared = judge_claims(own)
    rows = [_row(one) for one in compared]
    primary = [row for row in rows if row.family == PRIMARY_FAMILY]
    exploratory = [row for row in rows if row.family != PRIMARY_FAMILY]
    unseen = [one for one in compared if one.family == "unseen judges"]
    is_finished = (logs.summary["experiment"] == EXPERIMENT) & (logs.summary["state"] == "finished")
    made_under = [logs.environments[int(i)] for i in np.flatnonzero(is_finished)]
    others = sum(_is_of_other_protocol(environment) for environment in made_under)
    of_reward = {study.reward: study for study in own}
    again = [
        read_afterwards(of_reward[one.claim.control.reward], one)
        for one in compared
        if one.family == PRIMARY_FAMILY and one.claim.control.reward in of_reward
    ]
    readings = [reading for reading in again if reading is not None]
    exploratory += [_consistency(unseen), *_overhead(own)]
    return ClaimsTable(primary, exploratory, len(made_under), others, readings)


def _is_of_other_protocol(environment: Mapping[str, Any]) -> bool:
    return environment.get("protocol_sha256") != protocol_sha256()


def protocol_sha256() -> str:
    """Of the present version of the protocol."""
    return hashlib.sha256(Path(claims.__file__).read_bytes()).hexdigest()


def claims_frame(table: ClaimsTable) -> pd.DataFrame:
    """The claims table with run ids, as tables/claims.csv has it."""
    records = []
    for row in (*table.primary, *table.exploratory):
        shown = dict(zip(COLUMNS, row[:9], strict=True)) | {"validation_verdict": row.validation_verdict or ""}
        records.append(shown | dict(row.numbers))
    return pd.DataFrame(records)


def claims_markdown(table: ClaimsTable) -> str:
    """Primary and exploratory claims as tables of GitHub's Markdown."""
    parts = [f"**{title}**\n\n{_markdown(rows)}" for title, rows in _titled(table)]
    if table.readings:
        parts.append("\n\n".join([*sentences(table.readings), markdown(readings_table(table.readings))]))
    return "\n".join([f"{protocol_note(table)}\n", *parts])


def claims_digest(table: ClaimsTable, links: Mapping[str, str]) -> str:
    """The primary claims as a README shows them.

    Args:
        table: all claims.
        links: what to read further: addresses by name.
    """
    columns = [_HEAD.index(name) for name in ("Claim", "Verdict", "Difference here", "The paper", "Pairs")]
    further = " · ".join(f"[{name}]({address})" for name, address in links.items())
    opening = f"**The paper's claims, tested.** {protocol_note(table)}"
    rest = f"These are the primary claims; {len(table.exploratory)} exploratory ones, and all else: {further}."
    again = " ".join(sentences(table.readings)[:2]) + "\n\n" if table.readings else ""
    return f"{opening}\n\n{_markdown(table.primary, columns)}\n{again}{rest}"


def protocol_note(table: ClaimsTable) -> str:
    """What holds of all verdicts, in sentences."""
    text = (
        f"{table.runs} finished runs. Verdicts by analysis/claims.py: supported where the interval lies above 0, not "
        f"supported where it lies below 0 or within ±{claims.MARGIN:g}, else inconclusive. Intervals resample seeds "
        "and words. Holm's procedure keeps the chance of any false “supported” among the primary claims at 5 %: "
        f"their intervals are of {_levels(table.primary)}, those of other tables of {100 * claims.CONFIDENCE:g} %. A "
        "claim is inconclusive while planned pairs are missing."
    )
    if table.other_protocol:
        text += f" {table.other_protocol} of the runs were made under another version of that file."
    return text


def _levels(rows: Sequence[Row]) -> str:
    """Confidence of the rows' intervals, such as "99.4 %", or from the least to the greatest."""
    levels = sorted({f"{100 * row.numbers['confidence']:.1f} %" for row in rows if row.numbers.get("confidence")})
    return " to ".join(dict.fromkeys((levels[0], levels[-1]))) if levels else "no confidence yet"


def _titled(table: ClaimsTable) -> list[tuple[str, Sequence[Row]]]:
    return [("Primary claims", table.primary), ("Exploratory: each for itself, no conclusion", table.exploratory)]


def _markdown(rows: Sequence[Row], columns: Sequence[int] = tuple(range(len(_HEAD)))) -> str:
    lines = [_HEAD, ["---"] * len(_HEAD)]
    for row in rows:
        name = row.statement + (f" ({row.measure})" if row.measure else "")
        validation = row.validation, row.validation_verdict or MISSING
        lines.append([name, row.verdict or MISSING, row.ours, row.paper, row.pairs, row.detectable, *validation])
    return "".join(markdown_row([line[column] for column in columns]) + "\n" for line in lines)


def _row(one: Compared) -> Row:
    judgement, validation = one.judgement, one.validation
    numbers: dict[str, Any] = {
        "name": one.claim.name,
        "treatment": cell_of(one.claim.treatment).label,
        "control": cell_of(one.claim.control).label,
        "reward": one.claim.control.reward,
        "seeds": one.seeds,
        "planned_seeds": one.claim.seeds,
        "difference": one.difference,
        **_digits("", judgement),
        "sd": one.sd,
        "correlation": one.correlation,
        "detectable_difference": one.detectable,
        **(_digits("validation_", validation) if validation else {}),
        "pairs_on_two_processors": one.mixed,
        "run_ids": " ".join(one.run_ids),
    }
    return Row(
        one.family,
        one.claim.statement,
        "" if one.metric == claims.METRIC else one.metric,
        _published(one.claim.name),
        difference_text(one.difference, judgement),
        f"{one.seeds} of {one.claim.seeds}" + (f" ({one.mixed} on two processors)" if one.mixed else ""),
        one.verdict,
        difference_text(validation.interval.estimate if validation.interval else math.nan, validation)
        if validation
        else MISSING,
        validation.verdict if validation else None,
        numbers,
    )


def difference_text(difference: float, judgement: Judgement) -> str:
    """As in "+0.016 [−0.005, +0.037]"."""
    text = number(difference, 3, signed=True)
    if judgement.interval is None:
        return text
    low, high = (number(bound, 3, signed=True) for bound in judgement.interval[1:])
    return f"{text} [{low}, {high}]"


def _digits(prefix: str, judgement: Judgement) -> dict[str, float]:
    interval = judgement.interval
    return {
        f"{prefix}low": interval.low if interval else math.nan,
        f"{prefix}high": interval.high if interval else math.nan,
        f"{prefix}confidence": judgement.confidence,
        f"{prefix}p_value": judgement.p_value,
    }


# --- claims that are no difference of two cells ---------------------------------------------------------------------


def _consistency(unseen: Sequence[Compared]) -> Row:
    """Gains on judges that were not trained on, counted: the paper's pairs of cells by judge, and ours."""
    unseen = [one for one in unseen if one.claim.control.reward == BASE.reward]
    there = [one for one in unseen if one.seeds]
    positive = sum(one.difference > 0 for one in there)
    found = sum(one.verdict == "supported" for one in there)
    ours = f"{positive} of {len(there)} above 0, {found} with an interval above 0" if there else MISSING
    verdict = judge_consistency([one.verdict for one in unseen])
    numbers = {"name": "consistent", "run_ids": " ".join(sorted({i for one in there for i in one.run_ids}))}
    return Row(
        "unseen judges",
        "+ AdaGRPO gains on every judge that was not trained on",
        "",
        "; ".join(f"{judge_name(name)} {count} of {pairs}" for name, (count, pairs) in paper.unseen_gains().items()),
        ours,
        f"{len(there)} of {len(unseen)} comparisons",
        verdict,
        MISSING,
        None,
        numbers,
    )


def _overhead(studies: Sequence[Study]) -> list[Row]:
    """What candidates cost an iteration: counted at the paper's setting, which the claim is judged by, and measured."""
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
            MISSING,
            None,
            {"name": "overhead", "difference": counted, "run_ids": ""},
        )
    ]
    for study in studies:
        cells = dict(study.cells)
        base, ours = cell_of(BASE), cell_of(ADAGRPO)
        if study.reward != BASE.reward or base not in cells or ours not in cells:
            continue
        for name, column in (("network forwards, a trained sample as 3", "compute"), ("reward calls", "reward_calls")):
            rows.append(_ratio(name, column, cells[base], cells[ours]))
        timed = [study.timed(cells[cell]) for cell in (base, ours)]
        rows.append(_ratio("seconds of training", "train_seconds", *timed))
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
        MISSING,
        None,
        {"name": f"overhead {column}", "difference": share, "run_ids": " ".join(ids)},
    )


# --- the paper's numbers --------------------------------------------------------------------------------------------


def _published(name: str) -> str:
    """What the paper reports of a claim, one run each, Flow-GRPO on HPS-v3 where it does not say otherwise."""
    ends = paper.ends_of(name)
    if ends is None:
        return MISSING
    before, after = ends
    return f"{number(after - before, 2, signed=True)} HPS-v3 ({before:.2f} → {after:.2f})"
