"""A measurement is cut into chunks, which are jobs, can be killed and continued, and ends in tables."""

import json
import pickle
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.gradients.effects import ADVANTAGES, Measured
from analysis.gradients.signs import sign_frame
from analysis.gradients.tables import Measurement
from harness.commands.measure import mechanism
from harness.config import ConfigError
from harness.experiments.gradients import chunks, definition
from harness.experiments.gradients.checkpoint import read_adapters
from harness.experiments.gradients.chunks import SETS, difficulty_of, load, plan, sampler_at
from harness.experiments.gradients.definition import Mechanism, load_mechanism
from harness.experiments.gradients.gradients import KINDS, advantages_of, update_gradients
from harness.experiments.gradients.sampling import Sampler, select_all
from harness.experiments.gradients.tables import is_written, write_tables
from harness.experiments.jobs.job import Job
from harness.experiments.jobs.runner import Outcome
from harness.foundation.errors import HarnessError
from harness.runs.directory import RunDirectory

TINY = """
profile: miniature-luck
seed: 5
rounds: 2
warm_up_rounds: 1
reference_prompts: 2
chunk: 1
settings:
  reward: {colour: 1}
  rollout: {candidates: 2, group_size: 2}
  evaluation: {judges: [colour]}
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mechanism]:
    """A measurement of the untrained model, in a folder of its own; what a test removes it computes again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(definition, "RUNS", tmp_path_factory.mktemp("runs"))
        loaded = load_mechanism(str(tiny), ["base"])
        for job in plan(loaded):
            job.call()
        yield loaded


@pytest.fixture(scope="module")
def sampler(finished: Mechanism) -> Sampler:
    """What draws for it, made once."""
    return sampler_at(finished, finished.checkpoints[0])


# --- Chunks


def test_chunks_cover_everything_once_and_groups_need_the_others(finished: Mechanism) -> None:
    members, sizes = {}, {}
    planned = plan(finished)
    for chunk in planned:
        members.setdefault(chunk.stage, []).extend(chunk.members)
        sizes[chunk.stage] = chunk.size
        needed = [other.done for other in planned if other.stage != "groups" and chunk.stage == "groups"]
        assert list(chunk.needs) == needed
    # Round 1 warms the capability up.
    assert members == {"reference": [0, 1], "candidates": [1, 2, 3], "groups": [2, 3]}
    # Pictures to score: two branch indices of two siblings; two candidates, both of which may be chosen.
    assert sizes == {"reference": 4, "candidates": 2, "groups": 8}


