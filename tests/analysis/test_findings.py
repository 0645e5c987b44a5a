"""Sentences about the study follow its numbers."""

import math

from analysis.claims import Verdict
from analysis.verdicts.claims_table import ClaimsTable, Row
from analysis.verdicts.findings import absences, control_sentence, findings, fusion_rows, limits


def row(
    statement: str,
    verdict: Verdict | None,
    family: str = "primary",
    validation: Verdict | None = None,
    **numbers: object,
) -> Row:
    return Row(family, statement, "", "–", "+0.010", "", verdict, "–", validation, numbers)


PRIMARY = [
    row("A beats B", "supported", low=0.01, high=0.03, seeds=12, planned_seeds=12, detectable_difference=0.02),
    row("B beats C", "not supported", low=-0.03, high=-0.01, seeds=8, planned_seeds=12, detectable_difference=0.031),
    row("C beats D", "not supported", low=-0.01, high=0.01, seeds=12, planned_seeds=12, correlation=0.4),
    row("D beats E", "inconclusive", "primary", "supported", low=-0.1, high=0.1, seeds=12, planned_seeds=12),
    row("X beats Y", "inconclusive", low=0.1, high=0.2, seeds=2, planned_seeds=12),
    row("E beats F", "no runs yet", planned_seeds=10),
]
EXPLORATORY = [
    row("weight", "inconclusive", "components", name="rescaled 1", low=-0.1, high=0.1),
    row("heavy", "no runs yet", "components", name="rescaled 15"),
    row("smooth", "supported", "stability", low=0.1, high=0.2),
    row("seconds", None, "overhead"),
    row("P 2", "no runs yet", "one at a time"),
]
TABLE = ClaimsTable(PRIMARY, EXPLORATORY, runs=40, other_protocol=0)


def test_each_outcome_has_a_sentence_and_the_opposite_is_told_from_nothing() -> None:
    assert findings(TABLE) == [
        "Supported, 1 of 6 primary claims: A beats B (+0.010).",
        "Not supported, the opposite was found, 1 of 6 primary claims: B beats C (+0.010).",
        "Not supported, no difference beyond ±0.02, 1 of 6 primary claims: C beats D (+0.010).",
        "Inconclusive, 1 of 6: D beats E.",
        "Open, since planned pairs are missing, 1 of 6: X beats Y.",
        "No runs yet, 1 of 6: E beats F.",
        "On validation words the verdict is another one for 1: D beats E (inconclusive; there supported).",
        "Exploratory, so no conclusion: components, 1 inconclusive of 2; stability, 1 supported of 1.",
    ]


def test_what_is_missing_is_one_sentence() -> None:
    assert absences(TABLE) == "Not there yet: runs for 3 of 11 claims; all planned pairs of 2 primary claims."
    assert absences(ClaimsTable([PRIMARY[0]], [EXPLORATORY[2]], 24, 0)) == "All that was planned is there."


def test_fusion_is_judged_by_its_control() -> None:
    assert [one.statement for one in fusion_rows(TABLE)] == ["weight", "heavy"]
    assert control_sentence(TABLE) == "Here: “weight”: inconclusive (+0.010); “heavy”: no runs yet."


def test_limits_are_those_of_the_runs_that_are_there() -> None:
    pairs, detectable, correlation, exploratory, protocol = limits(TABLE._replace(other_protocol=3))
    assert "2 to 12 finished pairs (planned: 10 to 12)" in pairs
    assert "of 0.020 to 0.031 with probability .8" in detectable
    assert "correlate by 0.40" in correlation
    assert exploratory.startswith("2 exploratory intervals")
    assert protocol.startswith("3 of 40 runs")
    assert limits(ClaimsTable([PRIMARY[-1]], [row("x", "no runs yet", low=math.nan)], 0, 0)) == []
