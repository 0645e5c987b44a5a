"""Claims are judged from the study's runs alone, on the planned seeds, and the table says what is missing."""

import hashlib
import html
import json
import math
import re
from collections import defaultdict
from pathlib import Path

import pandas as pd
import pytest
from fabricated import WriteRun
from scipy import stats

from analysis import claims, paper
from analysis.cells.logs import load_logs
from analysis.cells.study import split_studies
from analysis.claims import EXPERIMENT, PRIMARY, STUDY_SEEDS
from analysis.figures import Group
from analysis.gradients.report import read_mechanism_report
from analysis.report import report
from analysis.report.insertion import END, START
from analysis.report.report import write_report
from analysis.verdicts import claims_table as claims_tables
from analysis.verdicts import exploratory
from analysis.verdicts.claims_table import ClaimsTable, Row, claims_frame, claims_markdown, claims_table, protocol_note
from analysis.verdicts.findings import limits
from analysis.verdicts.stability import roughness
from harness.foundation.errors import ConfigError


@pytest.fixture
def five_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims that plan more pairs plan five."""

    def at_most_five(claim: claims.Claim) -> claims.Claim:
        return claim._replace(seeds=min(claim.seeds, 5))

    asked = [one._replace(claim=at_most_five(one.claim)) for one in exploratory.questions()]
    monkeypatch.setattr(claims_tables, "PRIMARY", tuple(map(at_most_five, PRIMARY)))
    monkeypatch.setattr(claims_tables, "questions", lambda: asked)


@pytest.fixture
def runs(five_planned: None, write_run: WriteRun, tmp_path: Path) -> Path:
    """Five seeds of Flow-GRPO and of + AdaGRPO, which is .1 better on test words and rougher in its curve."""
    gains = (0.10, 0.12, 0.08, 0.11, 0.09)
    for seed, gain in zip(STUDY_SEEDS, gains, strict=False):
        base = 0.6 + 0.01 * (seed - STUDY_SEEDS[0])
        write_run(f"base-{seed}", seed=seed, test=base, rewards=(0.5, 0.6, 0.7, 0.8), experiment=EXPERIMENT)
        curve = (0.5, 0.6, 0.75, 0.8)
        ours = {"selection": "curriculum", "fusion": True, "rewards": curve}
        write_run(f"ours-{seed}", seed=seed, test=base + gain, experiment=EXPERIMENT, **ours)
    return tmp_path / "runs"


def table_of(folder: Path) -> ClaimsTable:
    logs = load_logs(folder)
    return claims_table(split_studies(logs), logs)


def rows_of(table: ClaimsTable) -> dict[str, Row]:
    return {row.numbers["name"]: row for row in (*table.primary, *table.exploratory)}


def test_a_claim_has_its_difference_its_interval_and_its_runs(runs: Path, write_run: WriteRun) -> None:
    # Seeds beyond the planned ones, or not of the study, and other experiments do not count.
    for seed, experiment in ((3, EXPERIMENT), (STUDY_SEEDS[-1], EXPERIMENT), (STUDY_SEEDS[6], "grid")):
        other = {"experiment": experiment, "rewards": (0.5, 0.6, 0.7, 0.8)}
        write_run(f"other-base-{seed}", seed=seed, test=0.9, **other)
        other |= {"selection": "curriculum", "fusion": True}
        write_run(f"other-ours-{seed}", seed=seed, test=0.1, **other)
    row = rows_of(table_of(runs))["flow_grpo"]
    found = row.numbers
    assert (row.verdict, row.pairs) == ("supported", "5 of 5")
    assert found["difference"] == pytest.approx(0.1)
    assert found["sd"] == pytest.approx(0.0158, abs=1e-4)
    # Differences are equal on both words: the interval is Student's, at the confidence of one claim among nine.
    t = stats.t.ppf(1 - 0.05 / 9 / 2, 4)
    assert found["confidence"] == pytest.approx(1 - 0.05 / 9)
    assert found["low"] == pytest.approx(0.1 - t * found["sd"] / math.sqrt(5), abs=1e-3)
    assert found["run_ids"].split() == sorted(f"{c}-{s}" for c in ("base", "ours") for s in STUDY_SEEDS[:5])
    # The mean of the last three validations: (.6 + .75 + .8) / 3 - (.6 + .7 + .8) / 3.
    assert row.validation.startswith("+0.017 [")
    assert row.validation_verdict == "supported"


def test_without_all_planned_pairs_nothing_is_decided(runs: Path) -> None:
    status = runs / "grid" / f"ours-{STUDY_SEEDS[4]}" / "status.json"
    status.write_text(json.dumps(json.loads(status.read_text()) | {"state": "failed", "reason": "not finite"}))
    row = rows_of(table_of(runs))["flow_grpo"]
    assert (row.verdict, row.pairs, row.validation_verdict) == ("inconclusive", "4 of 5", "inconclusive")
    assert row.numbers["low"] > 0


def test_variants_and_judges_are_exploratory_and_judged_alone(runs: Path, write_run: WriteRun) -> None:
    for seed in STUDY_SEEDS[:2]:
        slower = {"capability": {"decay": 0.95}, "rewards": (0.5, 0.6, 0.75, 0.8), "experiment": EXPERIMENT}
        write_run(f"slow-{seed}", seed=seed, test=0.9, selection="curriculum", fusion=True, **slower)
    rows = rows_of(table_of(runs))
    slow = rows["decay 0.95"]
    assert (slow.family, slow.pairs) == ("one at a time", "2 of 2")
    # .9 - .70 and .9 - .73.
    assert slow.numbers["difference"] == pytest.approx(0.185)
    assert slow.numbers["confidence"] == 0.95
    unseen = rows["flow_grpo-ocr-ocr-v4/word_accuracy"]
    assert (unseen.verdict, unseen.validation_verdict) == ("supported", None)
    assert unseen.numbers["difference"] == pytest.approx(0.1)


def test_roughness_is_the_noise_about_a_trend() -> None:
    assert roughness([0.1, 0.2, 0.3, 0.4]) == pytest.approx(0)
    # One deviation of .1 / 2: sqrt(2 / 3) x .05.
    assert roughness([0.0, 0.1, 0.1]) == pytest.approx(math.sqrt(2 / 3) * 0.05)
    assert math.isnan(roughness([0.1, 0.2]))
    noise = pd.Series(range(4000)).map(lambda i: int(hashlib.sha256(str(i).encode()).hexdigest()[:8], 16) / 2**32)
    assert roughness(noise + 0.3 * noise.index) == pytest.approx(1 / math.sqrt(12), rel=0.03)


def test_the_table_has_the_paper_s_numbers_and_all_that_is_counted(runs: Path) -> None:
    table = table_of(runs)
    rows = rows_of(table)
    assert rows["flow_grpo"].paper == "+0.38 HPS-v3 (14.71 → 15.10)"
    assert rows["flow_grpo"].pairs == "5 of 5"
    # Base curves are straight; the others deviate by (.6 + .8) / 2 - .75 once.
    assert rows["smooth-flow_grpo"].numbers["difference"] == pytest.approx(-math.sqrt(2 / 3) * 0.05)
    assert rows["smooth-flow_grpo"].verdict == "not supported"
    (reading,) = table.readings
    assert reading.gain == pytest.approx(0.17)
    assert reading.published == pytest.approx(0.17 * paper.relative_gain("flow_grpo"))
    assert (reading.outcome, reading.is_smaller) == ("above 0", False)
    assert 0.08 < reading.bounds.low < reading.bounds.estimate < reading.bounds.high < 0.12
    assert rows["curriculum"].ours == "–"
    assert rows["overhead"].ours == "+24%"
    assert rows["overhead"].verdict == "supported"
    # Fabricated runs spend 100 and 200 forwards per iteration, and 10 trained samples.
    assert rows["overhead compute"].ours == f"{230 / 130 - 1:+.0%}"
    assert rows["overhead compute"].verdict is None
    # The unseen judges ocr-v4, its accuracy and colour, of one of nine pairs of cells.
    assert rows["consistent"].ours == "2 of 3 above 0, 2 with an interval above 0"
    assert rows["consistent"].paper.startswith("HPS-v2 6 of 6; HPS-v3 3 of 3; UR-v2 alignment 2 of 9")
    assert rows["consistent"].pairs == "3 of 9 comparisons"
    assert rows["consistent"].verdict == "inconclusive"  # Colour does not move, which is no loss.


def test_a_gain_as_large_as_the_paper_s_can_be_excluded(
    five_planned: None, write_run: WriteRun, tmp_path: Path
) -> None:
    for seed, gain in zip(STUDY_SEEDS, (0.001, -0.001, 0.002, 0.0, -0.002), strict=False):
        write_run(f"base-{seed}", seed=seed, test=0.6, experiment=EXPERIMENT)
        ours = {"selection": "curriculum", "fusion": True, "test": 0.6 + gain}
        write_run(f"ours-{seed}", seed=seed, experiment=EXPERIMENT, **ours)
    (reading,) = table_of(tmp_path / "runs").readings
    assert reading.is_smaller
    assert reading.outcome.startswith("equivalent")
    assert max(reading.equivalence) < 0.05
    assert reading.power > 0.99


def test_pairs_made_on_two_processors_are_named(runs: Path) -> None:
    for name, processor in ((f"base-{STUDY_SEEDS[0]}", "one"), (f"ours-{STUDY_SEEDS[0]}", "another")):
        (runs / "grid" / name / "environment.json").write_text(json.dumps({"processor": processor}))
    table = table_of(runs)
    rows = rows_of(table)
    assert rows["flow_grpo"].numbers["pairs_on_two_processors"] == 1
    assert rows["flow_grpo"].pairs == "5 of 5 (1 on two processors)"
    assert any("two models of processor" in sentence and "1 of 5" in sentence for sentence in limits(table))


def test_csv_and_markdown_have_every_claim(runs: Path) -> None:
    table = table_of(runs)
    frame = claims_frame(table).set_index("name")
    assert frame.loc["flow_grpo", "difference"] == pytest.approx(0.1)
    assert frame.loc["flow_grpo", "run_ids"].split()[0] == f"base-{STUDY_SEEDS[0]}"
    assert frame.loc["dance_grpo", "verdict"] == "no runs yet"
    assert {"low", "high", "p_value", "detectable_difference", "correlation", "validation_low"} <= set(frame.columns)
    text = claims_markdown(table)
    assert "| Flow-GRPO + AdaGRPO beats Flow-GRPO | supported | +0.100 [" in text
    assert text.partition("after the fact")[0].count("\n|") == len(frame) + 2 * 2


def test_runs_of_another_protocol_are_counted(runs: Path) -> None:
    environment = runs / "grid" / f"base-{STUDY_SEEDS[0]}" / "environment.json"
    now = hashlib.sha256(Path(claims.__file__).read_bytes()).hexdigest()
    environment.write_text(json.dumps({"protocol_sha256": now}))
    table = table_of(runs)
    assert (table.runs, table.other_protocol) == (10, 9)
    assert "9 of the runs were made under another version of that file" in protocol_note(table)


@pytest.fixture
def without_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of studies take seconds to draw; and no measurement but a test's own."""
    nothing = defaultdict(Group)
    monkeypatch.setattr(report, "draw_study", lambda study: nothing)
    monkeypatch.setattr(report, "MECHANISM", tmp_path / "measurement")


