"""The study's protocol speaks of cells that its grid files have, with as many seeds as it counts on."""

import math
import re
from collections import defaultdict
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fabricated import NO_FIGURES, study_of, write_run

from analysis.cells.labels import Cell
from analysis.cells.study import Study
from analysis.cells.variants import name_variants
from analysis.decisions import LEVEL
from analysis.figures.drawing import draw_panel
from analysis.figures.levels import map_panels
from analysis.report import head, report
from analysis.report.head import added_by_study
from analysis.verdicts import checks, levels
from analysis.verdicts.conclusions import conclude, rows, runs_of_plan
from analysis.verdicts.levels import map_frame, prediction_frame, prediction_table
from analysis.verdicts.planned import FAMILIES, LARGER_GROUP, PRIMARY
from harness.config import EXPERIMENTS, numeric_settings
from harness.experiments.study import read_study
from harness.foundation.errors import ConfigError

STUDY = EXPERIMENTS / "study" / "all.yaml"


def test_every_claim_has_its_cells_and_seeds() -> None:
    study = read_study(Path(STUDY))
    configs = [config for name in study.names for config in study.configs(name)]
    dumps = [config.model_dump(mode="json") for config in configs]
    variants = name_variants(dumps, [{"settings": numeric_settings(config)} for config in configs])
    seeds: dict[tuple[str, Cell], set[int]] = defaultdict(set)
    for config, variant in zip(configs, variants, strict=True):
        weight = config.fusion.weight if config.fusion.enabled else 0.0
        cell = Cell(config.method.kernel, config.selection, config.fusion.enabled, weight, variant)
        seeds[config.experiment, cell].add(config.seed)
    claimed = set()
    for family in FAMILIES:
        for claim, pairs in family.claims:
            sides = [family.experiment, *claim.comparisons[0]]
            shared = [seeds[family.experiment, side.cell(claim.methods[0])] for side in claim.comparisons[0]]
            assert len(set.intersection(*shared)) == pairs, sides
            claimed |= {(family.experiment, side.cell(claim.methods[0])) for side in claim.comparisons[0]}
    unclaimed = {cell for cell in seeds if cell[0] != "study-shuffled"} - claimed  # a check, without a claim
    # Where the map is tested, see analysis.verdicts.levels.
    assert unclaimed == {(name, LARGER_GROUP.cell("flow_grpo")) for name in ("study-luck", "study-letters-luck")}
    assert {len(seeds[cell]) for cell in unclaimed} == {12}


def test_the_rule_finds_what_is_planted_and_little_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "TRIALS", 400)
    found = checks.check_rule(np.random.default_rng(5).normal(0.9, 0.05, 32), gain=0.4)
    for one in found[:2]:
        assert one.found <= LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / 400)
    for one in found[2:]:
        assert one.found == pytest.approx(one.expected, abs=0.06)
    assert [one.planted for one in found] == pytest.approx([0, 0, 0, 0.02, 0.04])


def test_each_processor_s_pairs_are_judged_by_themselves(tmp_path: Path) -> None:
    for selection, seed in product(("random", "hardest"), range(9)):
        gain = 0.001 * seed + (0.1 if selection == "hardest" and seed < 4 else 0)
        folder = tmp_path / f"{selection}-{seed}"
        write_run(folder, seed=seed, selection=selection, test=0.75 + gain, experiment="study")
    study = study_of(tmp_path)
    made_by = study.summary["seed"].map(lambda seed: "one" if seed < 4 else "two" if seed < 8 else "three")
    moved = made_by.mask((study.summary["seed"] == 7) & (study.summary["selection"] == "hardest"), "one")
    claims = [claim for claim, _ in PRIMARY if claim.name in ("hardest", "medium")]
    found, shown = checks.by_processor(replace(study, summary=study.summary.assign(processor=moved)), claims)
    assert found == ["Claim", "one", "two"]  # one pair has no spread
    assert [row[1:] for row in shown] == [
        ["–", "–"],
        ["supported: +0.100 [+0.100, +0.100], 4 pairs", "equivalent: +0.000 [+0.000, +0.000], 3 pairs"],
    ]


