"""Claims of the grid judged on fabricated runs: what is averaged, what is a stratum, what is not decided yet."""

import json
from pathlib import Path

import pytest
from fabricated import study_of, write_run

from analysis.cells.labels import SELECTIONS
from analysis.verdicts.conclusions import conclude, note, rows, sentences
from analysis.verdicts.protocol import MARGIN_SHARE, Judged, judge_grid, method_claims, pooled_claims

GAIN = {"random": 0.30, "easiest": 0.10, "hardest": 0.36, "medium": 0.31, "curriculum": 0.30}
UNTRAINED = 0.45


def _grid(folder: Path, seeds: dict[str, list[int]], omit: tuple[str, int] | None = None) -> None:
    for method, of_method in seeds.items():
        for seed in of_method:
            for selection in SELECTIONS:
                for fusion in (False, True):
                    if (selection, seed) == omit:
                        continue
                    # A seed's own noise is shared by its cells, up to a little.
                    noise = 0.02 * (seed % 3) + 0.002 * ((seed * 7 + len(selection) + fusion) % 5)
                    write_run(
                        folder / f"{method}-{selection}-{fusion}-{seed}",
                        seed=seed,
                        selection=selection,
                        fusion=fusion,
                        test=round(UNTRAINED + GAIN[selection] + noise, 6),
                        base_test=UNTRAINED,
                        method={"kernel": method, "eta": 0.7},
                    )


def _judged(folder: Path, planned: int = 3) -> dict[str, Judged]:
    study = study_of(folder)
    return {one.claim.name: one for one in judge_grid(study, pooled_claims(), planned)}


OWN_SEEDS = {"flow_grpo": [1, 2, 3], "dance_grpo": [11, 12, 13], "flow_cps": [21, 22, 23]}


@pytest.fixture(scope="module")
def own_seeds(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    _grid(folder, OWN_SEEDS)
    return folder


def test_large_differences_are_decided_in_both_directions(own_seeds):
    judged = _judged(own_seeds)
    assert judged["easiest"].verdict == "supported"
    assert judged["hardest"].verdict == "supported"
    assert judged["curriculum"].verdict in ("equivalent", "smaller than the paper's")
    assert judged["easiest"].contrast.mean == pytest.approx(0.20, abs=0.01)


def test_margins_are_shares_of_what_the_base_gains(own_seeds):
    one = _judged(own_seeds)["easiest"]
    assert one.gain == pytest.approx(0.30 + 0.02 + 0.004, abs=0.005)
    assert one.margin == pytest.approx(MARGIN_SHARE * one.gain)
    # The paper: (14.71 - 14.39) of the 14.71 - 13.2803 that random prompts gain.
    assert one.paper == pytest.approx(one.gain * 0.32 / 1.4297, rel=1e-4)


def test_methods_are_strata_unless_they_share_seeds(own_seeds, tmp_path):
    assert [len(stratum) for stratum in _judged(own_seeds)["adagrpo"].strata] == [3, 3, 3]
    _grid(tmp_path, {method: [1, 2, 3] for method in OWN_SEEDS})
    assert [len(stratum) for stratum in _judged(tmp_path)["easiest"].strata] == [3]


@pytest.mark.parametrize("lacks", ["a run", "a run on the same processor"])
def test_a_claim_is_undecided_until_its_last_planned_pair(tmp_path, lacks):
    _grid(tmp_path, OWN_SEEDS, omit=("easiest", 12) if lacks == "a run" else None)
    if lacks != "a run":
        environment = tmp_path / "flow_cps-easiest-False-22" / "environment.json"
        content = json.loads(environment.read_text(encoding="utf-8"))
        environment.write_text(json.dumps(content | {"processor": "another one (AVX2)"}), encoding="utf-8")
    judged = _judged(tmp_path)
    assert (judged["easiest"].verdict, judged["easiest"].pairs) == ("undecided", 8)
    assert (judged["hardest"].verdict, judged["hardest"].pairs) == ("supported", 9)


def test_more_planned_pairs_than_there_are_decide_nothing(own_seeds):
    assert {one.verdict for one in _judged(own_seeds, planned=4).values()} == {"undecided"}


def test_an_undecided_claim_says_how_many_pairs_it_takes(own_seeds):
    noisy = max(_judged(own_seeds).values(), key=lambda one: one.sd)
    assert noisy.pairs_needed >= 2
    assert 0 <= noisy.power <= 1


def test_cells_that_are_not_there_leave_a_claim_undecided(tmp_path):
    _grid(tmp_path, {"flow_grpo": [1, 2, 3]})
    study = study_of(tmp_path)
    assert {one.verdict for one in judge_grid(study, pooled_claims(), 3)} == {"undecided"}
    of_method = {one.claim.name: one for one in judge_grid(study, method_claims(), 3)}
    assert of_method["adagrpo-flow_grpo"].pairs == 3
    assert of_method["adagrpo-flow_cps"].pairs == 0


def test_an_early_look_decides_large_differences_on_half_of_the_seeds_and_leaves_the_rest_open(own_seeds):
    study = study_of(own_seeds)
    concluded = conclude(study, [], planned_seeds=4)
    by_name = {one.claim.name: one for one in concluded.main}
    assert by_name["easiest"].verdict == "supported"
    assert by_name["easiest"].pairs == 6  # two seeds of three methods, though a third is there
    open_ones = [one for one in concluded.main if one.verdict == "undecided"]
    assert all(one.planned == 4 for one in open_ones)
    assert "0.005" in note(concluded)
    assert "0.045" in note(concluded)


def test_runs_that_all_differ_in_some_setting_are_no_grid(tmp_path):
    for name in ("a", "b", "c"):
        write_run(tmp_path / name, rollout={key: int(key == name) for key in ("a", "b", "c")})
    study = study_of(tmp_path)
    assert all(cell.variant for cell, _ in study.cells)
    assert conclude(study, []) is None


def test_without_a_base_nothing_is_decided_and_no_pairs_are_said_to_be_enough(tmp_path):
    for selection in ("curriculum", "medium"):
        for fusion in (False, True):
            for seed in range(2):
                reward = 0.8 + 0.01 * seed * fusion * (selection == "medium")
                write_run(
                    tmp_path / f"{selection}-{fusion}-{seed}",
                    seed=seed,
                    selection=selection,
                    fusion=fusion,
                    test=reward,
                )
    concluded = conclude(study_of(tmp_path), [])
    assert {one.verdict for one in concluded.main} == {"undecided"}
    shown = {one.claim.name: row for one, row in zip(concluded.main, rows(concluded.main), strict=True)}
    assert shown["curriculum-medium"][-3:] == ["2 of 2", "–", "–"]
    assert not concluded.plans
    assert "median difficulty (the base's gain is not known)" in " ".join(sentences(concluded.main))
