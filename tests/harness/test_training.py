"""Training on the miniature: exact resume, paired cells, what each update learns from, old log-probabilities."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.adagrpo import local_advantage
from harness.config import ROOT, compose
from harness.prompts.lists import drawn_prompts
from harness.runs.directory import RunDirectory, prepare_run
from harness.training.accounting import Counters, Slot, expected_cost
from harness.training.engine import flat
from harness.training.learner import Learner, Term
from harness.training.session import Session
from harness.training.trainer import Trainer
from tests.harness.conftest import advantages_of, build_trainer

SMALL = ["model.num_steps=6", "rollout={candidates: 3, group_size: 2, branch_indices: [1, 3]}"]
FULL_SDE = [*SMALL, "rollout.kind=full_sde", "rollout.group_size=4"]
RUN = [
    *SMALL,
    "selection=curriculum",
    "fusion.enabled=true",
    "optimizer.weight_ema=0.5",
    "iterations=4",
    "evaluation={interval: 2, validation_prompts: 4, gallery: 2, judges: [ocr, colour]}",
    "runtime.checkpoint_interval=2",
]


def trainer(*overrides: str) -> Trainer:
    return build_trainer(*SMALL, *overrides)


def lines_of(run: RunDirectory, name: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run.folder / name).read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def watched(training: Trainer) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Gradients and new weights, by parameter, of each optimiser step to come."""
    gradients: list[dict[str, Tensor]] = []
    weights: list[dict[str, Tensor]] = []
    step = training.engine.optimizer.step

    def noted() -> None:
        gradients.append({name: p.grad.clone() for name, p in training.parameters.items() if p.grad is not None})
        step()
        weights.append({name: p.detach().clone() for name, p in training.parameters.items()})

    training.engine.optimizer.step = noted  # type: ignore[method-assign,assignment]
    return gradients, weights