def test_runs_that_rename_the_cells_of_a_plan_are_refused(tmp_path: Path) -> None:
    for seed, size, selection in ((0, 8, "random"), (0, 12, "random"), (1, 12, "random"), (0, 12, "hardest")):
        folder, rollout = tmp_path / f"{selection}-{size}-{seed}", {"group_size": size}
        write_run(folder, seed=seed, selection=selection, rollout=rollout, experiment="study")
    with pytest.raises(ConfigError, match="G 12"):
        conclude(study_of(tmp_path))


def test_a_gain_on_validation_words_is_called_so(tmp_path: Path) -> None:
    for base_test, name in ((None, "unknown"), (0.45, "known")):
        for selection, seed in product(("random", "hardest"), (1, 2)):
            folder = tmp_path / name / f"{selection}-{seed}"
            write_run(folder, seed=seed, selection=selection, base_test=base_test, experiment="study")
        concluded = conclude(study_of(tmp_path / name))
        assert concluded is not None
        assert ("gain is that on validation words" in concluded.opening) == (name == "unknown")


def test_rules_with_one_rival_are_ranked_and_other_claims_are_not(tmp_path: Path) -> None:
    for selection, gain in {"random": 0.2, "predicted": 0.22, "preview": 0.3, "hardest": 0.1}.items():
        for seed in range(12):
            write_run(
                tmp_path / f"{selection}-{seed}",
                seed=seed,
                selection=selection,
                test=0.45 + gain + 0.001 * (seed % 3),
                experiment="study",
            )
    concluded = conclude(study_of(tmp_path))
    assert concluded is not None
    ranking = [one.claim.name for one in concluded.families["rules against random prompts"]]
    assert ranking[:2] == ["preview", "predicted"]
    planned = {family.name: [claim.name for claim, _ in family.claims] for family in FAMILIES}
    assert sorted(ranking) == sorted(planned["rules against random prompts"])
    assert [one.claim.name for one in concluded.main] == planned["primary"]


def test_the_study_says_what_it_found_in_a_readme_and_on_the_default_grids_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for selection, seed in product(("random", "curriculum"), (1, 2)):
        model = {"path": "harness/models/miniature/letters"}
        folder = tmp_path / "runs" / f"{selection}-{seed}"
        write_run(folder, seed=seed, selection=selection, experiment="study", model=model)
    readme, output, block = tmp_path / "README.md", tmp_path / "results" / "study", "findings of the study"
    readme.write_text(f"before\n<!-- {block}: written by adagrpo report -->\nold\n<!-- end of {block} -->\nafter\n")
    monkeypatch.setattr(report, "draw_study", lambda *_: NO_FIGURES)
    report.write_report(tmp_path / "runs", output, readme)
    text = readme.read_text(encoding="utf-8")
    [picture] = re.findall(r'<img src="([^"]+)"', text)
    assert (tmp_path / picture).is_file()
    assert "2 of 32" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    monkeypatch.setattr(head, "ROOT", tmp_path)
    study = study_of(tmp_path / "runs")
    assert added_by_study(study) is None
    added = added_by_study(replace(study, experiment="miniature"))
    assert added is not None
    assert [label for label, _ in added.rows] == [claim.statement for claim, _ in PRIMARY]
    assert added.rows[0][1][-1] == "2 of 32"


