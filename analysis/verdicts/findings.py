"""What the claims table says, in plain words: all of it computed, so that no sentence outlives its numbers."""

import math
from collections.abc import Iterator, Sequence

from analysis.claims import CONFIDENCE, MARGIN
from analysis.formats import number
from analysis.verdicts.claims_table import ClaimsTable, Row

_CONTROLS = ("rescaled 1", "rescaled 15")
_OF_FUSION = ("fusion", "fusion-alone", *_CONTROLS, "weight 5", "weight 15")


def findings(table: ClaimsTable) -> list[str]:
    """What was found, a sentence per kind of outcome; exploratory claims are counted, not concluded from."""
    return [*_primary(table.primary), *_exploratory(table.exploratory)]


def absences(table: ClaimsTable) -> str:
    """One sentence of what is planned and not there yet."""
    rows = (*table.primary, *table.exploratory)
    missing = sum(row.verdict == "no runs yet" for row in rows)
    short = sum(row.verdict != "no runs yet" and _is_short(row) for row in table.primary)
    parts = [f"runs for {missing} of {len(rows)} claims"] if missing else []
    parts += [f"all planned pairs of {short} primary claims"] if short else []
    return f"Not there yet: {'; '.join(parts)}." if parts else "All that was planned is there."


def fusion_rows(table: ClaimsTable) -> list[Row]:
    """Claims that say what fusion does in training."""
    rows = {str(row.numbers.get("name")): row for row in (*table.primary, *table.exploratory)}
    return [rows[name] for name in _OF_FUSION if name in rows]


def control_sentence(table: ClaimsTable) -> str:
    """Whether fusion beats the control that only rescales, by weight."""
    controls = [row for row in fusion_rows(table) if row.numbers["name"] in _CONTROLS]
    said = [
        f"“{row.statement}”: {row.verdict}" + (f" ({row.ours})" if row.verdict != "no runs yet" else "")
        for row in controls
    ]
    return f"Here: {'; '.join(said)}."


def limits(table: ClaimsTable) -> list[str]:
    """How much the study can tell, from its own numbers."""
    found = [row for row in table.primary if _seeds(row)]
    sentences = []
    if found:
        sentences.append(
            f"Primary claims rest on {_range(list(map(_seeds, found)), 0)} finished pairs (planned: "
            f"{_range(list(map(_planned, table.primary)), 0)})."
        )
    if detectable := _finite(found, "detectable_difference"):
        sentences.append(
            f"So many find a true difference of {_range(detectable)} with probability .8: smaller ones may be there "
            "and not be seen."
        )
    rows = (*table.primary, *table.exploratory)
    mixed = {row.statement: (row.numbers.get("pairs_on_two_processors", 0), _seeds(row)) for row in rows}
    mixed = {statement: counts for statement, counts in mixed.items() if counts[0]}
    if mixed:
        parts = [f"{name}, {count} of {pairs}" for name, (count, pairs) in mixed.items() if count < pairs]
        whole = sum(count == pairs for count, pairs in mixed.values())
        parts += [f"all pairs of {whole} claims"] if whole else []
        sentences.append(
            "Pairs whose two runs were made on two models of processor, between which rewards differ as well "
            f"(docs/study.md says by how much): {'; '.join(parts)}."
        )
    if correlation := _finite(found, "correlation"):
        sentences.append(f"Paired runs correlate by {_range(correlation, 2)}; the less, the less pairing helps.")
    if judged := len(_finite(table.exploratory, "low")):
        sentences.append(
            f"{judged} exploratory intervals of {100 * CONFIDENCE:.0f} % each: about {(1 - CONFIDENCE) * judged:.0f} "
            "of them would miss 0 if nothing were there."
        )
    if table.other_protocol:
        sentences.append(
            f"{table.other_protocol} of {table.runs} runs were made under another version of the protocol."
        )
    return sentences


def _primary(rows: Sequence[Row]) -> Iterator[str]:
    """Every primary claim once, by its outcome; then where the two measures disagree."""
    listed: dict[str, list[str]] = {}
    opposite, nothing = "Not supported, the opposite was found", f"Not supported, no difference beyond ±{MARGIN:g}"
    decided = ("Supported", opposite, nothing)
    undecided = ("Inconclusive", "Open, since planned pairs are missing", "No runs yet")
    for row in rows:
        if row.verdict == "not supported":
            outcome = opposite if row.numbers.get("high", 0) < 0 else nothing
        elif row.verdict == "inconclusive":
            outcome = undecided[_is_short(row)]
        else:
            outcome = str(row.verdict).capitalize()
        shown = f"{row.statement} ({row.ours})" if outcome in decided else row.statement
        listed.setdefault(outcome, []).append(shown)
    for name in (*decided, *undecided):
        if name in listed:
            primary = " primary claims" if name in decided else ""
            yield f"{name}, {len(listed[name])} of {len(rows)}{primary}: {'; '.join(listed[name])}."
    others = [
        f"{row.statement} ({row.verdict}; there {row.validation_verdict})"
        for row in rows
        if row.validation_verdict not in (None, "no runs yet", row.verdict) and row.verdict != "no runs yet"
    ]
    if others:
        yield f"On validation words the verdict is another one for {len(others)}: {'; '.join(others)}."


def _exploratory(rows: Sequence[Row]) -> Iterator[str]:
    """How the claims of each family that has runs came out."""
    parts = []
    for family in dict.fromkeys(row.family for row in rows):
        verdicts = [row.verdict for row in rows if row.family == family and row.verdict is not None]
        counts = {verdict: verdicts.count(verdict) for verdict in ("supported", "not supported", "inconclusive")}
        counted = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
        if counted:
            parts.append(f"{family}, {counted} of {len(verdicts)}")
    if parts:
        yield f"Exploratory, so no conclusion: {'; '.join(parts)}."


def _seeds(row: Row) -> int:
    return int(row.numbers.get("seeds", 0))


def _planned(row: Row) -> int:
    return int(row.numbers.get("planned_seeds", 0))


def _is_short(row: Row) -> bool:
    return _seeds(row) < _planned(row)


def _finite(rows: Sequence[Row], name: str) -> list[float]:
    values = [float(row.numbers.get(name, math.nan)) for row in rows]
    return [value for value in values if math.isfinite(value)]


def _range(values: Sequence[float], digits: int = 3) -> str:
    low, high = number(min(values), digits), number(max(values), digits)
    return low if low == high else f"{low} to {high}"