def test_a_killed_chunk_leaves_no_part_of_it_and_comes_back_the_same(
    finished: Mechanism, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = plan(finished)[-1]
    [before] = load([last], last.checkpoint, "groups")
    last.done.unlink()
    with pytest.raises(RuntimeError, match=rf"1 chunks are missing, such as {last.done.name}"):
        write_tables(finished, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with monkeypatch.context() as patch:
        patch.setattr(chunks, "_groups", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            last.call()
    assert not list(last.done.parent.glob(f"*{last.done.name}*"))
    last.call()
    [after] = load([last], last.checkpoint, "groups")
    for name in before.keys() - {"seconds"}:
        np.testing.assert_array_equal(after[name], before[name])


def test_difficulties_are_bins_of_the_anchor_s_reward() -> None:
    assert [difficulty_of(reward) for reward in (-1.0, 0.0, 0.19, 0.2, 0.59, 0.8, 1.0)] == [0, 0, 0, 1, 2, 4, 4]


# --- Tables


def test_tables_hold_the_gradients_products(finished: Mechanism, sampler: Sampler, tmp_path: Path) -> None:
    write_tables(finished, tmp_path)
    units, blocks = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("units", "blocks"))
    rewards = torch.stack([sampler.candidate_rewards(number) for number in (1, 2, 3)])
    selections = select_all(rewards, 1, finished.config)
    prompts = [sampler.of_reference(number) for number in (0, 1)]
    unbiased = [{"unbiased": advantages_of(s.rewards, 0.0, 1.0, 5.0)["unbiased"]} for s in prompts]
    reference = torch.cat([update_gradients(s.scores, a) for s, a in zip(prompts, unbiased, strict=True)])
    gradients = {}
    for number in (2, 3):
        choice = selections[number - 1]
        candidate = choice.chosen["hardest"]
        sampled = sampler.of_candidate(number, candidate)
        advantages = advantages_of(sampled.rewards, choice.mean, choice.std, 5.0)
        gradients[number] = dict(zip(KINDS, update_gradients(sampled.scores, advantages), strict=True))
        [(_, row)] = units[(units["round"] == number) & units["hardest"]].iterrows()
        assert row["prompt"] == sampler.candidates(number)[candidate]
        assert row["anchor_reward"] == pytest.approx(float(rewards[number - 1, candidate]), rel=1e-5)
        assert row["capability_mean"] == pytest.approx(choice.mean, rel=1e-5)
        assert row["rewards"].tolist() == pytest.approx(sampled.rewards.flatten().tolist(), rel=1e-5)
        assert row["global"].tolist() == pytest.approx(advantages["global"].flatten().tolist(), rel=1e-4, abs=1e-5)
        own = gradients[number]
        assert row["local|global"] == pytest.approx(float(own["local"] @ own["global"]), rel=1e-4)
        assert row["local|reference"] == pytest.approx(float(own["local"] @ reference.mean(0)), rel=1e-3)
    of = blocks.set_index(["set", "kind", "other_kind", "block", "other_block"])["value"]
    first, second = gradients[2], gradients[3]
    both = (first["local"] @ second["global"] + second["local"] @ first["global"]) / 2
    size = float(first["local"].norm() * second["global"].norm())
    assert of["hardest", "local", "global", 0, 1] == pytest.approx(float(both), abs=1e-3 * size)
    crossed = float(second["local"] @ reference[0])
    assert of["hardest", "local", "reference", 1, 0] == pytest.approx(crossed, rel=1e-3)
    assert of["reference", "reference", "reference", 0, 1] == pytest.approx(
        float(reference[0] @ reference[1]), rel=1e-3
    )
    assert set(blocks["set"]) == {*SETS, "reference"}
    # Two strategies that choose the same prompt share its row.
    assert len(units) == sum(len(set(choice.chosen.values())) for choice in selections[1:])
    assert (units[["random", "easiest", "hardest", "medium", "curriculum"]].sum() == 2).all()


def test_tables_are_those_of_one_measurement_and_the_analysis_reads_them(
    finished: Mechanism, tiny: Path, tmp_path: Path
) -> None:
    assert not is_written(finished, tmp_path)
    write_tables(finished, tmp_path)
    assert is_written(load_mechanism(str(tiny), ["base"]), tmp_path)
    assert not is_written(load_mechanism(str(tiny), ["base"], ["rollout.group_size=3"]), tmp_path)
    tables = Measurement(tmp_path)
    measured = Measured(tables, "base")
    for strategy in tables.strategies:
        for advantage in ADVANTAGES:
            assert abs(measured.metrics(strategy, advantage)["cosine"].values[0]) <= 1
    assert measured.num_updates("curriculum") == 2
    signs = sign_frame(tables).query("set == 'random' and weight == 1")
    assert signs["groups"].sum() == 4
    about = json.loads((tmp_path / "about.json").read_text())
    about["checkpoints"].append({"label": "run@3", "iteration": 3, "weights": "x"})
    (tmp_path / "about.json").write_text(json.dumps(about))
    assert not is_written(finished, tmp_path)


# --- Checkpoints


def test_a_run_is_measured_with_its_adapters(lora_run: RunDirectory, tiny: Path) -> None:
    loaded = load_mechanism(str(tiny), [str(lora_run.folder), "base"])
    base, trained = loaded.checkpoints
    assert (base.label, trained.label, trained.iteration) == ("base", f"{lora_run.run_id}@1", 1)
    state = lora_run.load_checkpoint()
    assert state is not None
    policy = trained.load(loaded.config, torch.device("cpu"))
    for name, parameter in policy.trainable().items():
        assert torch.equal(parameter, state["parameters"][name])
    assert any(tensor.abs().max() > 0 for name, tensor in read_adapters(lora_run).items() if "lora_B" in name)


def test_what_cannot_be_measured_is_refused(
    lora_run: RunDirectory, full_run: RunDirectory, tiny: Path, tmp_path: Path
) -> None:
    unfinished = RunDirectory(Path(shutil.copytree(lora_run.folder, tmp_path / "unfinished")))
    shutil.rmtree(unfinished.checkpoints)
    weak = ["model.path=harness/models/miniature/weak"]
    for checkpoints, overrides, expected in (
        ([unfinished], [], "has no checkpoint yet"),
        ([full_run], [], "has other adapters"),
        ([lora_run], ["optimizer.lora.rank=4"], "has other adapters"),
        ([lora_run], weak, r"trains .*base, not .*weak"),
        ([lora_run, lora_run], [], "is there twice"),
    ):
        with pytest.raises(ConfigError, match=expected):
            load_mechanism(str(tiny), [str(run.folder) for run in checkpoints], overrides)


# --- Command


def test_the_miniature_s_measurement_is_large_enough() -> None:
    loaded = load_mechanism("miniature", ["base"])
    rollout = loaded.config.rollout
    groups_a_prompt = len(rollout.branch_indices)
    assert loaded.file.reference_prompts * groups_a_prompt * rollout.group_size >= 4000
    assert loaded.file.rounds * groups_a_prompt >= 500
    # No run of a study, pilot, sweep or checkpoint trains on its draws.
    assert loaded.config.seed == 3000


def test_the_command_computes_what_is_missing_and_reports_it(
    finished: Mechanism, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan(finished)[-1].done.unlink()
    computed: list[str] = []
    failed = {"base:groups-001": "RewardError: broken"}

    def run_jobs(given: Sequence[Job], slots: int | None, *rest: object, **options: object) -> Outcome:
        for job in pickle.loads(pickle.dumps(list(given))):
            if not job.done.exists():
                job.call()
                computed.append(job.id)
        return Outcome(failed=failed)

    monkeypatch.setattr("harness.experiments.jobs.runner.run_jobs", run_jobs)
    reported: list[Path] = []
    monkeypatch.setattr("analysis.gradients.report.write_mechanism_report", lambda folder: reported.append(folder))
    words, output = [str(tiny), "runtime.threads=1"], tmp_path / "out"
    with pytest.raises(HarnessError, match=r"base:groups-001: RewardError: broken; the same command continues"):
        mechanism(words, slots=2, output=output)
    failed.clear()
    assert mechanism(words, slots=2, output=output) == 0
    assert computed == ["base:groups-001"]
    # Again: nothing to compute.
    monkeypatch.setattr("harness.experiments.jobs.runner.run_jobs", None)
    assert mechanism(words, output=output) == 0
    assert reported == [output] * 2
    # Another measurement does not take its place.
    with pytest.raises(ConfigError, match="holds another measurement; name a folder with --output"):
        mechanism([*words, "rollout.group_size=3"], output=output)
    assert is_written(finished, output)