@pytest.fixture(scope="module")
def luck(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """An experiment of the map, with a seed more than planned."""
    folder = tmp_path_factory.mktemp("luck")
    gains = {"random": 0.2, "curriculum": 0.23, "medium": 0.21, "hardest": 0.25, "easiest": 0.1}
    for (number, (selection, gain)), seed in product(enumerate(gains.items()), range(13)):
        test = 0.45 + gain + 0.001 * (seed % 3) * number
        settings = {"seed": seed, "selection": selection, "experiment": "study-luck"}
        write_run(folder / f"{selection}-{seed}", test=test, base_test=0.45, **settings)
    return study_of(folder)


def test_the_map_is_of_rules_less_random_as_shares_of_the_gain(luck: Study) -> None:
    concluded = conclude(luck)
    assert concluded is not None
    assert list(concluded.families) == ["map: luck"]
    frame = map_frame({luck.experiment: concluded.main}).set_index("selection")
    assert frame["prompt_share"].unique() == pytest.approx([0.19], abs=0.01)
    found = frame["difference"].to_dict()
    assert found == pytest.approx({"curriculum": 0.155, "medium": 0.06, "hardest": 0.265, "easiest": -0.48}, abs=0.015)
    assert (frame["lower"] < frame["difference"]).all()
    assert (frame["upper"] > frame["difference"]).all()
    assert set(runs_of_plan(luck).summary["seed"]) == {*range(12)}
    # The thirteenth seed does not count.
    assert {row[5] for row in rows(concluded.main)} == {"12 of 12"}


@pytest.mark.parametrize("case", ["a base that loses", "no base"])
def test_shares_need_a_base_that_gains(luck: Study, case: str) -> None:
    runs, summary = luck.runs, luck.summary
    if case == "no base":
        study = replace(luck, summary=summary[summary["selection"] != "random"])
    else:
        study = replace(luck, runs=runs.assign(value=runs["value"].where(runs["iteration"] > 0, 0.99)))
    concluded = conclude(study)
    assert concluded is not None
    [of_medium] = [row for row in rows(concluded.main) if "those of median" in row[0]]
    assert (of_medium[3], of_medium[5]) == ("–", "12 of 12")
    shares = map_frame({"study-luck": concluded.main})
    assert len(shares) == (0 if case == "no base" else 4)
    assert all(shares.get("difference", pd.Series()).isna())


def test_the_map_has_a_second_axis_once_the_probes_have_gradients() -> None:
    columns = ["experiment", "prompt_share", "selection", "difference", "lower", "upper", "cosine"]
    rows = [("a", 0.2, "hardest", 0.1, 0.05, 0.15, 0.9), ("b", 0.6, "hardest", 0.2, 0.15, 0.25, 0.8)]
    frame = pd.DataFrame(rows, columns=columns)
    for name in ("share", "cosine"):
        frame[f"{name}_low"], frame[f"{name}_high"] = 0.1, 0.9
    assert [panel.name for panel in map_panels(frame)] == ["map", "map-gradients"]
    second = draw_panel(map_panels(frame)[1]).svg
    assert all(f"share {share}" in second for share in ("0.20", "0.60"))
    one = frame.assign(cosine_low=[math.nan, 0.1])  # no interval, so it is not shown as if it were exact
    assert "share 0.20" not in draw_panel(map_panels(one)[1]).svg
    assert [panel.name for panel in map_panels(frame.assign(cosine_low=math.nan))] == ["map"]


def test_the_outer_levels_predict_the_middle_one_at_equal_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "PAIRS", 3)
    monkeypatch.setattr(levels, "PAIRS_OF_RULES", 3)
    larger = {"rollout": {"group_size": 12}}
    cells = [("random", {}), ("random", larger), *((rule, {}) for rule in levels.PAID)]
    for (number, (selection, settings)), seed in product(enumerate(cells), range(3)):
        test = 0.65 + 0.001 * seed * number
        write_run(tmp_path / f"{number}-{seed}", seed=seed, selection=selection, test=test, base_test=0.45, **settings)
    plain = study_of(tmp_path)
    curriculum = plain.summary.loc[plain.summary["selection"] == "curriculum", "run_id"]

    def level(experiment: str, difference: float) -> Study:
        """With a difference of curriculum, as a share of the base's gain."""
        is_end = plain.runs["run_id"].isin(curriculum) & (plain.runs["split"] == "test") & (plain.runs["iteration"] > 0)
        moved = plain.runs["value"] + 0.2 * difference * is_end
        return replace(plain, experiment=experiment, runs=plain.runs.assign(value=moved))

    three = [level("study", 0.3), level("study-luck", -0.1), level("study-letters-luck", 0.05)]
    frame = prediction_frame(three).set_index("selection")
    assert list(frame.index) == list(levels.PAID)
    found, share = frame.loc["curriculum"], {"study": 0.607, "study-luck": 0.195, "study-letters-luck": 0.468}
    slope = 0.4 / (share["study"] - share["study-luck"])
    assert found["predicted"] == pytest.approx(
        -0.1 + slope * (share["study-letters-luck"] - share["study-luck"]), abs=0.02
    )
    assert found["missed"] == pytest.approx(found["measured"] - found["predicted"])
    assert found["missed_low"] < found["missed"] < found["missed_high"] < 0
    assert share["study-luck"] < found["threshold"] < share["study-letters-luck"]
    assert frame.loc["medium", "missed"] == pytest.approx(0, abs=1e-9)
    assert [label for label, _ in prediction_table(frame.reset_index()).rows] == list(levels.PAID)
    assert prediction_frame(three[:2]).empty