def sections_of(page: str) -> str:
    return " ".join(re.findall(r'<section id="([a-z]+)">', page))


@pytest.mark.usefixtures("without_figures")
def test_the_report_shows_the_claims_and_says_what_is_missing(runs: Path, tmp_path: Path) -> None:
    page = write_report(runs, tmp_path / "out").read_text()
    assert "<h2>The paper's claims</h2>" in page.replace("&#39;", "'")
    assert 'class="text verdict supported">supported</td>' in page
    assert 'class="text verdict no-runs-yet">no runs yet</td>' in page
    assert "<li>Supported, 1 of 9 primary claims: Flow-GRPO + AdaGRPO beats Flow-GRPO (+0.100 [" in page
    assert (tmp_path / "out" / "tables" / "claims.csv").is_file()
    assert (tmp_path / "out" / "tables" / "claims.md").read_text().startswith("10 finished runs.")
    assert sections_of(page) == "claims main chosen experiments fusion stability cells runs gallery limits"
    assert "Not there yet: runs for " in page
    assert "mechanism-" not in page
    figures = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert figures == {"claims.svg", "fusion-example-weak.svg", "fusion-example-strong.svg"}


@pytest.mark.usefixtures("without_figures")
def test_the_page_of_the_study_shows_a_measurement_of_gradients(runs: Path, tmp_path: Path) -> None:
    measurement = Path(__file__).parents[2] / "results" / "mechanism"
    page = write_report(runs, tmp_path / "out", measurement).read_text()
    assert sections_of(page) == "claims main chosen experiments mechanism fusion stability cells runs gallery limits"
    for topic, name in (("prompts", "mechanism"), ("fusion", "fusion")):
        shown = html.unescape(page.partition(f'<section id="{name}">')[2].partition("</section>")[0])
        for section in (one for one in read_mechanism_report(measurement).sections if one.topic == topic):
            assert all(f"<li>{sentence}</li>" in shown for sentence in section.sentences)
            assert all(f'id="mechanism-{figure}-' in shown for figure in section.figures)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


@pytest.mark.usefixtures("without_figures")
def test_the_readme_gets_the_primary_claims_once(runs: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    for markers in ("", START, f"{END}\n{START}", f"{START}\n{START}\n{END}"):
        readme.write_text(markers)
        with pytest.raises(ConfigError, match=r"README\.md: needs the line"):
            write_report(runs, tmp_path / "out", readme=readme)
        assert not (tmp_path / "out").exists()
    for text in (f"{START}\nold\n{END}", None):
        if text:
            readme.write_bytes(f"# Title\r\n\n{text}\nafter, without an end of line".encode())
        write_report(runs, tmp_path / "out", readme=readme)
        before, claims_, after = re.split(f"{START}|{END}", readme.read_bytes().decode())
        assert (before, after) == ("# Title\r\n\n", "\nafter, without an end of line")
    assert "| Flow-GRPO + AdaGRPO beats Flow-GRPO | supported | +0.100 [" in claims_
    assert claims_.count("\n|") == 2 + len(PRIMARY)
    assert "[the page](out/report.html)" in claims_
