"""Training end to end on the miniature: exact resume, the clipped path, paired cells."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from harness.adagrpo import local_advantage
from harness.config import ROOT, compose
from harness.models.pipelines.flux import FluxPolicy
from harness.prompts.lists import read_prompts
from harness.rewards import build_reward
from harness.runs.directory import RunDirectory, prepare_run
from harness.training.session import Session
from harness.training.trainer import Candidates, Job, Trainer

FAST = [
    "rollout.candidates=3",
    "rollout.group_size=2",
    "rollout.branch_indices=[1,3]",
    "evaluation.validation_prompts=4",
    "evaluation.interval=2",
    "evaluation.gallery=2",
    "evaluation.judges=[ocr,colour]",
]


@pytest.fixture
def short_lists(tmp_path: Path) -> list[str]:
    lines = (ROOT / "harness/models/miniature/data/test.txt").read_text().splitlines()
    path = tmp_path / "test.txt"
    path.write_text("\n".join(lines[:4]) + "\n")
    return [f"prompts.test={path}"]


def prepared(folder: Path, *overrides: str) -> RunDirectory:
    return prepare_run(compose("miniature-luck", overrides=[*FAST, *overrides]), folder)


def lines_of(run: RunDirectory, name: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run.folder / name).read_text().splitlines()]
    for record in records:
        record.pop("seconds")
    return records


def trainer(*overrides: str) -> Trainer:
    torch.set_num_threads(1)
    config = compose("miniature-luck", overrides=[*FAST, *overrides])
    policy = FluxPolicy(config.model, config.optimizer, torch.device("cpu"), config.seed)
    return Trainer(
        config, policy, build_reward("ocr"), read_prompts(config.prompts.train).prompts, Accelerator(cpu=True)
    )


def test_interrupted_and_continued_run_equals_an_uninterrupted_one(
    compiled: None, tmp_path: Path, short_lists: list[str]
) -> None:
    settings = ["iterations=4", "selection=curriculum", "fusion.enabled=true", "optimizer.weight_ema=0.5", *short_lists]
    settings += ["runtime.checkpoint_interval=2"]
    whole = prepared(tmp_path / "whole", *settings)
    Session(whole, say=lambda line: None).execute()
    broken = prepared(tmp_path / "broken", *settings)
    session = Session(broken, say=lambda line: None)
    iterate, session.trainer.iterate = session.trainer.iterate, None  # type: ignore[assignment,method-assign]

    def until_the_fourth() -> dict[str, Any]:
        if session.trainer.iteration == 3:
            raise KeyboardInterrupt
        return iterate()

    session.trainer.iterate = until_the_fourth  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        session.execute()
    assert len(lines_of(broken, "metrics.jsonl")) == 3  # one more than the checkpoint holds
    with (broken.folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"iteration": 4, "rew')  # the line that a kill tore
    Session(broken, say=lambda line: None).execute()
    assert lines_of(broken, "metrics.jsonl") == lines_of(whole, "metrics.jsonl")
    assert lines_of(broken, "eval.jsonl") == lines_of(whole, "eval.jsonl")
    ours, theirs = broken.load_checkpoint(), whole.load_checkpoint()
    assert ours is not None
    assert theirs is not None
    for name, parameter in theirs["parameters"].items():
        assert torch.equal(ours["parameters"][name], parameter)
        assert torch.equal(ours["averages"][name], theirs["averages"][name])
    assert broken.status()["state"] == "finished"
    # How far a group's pictures are apart is looked at when a validation is due.
    assert [record["iteration"] for record in lines_of(whole, "metrics.jsonl") if "group" in record] == [2, 4]
    assert [(e["split"], e["iteration"]) for e in lines_of(whole, "eval.jsonl")] == [
        ("validation", 0),
        ("test", 0),
        ("validation", 2),
        ("validation", 4),
        ("test", 4),
    ]


def test_two_updates_on_one_rollout_clip_and_have_the_hand_computed_loss() -> None:
    training = trainer(
        "objective.updates_per_iteration=2",
        "objective.clip_range=1e-5",
        "optimizer.learning_rate=1e-3",
        "rollout.kind=full_sde",
    )
    seen: list[tuple[float, float]] = []
    losses_of = training._losses

    def checked(jobs: Any, logged: Any) -> Any:
        losses = losses_of(jobs, logged)
        for number, (job, loss) in enumerate(zip(jobs, losses, strict=True)):
            with torch.no_grad():
                log_prob = training._transitions(jobs)[number].log_prob(job.step.x_next)
            ratio = (log_prob - job.step.old_log_prob).exp()
            terms = [
                min(a * r, a * min(max(r, 1 - 1e-5), 1 + 1e-5))
                for a, r in zip(job.advantage.tolist(), ratio.tolist(), strict=True)
            ]
            assert loss.item() == pytest.approx(-sum(terms) / len(terms), abs=1e-6)
        seen.extend(zip(logged["ratio_max_deviation"], logged["clip_fraction"], strict=True))
        return losses

    training._losses = checked  # type: ignore[method-assign]
    record = training.iterate()
    first, second = seen[:2], seen[-2:]
    assert all(deviation < 1e-5 and clipped == 0 for deviation, clipped in first)
    assert all(deviation > 1e-5 for deviation, _ in second)
    assert sum(clipped for _, clipped in second) > 0
    assert record["clip_fraction"] > 0
    assert record["train_forwards"] == 2 * 2 * 2  # updates x steps x samples


def test_steps_in_one_forward_or_in_several_give_the_same_gradient() -> None:
    gradients = []
    for max_batch in (1, 64):
        training = trainer(f"model.execution.max_train_batch={max_batch}", "rollout.prompts_per_update=2")
        record = training.iterate()
        gradients.append(torch.cat([p.grad.flatten() for p in training.parameters.values() if p.grad is not None]))
        assert record["train_forwards"] == 2 * 2  # prompts x steps
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[1].norm()


def test_cells_of_a_seed_see_the_same_candidates_and_random_chooses_alike_with_fusion() -> None:
    base, fused = trainer(), trainer("fusion.enabled=true")
    first, second = base.iterate(), fused.iterate()
    assert first["prompts"] == second["prompts"]
    assert first["reward_mean"] == pytest.approx(second["reward_mean"], abs=1e-5)
    assert (first["candidate_reward_mean"], first["capability_mean"], first["chosen_reward_mean"]) == (None, None, None)
    hardest = trainer("selection=hardest").iterate()
    assert hardest["chosen_reward_mean"] < hardest["candidate_reward_mean"]
    # Random without fusion samples only the prompt it trains on: 8 forwards for its anchor instead of 3 x 8.
    assert second["sample_forwards"] - first["sample_forwards"] == 16
    assert second["reward_calls"] - first["reward_calls"] == 3


@pytest.mark.parametrize(("anchor", "chosen"), [("after", 1), ("before", 0)])
def test_the_anchor_is_the_capability_after_or_before_the_batch(anchor: str, chosen: int) -> None:
    training = trainer("selection=curriculum", f"capability.anchor={anchor}", "capability.decay=0.5")

    def choose(*rewards: float) -> int:
        candidates = Candidates(["a"] * len(rewards), None, None, torch.tensor(rewards))
        training._update_capability([candidates])
        return training._choose(0, candidates)

    # Before the first batch there is no capability: its own mean, .3, serves.
    assert choose(0.0, 0.31, 0.59) == 1
    # The capability goes from .3 to .5 (0.3 + 0.7) / 2; its fusion is with .5 either way.
    assert choose(0.31, 0.51, 1.28) == chosen
    assert training.tracker.mean == pytest.approx(0.5)


def test_the_update_raises_the_log_probability_of_better_samples() -> None:
    training = trainer("rollout.group_size=8", "optimizer.learning_rate=1e-4")
    kept: list[Any] = []
    update = training._update

    def remember(rollouts: Any, advantages: Any, spent: Any) -> Any:
        kept.append((rollouts, advantages))
        return update(rollouts, advantages, spent)

    training._update = remember  # type: ignore[method-assign]
    training.iterate()
    rollout, advantages = kept[0][0][0], kept[0][1][0]
    jobs = [Job(step, rollout.text, own, share=1) for step, own in zip(rollout.steps, advantages, strict=True)]
    with torch.no_grad():
        gain = sum(
            (job.advantage * (transition.log_prob(job.step.x_next) - job.step.old_log_prob)).mean().item()
            for job, transition in zip(jobs, training._transitions(jobs), strict=True)
        )
    assert gain > 0


def test_advantages_of_equal_rewards_are_zero() -> None:
    training = trainer()
    rewards = torch.full((2, 8), 0.7317, dtype=torch.float64)
    assert torch.equal(training._advantages([rewards])[0], torch.zeros(2, 8, dtype=torch.float64))
    spread = torch.rand(1, 8, dtype=torch.float64)
    assert torch.equal(training._advantages([spread])[0][0], local_advantage(spread[0]))


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_kl_pulls_back_to_the_base_model(tuning: str) -> None:
    training = trainer("objective.kl_beta=0.1", f"optimizer.tuning={tuning}", "optimizer.learning_rate=1e-3")
    assert training.iterate()["kl"] == pytest.approx(0, abs=1e-9)
    assert training.iterate()["kl"] > 0


def test_warm_up_and_weight_averages() -> None:
    training = trainer("optimizer.warmup_iterations=4", "optimizer.weight_ema=0.9")
    start = {name: p.detach().clone() for name, p in training.parameters.items()}
    assert training.iterate()["learning_rate"] == pytest.approx(3e-4 / 4)
    for name, parameter in training.parameters.items():
        torch.testing.assert_close(training.engine.averages[name], 0.9 * start[name] + 0.1 * parameter.detach())
    trained = {name: p.detach().clone() for name, p in training.parameters.items()}
    averages = {name: average.clone() for name, average in training.engine.averages.items()}
    with training.engine.averaged_weights():
        assert all(torch.equal(p, averages[name]) for name, p in training.parameters.items())
    assert all(torch.equal(p, trained[name]) for name, p in training.parameters.items())


def test_final_adapters_load_in_plain_diffusers(tmp_path: Path, short_lists: list[str]) -> None:
    from diffusers import FluxPipeline

    run = prepared(tmp_path, "iterations=1", "optimizer.learning_rate=0.05", *short_lists)
    session = Session(run, say=lambda line: None)
    session.execute()
    pipeline = FluxPipeline.from_pretrained(ROOT / run.config.model.path)
    pipeline.load_lora_weights(run.folder / "checkpoints" / "final")
    policy = session.trainer.policy
    text, x = policy.encode(['the word "harbor" in red on yellow']), torch.randn(1, 16, 96)
    with torch.no_grad():
        ours = policy.velocity(x, 0.8, text)
        policy.transformer = pipeline.transformer
        theirs = policy.velocity(x, 0.8, text)
        pipeline.unload_lora_weights()
        base = policy.velocity(x, 0.8, text)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert (ours - base).abs().max() > 0.01
