"""The trainer's updates on the miniature: parts of a batch, averaged weights, old log-probabilities, windows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from harness.config import compose, run_id
from harness.models.pipelines.registry import build_policy
from harness.prompts.lists import drawn_prompts, read_prompts
from harness.rewards import build_reward
from harness.training.accounting import Counters, expected_cost
from harness.training.trainer import Trainer

SMALL = [
    "rollout.candidates=2",
    "rollout.group_size=4",
    "rollout.branch_indices=[1,3]",
]
FULL_SDE = [*SMALL, "rollout.kind=full_sde"]


def trainer(*overrides: str) -> Trainer:
    torch.set_num_threads(1)
    config = compose("miniature-luck", overrides=overrides)
    policy = build_policy(config.model, config.optimizer, torch.device("cpu"), config.seed)
    prompts = read_prompts(config.prompts.train).prompts
    return Trainer(config, policy, build_reward("ocr"), prompts, Accelerator(cpu=True))


def watched(training: Trainer) -> list[dict[str, Tensor]]:
    """The gradients, by parameter, of each optimiser step to come."""
    seen: list[dict[str, Tensor]] = []
    step = training.engine.optimizer.step

    def noted(*arguments: Any) -> Any:
        seen.append({name: p.grad.clone() for name, p in training.parameters.items() if p.grad is not None})
        return step(*arguments)

    training.engine.optimizer.step = noted  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("update_on", ["all", "prompts", "steps"])
def test_each_update_learns_from_its_part(update_on: str) -> None:
    settings = ["rollout.prompts_per_update=2", "objective.updates_per_iteration=2", f"objective.update_on={update_on}"]
    training = trainer(*SMALL, *settings)
    seen = watched(training)
    record = training.iterate()
    assert len(seen) == 2
    # Two prompts of two branch indices each; siblings share the state, so each step is one forward.
    assert record["train_forwards"] == (8 if update_on == "all" else 4)
    # Without a clip range a sample that is used once is on-policy, whatever was updated before it: the loss is the mean
    # of a group's advantages, 0. What is logged is how far the policy has truly moved since the rollout.
    assert (abs(record["loss"]) < 1e-8) == (update_on != "all")
    assert record["ratio_max_deviation"] > 1e-5


def test_gradients_of_pieces_add_up_to_the_group_s() -> None:
    gradients = []
    for max_batch in ("null", "3"):
        training = trainer(*FULL_SDE, f"model.execution.max_train_batch={max_batch}", "objective.kl_beta=0.1")
        seen = watched(training)
        record = training.iterate()
        assert record["train_forwards"] == 2 * 4
        gradients.append(seen[0])
    whole, pieces = gradients
    for name, gradient in whole.items():
        torch.testing.assert_close(pieces[name], gradient, atol=1e-6, rtol=1e-3)


def test_recomputed_log_probabilities_make_the_first_ratio_exactly_one() -> None:
    records = []
    for old_log_prob in ("rollout", "recomputed"):
        clipped = ["objective.clip_range=1e-4", "model.execution.max_train_batch=3"]
        training = trainer(*FULL_SDE, *clipped, f"objective.old_log_prob={old_log_prob}")
        update = training._update

        def as_if_sampled_in_bf16(rollouts: Any, *rest: Any, update: Any = update) -> Any:
            off = [
                replace(r, steps=[replace(s, old_log_prob=s.old_log_prob + 0.01) for s in r.steps]) for r in rollouts
            ]
            return update(off, *rest)

        training._update = as_if_sampled_in_bf16  # type: ignore[method-assign]
        records.append(training.iterate())
    from_rollout, recomputed = records
    assert from_rollout["ratio_max_deviation"] == pytest.approx(0.01, rel=0.01)
    assert recomputed["ratio_max_deviation"] == 0
    assert recomputed["rollout_ratio_max_deviation"] == pytest.approx(0.01, rel=0.01)
    assert recomputed["sample_forwards"] - from_rollout["sample_forwards"] == 2 * 4


def test_recomputed_log_probabilities_leave_each_update_its_own_part() -> None:
    dealt = ["rollout.prompts_per_update=2", "objective.updates_per_iteration=2", "objective.update_on=prompts"]
    training = trainer(*FULL_SDE, *dealt, "objective.clip_range=1e-4", "objective.old_log_prob=recomputed")
    learnt: list[Tensor] = []
    losses = training._losses

    def noted(jobs: Any, *rest: Any) -> Any:
        learnt.append(torch.cat([job.step.x_next for job in jobs]))
        return losses(jobs, *rest)

    training._losses = noted  # type: ignore[method-assign]
    record = training.iterate()
    assert len(learnt) == 2
    assert not torch.equal(*learnt)
    assert {name: record[name] for name in vars(Counters())} == vars(expected_cost(training.config))


def test_weights_are_averaged_after_every_so_many_updates() -> None:
    settings = ["objective.updates_per_iteration=2", "optimizer.weight_ema=0.9", "optimizer.weight_ema_interval=3"]
    training = trainer(*SMALL, *settings)
    start = {name: p.detach().clone() for name, p in training.parameters.items()}
    weights: list[dict[str, Tensor]] = []
    step = training.engine.optimizer.step

    def noted(*arguments: Any) -> Any:
        result = step(*arguments)
        weights.append({name: p.detach().clone() for name, p in training.parameters.items()})
        return result

    training.engine.optimizer.step = noted  # type: ignore[method-assign]
    training.iterate()
    assert all(torch.equal(training.engine.averages[name], value) for name, value in start.items())
    training.iterate()  # updates 3 and 4
    for name, value in start.items():
        torch.testing.assert_close(training.engine.averages[name], 0.9 * value + 0.1 * weights[2][name])


def test_windows_and_shares_reach_the_rollout() -> None:
    training = trainer(*FULL_SDE, "rollout.branch_indices=[0,1,2,3]", "rollout.window={size: 2}")
    seen: list[list[int]] = []
    update = training._update

    def noted(rollouts: Any, *rest: Any) -> Any:
        seen.append([step.index for step in rollouts[0].steps])
        return update(rollouts, *rest)

    training._update = noted  # type: ignore[method-assign]
    for _ in range(4):
        training.iterate()
    assert seen == [[0, 1], [1, 2], [2, 3], [0, 1]]
    for draw in ("prompt", "sample"):
        share = ["rollout.branch_indices=[0,1,2,3]", "rollout.trained_share=0.5", f"rollout.trained_draw={draw}"]
        record = trainer(*FULL_SDE, *share, "model.execution.max_train_batch=3", "objective.clip_range=0.1").iterate()
        assert record["train_forwards"] == 2 * 4
        # The log-probabilities of the rollout are those of the samples that are trained on.
        assert record["ratio_max_deviation"] < 1e-4


def test_every_slot_candidate_and_branch_has_noise_of_its_own() -> None:
    training = trainer(*SMALL, "rollout.prompts_per_update=2", "selection=curriculum")
    drawn: list[Tensor] = []
    noise = training.policy.noise
    training.policy.noise = lambda *arguments: (drawn.append(noise(*arguments)), drawn[-1])[1]  # type: ignore[method-assign]
    for _ in range(2):
        training.iterate()
    each = torch.cat(drawn).flatten(1)
    assert len(each) == 2 * 2 * (2 + 2 * 4)  # iterations, slots; candidates, and siblings of two branches
    assert len(each.unique(dim=0)) == len(each)


def test_latents_in_bf16_train() -> None:
    record = trainer(*FULL_SDE, "rollout.latent_precision=bf16", "objective.clip_range=1e-4").iterate()
    assert record["ratio_max_deviation"] < 1e-4
    assert record["grad_norm"] > 0


def test_drawn_prompts_are_all_that_a_run_will_ask_for(tmp_path: Path) -> None:
    training = trainer(*SMALL, "iterations=2", "rollout.prompts_per_update=2", "selection=curriculum")
    expected = drawn_prompts(training.prompts, training.config)
    asked: list[str] = []
    encode = training.policy.encode
    training.policy.encode = lambda prompts: (asked.extend(prompts), encode(prompts))[1]  # type: ignore[method-assign]
    training.iterate()
    training.iterate()
    assert set(asked) == set(expected)
    assert len(expected) == 8


def test_how_the_network_is_run_is_no_part_of_a_run_s_name() -> None:
    name = run_id(compose("miniature-luck"), {})
    frugal = "model.execution={gradient_checkpointing: true, text_encoders: free, max_train_batch: 2}"
    assert run_id(compose("miniature-luck", overrides=[frugal]), {}) == name
    for change in ("model.vae_tiling=true", "objective.update_on=prompts", "evaluation.num_steps=28"):
        assert run_id(compose("miniature-luck", overrides=[change]), {}) != name


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
    training = trainer(*SMALL, *settings)
    training.tracker.update(torch.tensor([0.4, 0.5 + 1e-7, 0.6], dtype=torch.float64))
    rewards = torch.tensor([[0.5, 0.5, 0.5 + 3e-7, 0.5 + 3e-7], [0.1, 0.2, 0.3, 0.9]], dtype=torch.float64)
    [advantages] = training._advantages([rewards])
    assert not advantages[0].any()
    assert advantages[1].any()


def test_the_share_of_groups_with_equal_scores_is_logged() -> None:
    training = trainer(*SMALL)
    assert training.iterate()["zero_std_share"] == 0
    training.reward.resolution = 1.0
    try:
        record = training.iterate()
    finally:
        del training.reward.resolution
    assert (record["zero_std_share"], record["advantage_abs_mean"]) == (1, 0)


def test_in_bf16_sampling_and_training_share_one_arithmetic() -> None:
    settings = ["model.path=twin:flux", "model.max_sequence_length=64", "model.execution.compile=never"]
    settings += ["model.precision=bf16", "optimizer.lora.merge_while_sampling=false", "objective.clip_range=1e-4"]
    for kind in ("anchor_branch", "full_sde"):
        training = trainer(*SMALL, *settings, f"rollout.kind={kind}", "optimizer.learning_rate=0.01")
        for _ in range(2):  # adapters count from the second on
            record = training.iterate()
            assert record["ratio_max_deviation"] < 1e-4
            assert record["clip_fraction"] == 0