@pytest.fixture
def updated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Arguments of each call of ``Learner.update`` in the test."""
    seen: list[tuple[Any, ...]] = []
    update = Learner.update
    monkeypatch.setattr(Learner, "update", lambda self, *given: (seen.append(given), update(self, *given))[1])
    return seen


# --- runs


def test_interrupted_and_continued_run_equals_an_uninterrupted_one(compiled: None, tmp_path: Path) -> None:
    test = (ROOT / "harness/models/miniature/data/test.txt").read_text().splitlines()[:4]
    (tmp_path / "test.txt").write_text("\n".join(test) + "\n")
    config = compose("miniature-luck", overrides=[*RUN, f"prompts.test={tmp_path / 'test.txt'}"])
    whole, broken = (prepare_run(config, tmp_path / name) for name in ("whole", "broken"))
    Session(whole, say=lambda line: None).execute()
    session = Session(broken, say=lambda line: None)
    iterate = session.trainer.iterate

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
    ours, theirs = (flat(run.load_checkpoint()) for run in (broken, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[path]) for path, tensor in ours.items())
    assert broken.status()["state"] == "finished"
    # How far a group's pictures are apart is looked at when a validation is due.
    assert [record["iteration"] for record in lines_of(whole, "metrics.jsonl") if "group" in record] == [2, 4]
    evaluated = [(record["split"], record["iteration"]) for record in lines_of(whole, "eval.jsonl")]
    at_start = [("validation", 0), ("test", 0)]
    assert evaluated == [*at_start, ("validation", 2), ("validation", 4), ("test", 4)]


# --- prompts and noise


def test_a_run_continues_with_other_settings_that_are_inert_in_it() -> None:
    state = trainer("choice.ledger=true", "capability.decay=0.5").state_dict()
    state["trackers"] *= 2
    training = trainer("choice.ledger=true", "capability.sync=per_rank")
    training.load_state_dict(state)
    assert training.tracker.decay == 0.8
    assert training.choosing.ledger is not None
    assert training.choosing.ledger.capability.decay == 0.8


def test_cells_of_a_seed_see_the_same_candidates_and_random_chooses_alike_with_fusion() -> None:
    first, second = trainer().iterate(), trainer("fusion.enabled=true").iterate()
    assert first["prompts"] == second["prompts"]
    # A batch of another size may turn a pixel to the next of 256 levels.
    assert first["reward_mean"] == pytest.approx(second["reward_mean"], abs=1e-3)
    assert (first["candidate_reward_mean"], first["capability_mean"], first["chosen_reward_mean"]) == (None, None, None)
    hardest = trainer("selection=hardest").iterate()
    assert hardest["chosen_reward_mean"] < hardest["candidate_reward_mean"]
    # Random without fusion samples only the prompt it trains on: 6 forwards for its anchor instead of 3 x 6.
    assert second["sample_forwards"] - first["sample_forwards"] == 12
    assert second["reward_calls"] - first["reward_calls"] == 3


@pytest.mark.parametrize(("anchor", "chosen"), [("after", 1), ("before", 0)])
def test_the_anchor_is_the_capability_after_or_before_the_batch(anchor: str, chosen: int) -> None:
    training = trainer("selection=curriculum", f"capability.anchor={anchor}", "capability.decay=0.5")

    def choose(*rewards: float) -> int:
        slot = Slot(0, ["a"] * len(rewards), samples=torch.tensor(rewards)[:, None])
        training._update_capability([slot])
        return training.choosing.choose(1, slot, training.choosing_tracker)

    # Before the first batch there is no capability: its own mean, .3, serves.
    assert choose(0.0, 0.31, 0.59) == 1
    # The capability goes from .3 to .5 (0.3 + 0.7) / 2; its fusion is with .5 either way.
    assert choose(0.31, 0.51, 1.28) == chosen
    assert training.tracker.mean == pytest.approx(0.5)


def test_every_slot_candidate_and_branch_has_noise_of_its_own_and_no_prompt_comes_unannounced() -> None:
    training = trainer("iterations=2", "rollout.prompts_per_iteration=2", "selection=curriculum")
    drawn: list[Tensor] = []
    asked: set[str] = set()
    noise, encode = training.policy.noise, training.policy.encode
    training.policy.noise = lambda *arguments: (drawn.append(noise(*arguments)), drawn[-1])[1]  # type: ignore[method-assign]
    training.policy.encode = lambda prompts: (asked.update(prompts), encode(prompts))[1]  # type: ignore[method-assign]
    for _ in range(2):
        training.iterate()
    each = torch.cat(drawn).flatten(1)
    assert len(each) == 2 * 2 * (3 + 2 * 2)  # iterations, slots; candidates, and siblings of two branches
    assert len(each.unique(dim=0)) == len(each)
    expected = drawn_prompts(training.prompts, training.config)
    assert len(expected) == len(asked) == 12
    assert set(expected) == asked


def test_windows_and_shares_reach_the_rollout(updated: list[tuple[Any, ...]]) -> None:
    training = build_trainer(*FULL_SDE, "rollout.branch_indices=[0,1,2,3]", "rollout.window={size: 3}")
    for _ in range(3):
        training.iterate()
    assert [[step.index for step in rollout.steps] for [rollout], *_ in updated] == [[0, 1, 2], [1, 2, 3], [0, 1, 2]]
    for draw in ("prompt", "sample"):
        share = ["rollout.branch_indices=[0,1,2,3]", "rollout.trained_share=0.5", f"rollout.trained_draw={draw}"]
        one_by_one = ["model.execution.max_train_batch=3", "objective.clip_range=0.1"]
        record = build_trainer(*FULL_SDE, *share, *one_by_one).iterate()
        assert record["train_forwards"] == 2 * 4
        # The log-probabilities of the rollout are those of the samples that are trained on.
        assert record["ratio_max_deviation"] < 1e-4


# --- advantages


@pytest.mark.parametrize(
    "settings",
    [
        ["objective.normalisation=group"],
        ["objective.normalisation=batch_std"],
        ["fusion.enabled=true"],
        ["fusion.enabled=true", "fusion.kind=rescaled"],
    ],
)
def test_nothing_is_learnt_from_a_group_of_equal_pictures(settings: list[str]) -> None:
    rewards = torch.tensor([[0.5, 0.5, 0.5 + 3e-7, 0.5 + 3e-7], [0.1, 0.2, 0.3, 0.9]], dtype=torch.float64)
    advantages = advantages_of(rewards, [0.4, 0.5 + 1e-7, 0.6], *settings)
    assert not advantages[0].any()
    assert advantages[1].any()
    if settings == ["objective.normalisation=group"]:
        assert torch.equal(advantages[1], local_advantage(rewards[1]))


def test_the_share_of_groups_with_equal_scores_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    training = trainer()
    assert training.iterate()["zero_std_share"] == 0
    monkeypatch.setattr(type(training.reward), "resolution", 1.0)
    record = training.iterate()
    assert (record["zero_std_share"], record["advantage_abs_mean"]) == (1, 0)


def test_a_list_partly_outside_the_miniature_s_grammar_has_the_same_spreads_for_all_its_prompts(tmp_path: Path) -> None:
    words = ("harbor", "photography", "window", "electricity")
    (tmp_path / "mixed.txt").write_text("".join(f'the word "{word}" in red on yellow\n' for word in words))
    short = "rollout={candidates: 1, group_size: 2, prompts_per_iteration: 4, branch_indices: [1]}"
    training = build_trainer(short, f"prompts.train={tmp_path}/mixed.txt", "reward={ocr: 1}", "evaluation.interval=1")
    assert set(training.iterate()["group"]) == {"pixel_spread"}


# --- updates


@pytest.mark.parametrize("update_on", ["all", "prompts", "steps"])
def test_each_update_learns_from_its_part(update_on: str) -> None:
    settings = [
        "rollout.prompts_per_iteration=2",
        "objective.updates_per_iteration=2",
        f"objective.update_on={update_on}",
    ]
    training = trainer(*settings)
    gradients, _ = watched(training)
    record = training.iterate()
    assert len(gradients) == 2
    # Two prompts of two branch indices each; siblings share the state, so each step is one forward.
    assert record["train_forwards"] == (8 if update_on == "all" else 4)
    # Without a clip range a sample that is used once is on-policy, whatever was updated before it: the loss is the mean
    # of a group's advantages, 0. What is logged is how far the policy has truly moved since the rollout.
    assert (abs(record["loss"]) < 1e-8) == (update_on != "all")
    assert record["ratio_max_deviation"] > 1e-5


@pytest.mark.parametrize(
    ("settings", "budgets", "forwards"),
    [
        ([*SMALL, "rollout.prompts_per_iteration=2"], (1, 64), 2 * 2),  # prompts x steps
        ([*FULL_SDE, "objective.kl_beta=0.1"], (3, "null"), 2 * 4),  # steps x samples
    ],
)
def test_one_forward_or_several_give_the_same_gradient(settings: list[str], budgets: Any, forwards: int) -> None:
    made = []
    for max_batch in budgets:
        training = build_trainer(*settings, f"model.execution.max_train_batch={max_batch}")
        gradients, _ = watched(training)
        assert training.iterate()["train_forwards"] == forwards
        made.append(torch.cat([gradient.flatten() for gradient in gradients[0].values()]))
    assert (made[0] - made[1]).norm() < 1e-4 * made[1].norm()


def test_recomputed_log_probabilities_make_the_first_ratio_exactly_one(monkeypatch: pytest.MonkeyPatch) -> None:
    update = Learner.update

    def as_if_sampled_in_bf16(self: Learner, rollouts: Any, *rest: Any) -> Any:
        off = [replace(r, steps=[replace(s, old_log_prob=s.old_log_prob + 0.01) for s in r.steps]) for r in rollouts]
        return update(self, off, *rest)

    monkeypatch.setattr(Learner, "update", as_if_sampled_in_bf16)
    clipped = [*FULL_SDE, "objective.clip_range=1e-4", "model.execution.max_train_batch=3"]
    from_rollout, recomputed = (
        build_trainer(*clipped, f"objective.old_log_prob={kind}").iterate() for kind in ("rollout", "recomputed")
    )
    assert from_rollout["ratio_max_deviation"] == pytest.approx(0.01, rel=0.01)
    assert recomputed["ratio_max_deviation"] == 0
    assert recomputed["rollout_ratio_max_deviation"] == pytest.approx(0.01, rel=0.01)
    assert recomputed["sample_forwards"] - from_rollout["sample_forwards"] == 2 * 4


def test_recomputed_log_probabilities_leave_each_update_its_own_part() -> None:
    dealt = ["rollout.prompts_per_iteration=2", "objective.updates_per_iteration=2", "objective.update_on=prompts"]
    training = build_trainer(*FULL_SDE, *dealt, "objective.clip_range=1e-4", "objective.old_log_prob=recomputed")
    learnt: list[Tensor] = []
    losses = training.learner._losses

    def noted(terms: Any, *rest: Any) -> Any:
        learnt.append(torch.cat([term.step.x_next for term in terms]))
        return losses(terms, *rest)

    training.learner._losses = noted  # type: ignore[method-assign]
    record = training.iterate()
    assert len(learnt) == 2
    assert not torch.equal(*learnt)
    assert {name: record[name] for name in vars(Counters())} == vars(expected_cost(training.config))


def test_the_update_raises_the_log_probability_of_better_samples(updated: list[tuple[Any, ...]]) -> None:
    training = trainer("rollout.group_size=8", "optimizer.learning_rate=1e-4")
    training.iterate()
    [([rollout], [advantages], *_)] = updated
    terms = [Term(step, rollout.text, own, share=1) for step, own in zip(rollout.steps, advantages, strict=True)]
    with torch.no_grad():
        gain = sum(
            (term.advantage * (transition.log_prob(term.step.x_next) - term.step.old_log_prob)).mean().item()
            for term, transition in zip(terms, training.learner._transitions(terms), strict=True)
        )
    assert gain > 0


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_kl_pulls_back_to_the_base_model(tuning: str) -> None:
    training = trainer("objective.kl_beta=0.1", f"optimizer.tuning={tuning}", "optimizer.learning_rate=1e-3")
    assert training.iterate()["kl"] == pytest.approx(0, abs=1e-9)
    assert training.iterate()["kl"] > 0


def test_in_bf16_sampling_and_training_share_one_arithmetic() -> None:
    settings = ["model.path=twin:flux", "model.max_sequence_length=64", "model.execution.compile=never"]
    settings += ["model.precision=bf16", "optimizer.lora.merge_while_sampling=false", "objective.clip_range=1e-4"]
    for kind in ("anchor_branch", "full_sde"):
        training = trainer(*settings, f"rollout.kind={kind}", "optimizer.learning_rate=0.01")
        for _ in range(2):  # adapters count from the second on
            record = training.iterate()
            assert record["ratio_max_deviation"] < 1e-4
            assert record["clip_fraction"] == 0
