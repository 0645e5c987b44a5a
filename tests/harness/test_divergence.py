"""A run that cannot go on says at what it was, and that iteration can be made again; signs of a hacked reward."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config import ConfigError, compose
from harness.foundation.errors import TrainingError
from harness.runs.directory import RunDirectory, prepare_run
from harness.trained.replay import replay
from harness.training import learner
from harness.training.divergence import statistics
from harness.training.session import Session
from harness.training.signs import signs
from tests.harness.conftest import SHORT, build_trainer

QUIET: dict[str, Any] = {"say": lambda line: None}


def prepared(folder: Path, *overrides: str) -> RunDirectory:
    fewer = [
        "model.num_steps=4",
        "evaluation.test=false",
        "evaluation.base_test=false",
        "runtime.checkpoint_interval=2",
    ]
    return prepare_run(compose("miniature-luck", overrides=[*SHORT, *fewer, *overrides]), folder)


def contents(run: RunDirectory) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}


def test_an_iteration_is_made_again_to_the_last_bit_and_nothing_is_changed(tmp_path: Path) -> None:
    run = prepared(tmp_path, "iterations=3")
    Session(run, **QUIET).execute()
    before, said = contents(run), list[str]()
    assert replay(run.folder, 3, said.append)
    assert "from iteration 2, 1 to train" in said
    assert said[-1] == "iteration 3: as logged, to the last bit"
    assert contents(run) == before
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    changed = [json.dumps(json.loads(line) | {"reward_mean": 0.5}) for line in lines]
    (run.folder / "metrics.jsonl").write_text("\n".join(changed) + "\n")
    assert not replay(run.folder, 2, said.append)
    start, record, difference = said[-3:]
    assert start == "from iteration 0, 2 to train"
    assert json.loads(record)["iteration"] == 2
    assert difference.startswith("reward_mean: ")  # and nothing else differs


def test_a_diverged_iteration_is_described_and_fails_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.trained.replay.WORK", tmp_path / "work")
    run, said = prepared(tmp_path, "iterations=3", "optimizer.learning_rate=1e12"), list[str]()
    with pytest.raises(TrainingError, match=rf"adagrpo replay {run.folder} 2  makes it again"), run.failure_noted():
        Session(run, **QUIET).execute()
    assert run.status()["state"] == "failed"
    told = json.loads((run.folder / "failure-0000002.json").read_text())
    assert told["iteration"] == 2
    assert told["slots"][0]["seed, iteration, slot"] == [0, 2, 0]
    assert told["slots"][0]["chosen"] in told["slots"][0]["candidates"]
    pictures = told["tensors"]["pictures"]
    assert pictures["finite"] != f"{pictures['shape']}"
    assert pictures["first that is not"] is not None
    before = contents(run)
    assert replay(run.folder, 2, said.append)
    assert any("iteration 2 fails: pictures are not finite" in line for line in said)
    assert contents(run) == before
    [again] = (tmp_path / "work").rglob("failure-0000002.json")
    assert json.loads(again.read_text())["tensors"]["pictures"] == pictures


@pytest.mark.parametrize("what", ["loss", "gradient", "latents"])
def test_what_is_not_finite_is_named(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    trainer = build_trainer(*SHORT)
    if what == "loss":
        real = learner.surrogate_loss
        monkeypatch.setattr(learner, "surrogate_loss", lambda *given: (real(*given)[0] * torch.inf, real(*given)[1]))
    elif what == "gradient":
        faulty, parameter = [*trainer.parameters.items()][3]
        parameter.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([0]), torch.nan))
    else:
        decode = trainer.policy.decode  # of which the pictures hide what the latents are
        monkeypatch.setattr(trainer.policy, "decode", lambda latents: decode(latents.div_(0).nan_to_num(0, 0, 0)))
    with pytest.raises(TrainingError, match=f"the {what} is not finite|{what} are not finite") as raised:
        trainer.iterate()
    if what == "gradient":
        described = {name: values for name, values in raised.value.tensors.items() if isinstance(values, torch.Tensor)}
        assert [*described] == [f"gradient of {name}" for name in trainer.parameters]
        assert [n for n, values in described.items() if not values.isfinite().all()] == [f"gradient of {faulty}"]


def test_processes_with_capabilities_of_their_own_are_not_repeated_by_one(tmp_path: Path) -> None:
    several = ["runtime.processes=2", "rollout.prompts_per_iteration=2", "capability.sync=per_rank"]
    run = prepared(tmp_path, *several, "selection=curriculum")
    with pytest.raises(ConfigError, match="each of its 2 processes has a capability of its own"):
        replay(run.folder, 1, lambda line: None)


def test_statistics_of_tensors() -> None:
    told = statistics(torch.tensor([[1.0, torch.nan], [3.0, torch.inf]]))
    assert told == {
        "shape": [2, 2], "finite": "2 of 4", "first that is not": [0, 1], "min": 1, "max": 3, "mean": 2, "std": 2**0.5
    }  # fmt: skip
    assert statistics(torch.tensor(torch.nan))["finite"] == "0 of 1"


def evaluation(iteration: int, colour: float, judge: float, texture: float) -> dict[str, Any]:
    spread = [0.001 * prompt for prompt in range(10)]
    per = {"colour": colour, "ocr": judge, "pictures/texture": texture}
    per_prompt = {name: [value + noise * (1 + iteration) for noise in spread] for name, value in per.items()}
    return {"iteration": iteration, "split": "validation", "num_prompts": 10, "per_prompt": per_prompt}


@pytest.mark.parametrize(
    ("last", "spreads", "expected"),
    [
        (evaluation(5, 0.7, 0.6, 0.1), [0.2, 0.2, 0.19, 0.2], []),
        (evaluation(5, 0.7, 0.3, 0.1), [0.2, 0.2, 0.19, 0.2], ["judge"]),
        (evaluation(5, 0.3, 0.3, 0.1), [], []),
        (evaluation(5, 0.7, 0.6, 0.2), [0.2, 0.02, 0.02], ["texture"]),
        (evaluation(5, 0.7, 0.3, 0.2), [0.2, 0.2, 0.05, 0.06], ["judge", "texture", "diversity"]),
    ],
)
def test_signs_of_a_hacked_reward(last: dict[str, Any], spreads: list[float], expected: list[str]) -> None:
    config = compose("miniature-luck", overrides=["reward={colour: 1}", "evaluation.judges=[ocr, colour]"])
    iterations = [{"group": {"pixel_spread": spread}} for spread in spreads]
    found = dict(signs(config, [evaluation(0, 0.5, 0.5, 0.1), last], [{}, *iterations]))
    assert list(found) == expected


def test_a_sign_warns_and_stops_a_run_that_asked_for_it_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[list[tuple[str, str]]] = [[], [("texture", "too much of it")], [("judge", "ocr falls")]]
    monkeypatch.setattr("harness.training.signs.signs", lambda config, evaluations, _: shown[len(evaluations) - 1])
    monkeypatch.setattr("harness.runs.identity.FEWEST_PROMPTS", 2)
    run = prepared(tmp_path, "iterations=3", "evaluation={interval: 1, judges: [ocr]}", "stop.on=[judge]")
    said: list[str] = []
    with pytest.raises(TrainingError, match=r"at iteration 2 ocr falls \(stop.on\)"), run.failure_noted():
        Session(run, say=said.append).execute()
    warned = [line for line in said if line.startswith("warning: ")]
    assert warned == ["warning: texture: too much of it", "warning: judge: ocr falls"]
    assert (run.status()["state"], run.status()["iteration"]) == ("failed", 2)
    assert not [*run.folder.glob("failure-*.json")]
    assert "replay" not in run.status()["reason"]
    shown += [[], []]
    Session(run, **QUIET).execute()
    assert run.status()["state"] == "finished"
