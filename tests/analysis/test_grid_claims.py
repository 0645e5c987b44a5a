"""Claims of the grid judged on fabricated runs: what is averaged, what is a stratum, what is not decided yet."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from fabricated import study_of, write_run

from analysis.cells.labels import SELECTIONS
from analysis.cells.study import Study
from analysis.decisions import LEVEL, pairs_needed, power
from analysis.verdicts.conclusions import conclude, note, rows, sentences
from analysis.verdicts.protocol import MARGIN_SHARE, Judged, judge_grid, method_claims, pooled_claims

GAIN = {"random": 0.30, "easiest": 0.10, "hardest": 0.36, "medium": 0.31, "curriculum": 0.30}
UNTRAINED = 0.45
OWN_SEEDS = {"flow_grpo": [1, 2, 3], "dance_grpo": [11, 12, 13], "flow_cps": [21, 22, 23]}


def grid(folder: Path, seeds: Mapping[str, Sequence[int]], selections: Collection[str] = SELECTIONS) -> Study:
    for method, of_method in seeds.items():
        for seed in of_method:
            for selection in selections:
                for fusion in (False, True):
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
    return study_of(folder)


def judged(study: Study, planned: int = 3) -> dict[str, Judged]:
    return {one.claim.name: one for one in judge_grid(study, pooled_claims(), planned)}


@pytest.fixture(scope="module")
def own_seeds(tmp_path_factory) -> Study:
    return grid(tmp_path_factory.mktemp("grid"), OWN_SEEDS)


def test_large_differences_are_decided_in_both_directions_by_margins_of_what_the_base_gains(own_seeds):
    found = judged(own_seeds)
    one = found["easiest"]
    assert one.verdict == found["hardest"].verdict == "supported"
    assert found["curriculum"].verdict in ("equivalent", "smaller than the paper's")
    assert one.contrast.mean == pytest.approx(0.20, abs=0.01)
    assert one.gain == pytest.approx(0.30 + 0.02 + 0.004, abs=0.005)
    assert one.margin == pytest.approx(MARGIN_SHARE * one.gain)
    # The paper: (14.71 - 14.39) of the 14.71 - 13.2803 that random prompts gain.
    assert one.paper == pytest.approx(one.gain * 0.32 / 1.4297, rel=1e-4)
    noisy = replace(one, strata=[10 * values for values in one.strata])
    first_step = LEVEL / len(found), len(noisy.strata)
    assert noisy.power == pytest.approx(power(noisy.margin, noisy.sd, 3, *first_step))
    assert noisy.pairs_needed == pairs_needed(noisy.margin, noisy.sd, *first_step)
    assert noisy.power < power(noisy.margin, noisy.sd, 3, LEVEL, len(noisy.strata))


def test_a_gain_is_from_the_untrained_model_s_reward_on_the_same_prompts(tmp_path):
    for seed in (1, 2):
        for selection in ("random", "easiest"):
            run = {"seed": seed, "selection": selection, "rewards": (0.4, 0.6, 0.6, 0.6)}
            write_run(tmp_path / f"{selection}-{seed}", **run, test=0.9, base_test=None)
    [one] = judge_grid(study_of(tmp_path), method_claims(["flow_grpo"])[:1], 2)
    assert one.gain == pytest.approx(0.2)


def test_methods_are_strata_unless_they_share_seeds(own_seeds, tmp_path):
    assert [len(stratum) for stratum in judged(own_seeds)["adagrpo"].strata] == [3, 3, 3]
    shared = grid(tmp_path, dict.fromkeys(OWN_SEEDS, (1, 2, 3)), ("random", "easiest"))
    assert [len(stratum) for stratum in judged(shared)["easiest"].strata] == [3]


@pytest.mark.parametrize("lacks", ["a run", "a run on the same processor"])
def test_a_claim_is_undecided_until_its_last_planned_pair(own_seeds, lacks):
    summary = own_seeds.summary.copy()
    its_own = summary["run_id"] == "flow_cps-easiest-False-22"
    summary.loc[its_own, "processor"] = "another one (AVX2)"
    found = judged(replace(own_seeds, summary=summary[~its_own] if lacks == "a run" else summary))
    assert (found["easiest"].verdict, found["easiest"].pairs) == ("undecided", 8)
    assert (found["hardest"].verdict, found["hardest"].pairs) == ("supported", 9)
    assert {one.verdict for one in judged(own_seeds, planned=4).values()} == {"undecided"}


def test_cells_that_are_not_there_leave_a_claim_undecided(own_seeds):
    study = replace(own_seeds, summary=own_seeds.summary.query("method == 'flow_grpo'"))
    assert {one.verdict for one in judged(study).values()} == {"undecided"}
    of_method = {one.claim.name: one.pairs for one in judge_grid(study, method_claims(), 3)}
    assert of_method == {"adagrpo-flow_grpo": 3, "adagrpo-dance_grpo": 0, "adagrpo-flow_cps": 0}


def test_an_early_look_decides_large_differences_on_half_of_the_seeds_and_leaves_the_rest_open(own_seeds):
    concluded = conclude(own_seeds, planned_seeds=4)
    by_name = {one.claim.name: one for one in concluded.main}
    assert by_name["easiest"].verdict == "supported"
    assert by_name["easiest"].pairs == 6  # two seeds of three methods, though a third is there
    assert all(share in note(concluded) for share in ("0.005", "0.045"))
    said = [sentence.count(" beat") for sentence in sentences(concluded.main)]
    assert said[0] == sum(one.verdict == "supported" for one in concluded.main) > 0 == sum(said[1:])
    one_method = replace(own_seeds, summary=own_seeds.summary.query("method == 'flow_grpo'"))
    assert {(one.verdict, one.planned) for one in conclude(one_method, planned_seeds=8).main} == {("undecided", 8)}


def test_runs_that_all_differ_in_some_setting_are_no_grid(tmp_path):
    for name in ("a", "b", "c"):
        write_run(tmp_path / name, rollout={key: int(key == name) for key in ("a", "b", "c")})
    study = study_of(tmp_path)
    assert all(cell.variant for cell, _ in study.cells)
    assert conclude(study) is None


def test_without_a_base_nothing_is_decided_and_no_pairs_are_said_to_be_enough(own_seeds):
    wanted = "method == 'flow_grpo' and selection in ('curriculum', 'medium')"
    concluded = conclude(replace(own_seeds, summary=own_seeds.summary.query(wanted)))
    assert {one.verdict for one in concluded.main} == {"undecided"}
    shown = {one.claim.name: row for one, row in zip(concluded.main, rows(concluded.main), strict=True)}
    assert shown["curriculum-medium"][-3:] == ["3 of 3", "–", "–"]
    assert not concluded.plans
    assert "median difficulty (the base's gain is not known)" in " ".join(sentences(concluded.main))
