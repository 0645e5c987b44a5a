"""Which steps are stochastic, which are trained on, and which update learns from what."""

from collections import Counter

import pytest
import torch

from harness.config import ConfigError, ObjectiveConfig, RolloutConfig, compose
from harness.models.pipelines.embedding import PromptEmbedding
from harness.prompts.lists import generator_for
from harness.rollout import Rollout, TrainStep, anchor_branch, full_sde, ode_trajectory
from harness.training.steps import split_updates, stochastic_steps, trained_steps
from harness.transitions import KERNELS

INDICES = tuple(range(6))
PER_RANK = ["capability.sync=per_rank", "fusion.enabled=true"]
IN_TWO = ["runtime.engine=fsdp2", "runtime.processes=2", "rollout.prompts_per_iteration=2"]


def settings(**changes: object) -> RolloutConfig:
    return RolloutConfig.model_validate({"kind": "full_sde", "branch_indices": INDICES, **changes})


def test_without_a_window_all_branch_indices_are_stochastic_and_trained() -> None:
    assert stochastic_steps(settings(), 0, 1, 0) == INDICES
    assert trained_steps(settings(), INDICES, 0, 1, 0).all()


def test_a_sliding_window_moves_one_step_per_iteration_and_starts_again_at_the_end() -> None:
    rollout = settings(window={"size": 4, "move": "slide"})
    places = [stochastic_steps(rollout, 0, iteration, slot=0) for iteration in range(1, 5)]
    assert places == [(0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 1, 2, 3)]
    assert stochastic_steps(rollout, 5, 2, slot=7) == places[1]  # the same for all prompts and seeds


def test_a_random_window_is_each_prompt_s_own_and_a_function_of_its_key() -> None:
    rollout = settings(window={"size": 2, "move": "random"})
    drawn = Counter(stochastic_steps(rollout, 0, iteration, slot)[0] for iteration in range(1, 41) for slot in range(5))
    assert set(drawn) == set(range(5))
    assert min(drawn.values()) > 200 / 5 / 2
    assert stochastic_steps(rollout, 3, 9, 1) == stochastic_steps(rollout, 3, 9, 1)


@pytest.mark.parametrize("draw", ["prompt", "sample"])
def test_a_share_of_the_steps_is_trained_on_and_all_of_them_in_the_long_run(draw: str) -> None:
    rollout = settings(branch_indices=tuple(range(15)), trained_share=0.6, trained_draw=draw)
    drawn = torch.stack(
        [trained_steps(rollout, rollout.branch_indices, 0, iteration, 0) for iteration in range(1, 200)]
    )
    assert drawn.shape == (199, 15, rollout.group_size)
    assert (drawn.sum(1) == 9).all()
    counts = drawn[..., 0].sum(0)
    assert counts.max() / counts.min() < 1.5
    assert not torch.equal(trained_steps(rollout, rollout.branch_indices, 0, 1, slot=1), drawn[0])
    # The samples of a prompt share a draw, or each has its own.
    assert bool((drawn == drawn[..., :1]).all()) == (draw == "prompt")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["rollout.window={size: 5}"], "window.size: 5 is more than the 2 rollout.branch_indices"),
        (["rollout.trained_share=0.5"], "rollout.trained_share: is for rollout.kind=full_sde"),
        (["rollout.shared_noise=true"], "rollout.shared_noise: is for rollout.kind=full_sde"),
        (["rollout.trained_draw=sample"], "rollout.trained_draw: is for rollout.kind=full_sde"),
        (["rollout.kind=full_sde", "rollout.trained_share=0.2"], "leaves no step to train on"),
        (
            ["rollout.kind=full_sde", "rollout.trained_draw=sample", "objective.update_on=steps"],
            "samples have no steps in common",
        ),
        (["objective.update_on=steps", "objective.updates_per_iteration=3"], "3 updates cannot share 2 trained steps"),
        (["objective.update_on=prompts", "objective.updates_per_iteration=2"], "cannot share 1 prompts per process"),
        (
            [
                "objective.update_on=prompts",
                "objective.updates_per_iteration=2",
                "rollout.prompts_per_iteration=6",
                "runtime.processes=2",
            ],
            "cannot share 3 prompts per process",
        ),
        (
            ["fusion.enabled=true", "fusion.kind=shrinkage", "objective.normalisation=batch_std"],
            "fusion.kind: shrinkage normalises each group's rewards itself",
        ),
        (
            ["fusion.enabled=true", "fusion.kind=shrinkage", "objective.combine=advantages"],
            "fusion.kind: shrinkage normalises each group's rewards itself",
        ),
        (["stop.on=[judge]", "evaluation.judges=[ocr]"], "stop.on: judge needs a reward in evaluation.judges"),
        (["stop.on=[diversity]", "evaluation.interval=30"], "stop.on: diversity needs 4 validations"),
        (["fusion.enabled=true", "rollout.candidates=1"], "rollout.candidates: one reward has no std"),
        (["selection=anchored", "choice.level=1", "rollout.candidates=1"], "rollout.candidates: one reward has no std"),
        (
            ["rollout={prompts_per_iteration: 2, candidates: 1}", "runtime.processes=2", *PER_RANK],
            "rollout.candidates: one reward has no std",
        ),
        (["objective.clip_range=1.5"], "objective.clip_range=1.5: "),
        (["objective.kind=grpo_guard"], "old_log_prob=recomputed"),
        (["objective.kind=flow_dppo"], "old_log_prob=recomputed"),
        (["objective.kind=awm"], "set old_log_prob=recomputed"),
        (
            ["objective.kind=nft", "objective.old_log_prob=recomputed", "objective.clip_range=1e-4"],
            "nft does not clip",
        ),
        (["fusion.same_length=true"], "fusion.kind"),
        (["fusion.enabled=true", "fusion.kind=gated", "fusion.weight=1.5"], "fusion.weight"),
        (["selection=quantile"], "choice.level"),
        (["selection=quantile", "choice.level=1.5"], "choice.level"),
        (["selection=replay"], "choice.level"),
        (["selection=random", "choice.level=0.5"], "choice.level"),
        (["selection=preview", "fusion.enabled=true"], "fusion.enabled"),
        (["runtime.engine=fsdp2"], "fsdp2 shares a model out"),
        (["runtime.engine=zero2"], "runtime.engine='zero2' is unknown; the nearest is 'fsdp2', there are ddp, fsdp2"),
        ([*IN_TWO], "use compile=blocks or never"),
        ([*IN_TWO, "rollout.window={size: 1, move: random}"], "but rollout.window.move=random"),
        (
            ["runtime.processes=4", "runtime.machines=3", "rollout.prompts_per_iteration=4"],
            "runtime.machines: 3 cannot share runtime.processes=4 evenly",
        ),
        (["runtime.timeout_seconds=0"], "runtime.timeout_seconds=0: "),
    ],
)
def test_combinations_that_cannot_run_are_one_line(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose("miniature-luck", overrides=overrides)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


# --- updates ----------------------------------------------------------------------------------------------------------

TEXT = PromptEmbedding(torch.zeros(1, 2, 3), torch.zeros(1, 3))


def rollouts(count: int) -> list[Rollout]:
    empty = torch.zeros(2, 1)
    return [
        Rollout(TEXT, [TrainStep(index, empty, empty, torch.zeros(2)) for index in (0, 2, 4, 6)], empty, 0)
        for _ in range(count)
    ]


def updates_of(update_on: str, slots: int = 4, groups: int = 4) -> list[list[tuple[int, int, float]]]:
    """(slot, step, advantage) of each update; the advantage of a slot's group says which it is."""
    made = rollouts(slots)
    advantages = [torch.arange(groups).float().add(10 * slot)[:, None].expand(groups, 2) for slot in range(slots)]
    objective = ObjectiveConfig.model_validate({"updates_per_iteration": 2, "update_on": update_on})
    return [
        [
            (next(i for i, r in enumerate(made) if r is rollout), step.index, own[0].item())
            for rollout, step, own in part
        ]
        for part in split_updates(made, advantages, objective)
    ]


def test_updates_share_all_samples_or_deal_out_whole_prompts_or_steps_with_their_own_groups() -> None:
    first, second = updates_of("all")
    assert first == second
    assert len(first) == 16
    assert [{slot for slot, _, _ in part} for part in updates_of("prompts")] == [{0, 2}, {1, 3}]
    assert list(map(len, updates_of("prompts"))) == [8, 8]
    assert updates_of("steps", slots=1) == [[(0, 0, 0.0), (0, 4, 2.0)], [(0, 2, 1.0), (0, 6, 3.0)]]
    # The one group of whole paths is shared by all their steps.
    assert {advantage for part in updates_of("all", slots=1, groups=1) for _, _, advantage in part} == {0.0}


def test_a_sample_s_advantage_goes_with_it_to_the_steps_it_is_trained_on() -> None:
    step = TrainStep(3, torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2), siblings=torch.tensor([0, 3]))
    rollout = Rollout(TEXT, [step], torch.zeros(4, 1), 0)
    ((_, _, own),) = split_updates([rollout], [torch.tensor([[1.0, 2.0, 3.0, 4.0]])], ObjectiveConfig())[0]
    assert own.tolist() == [1.0, 4.0]


def test_two_processes_deal_out_the_same_updates_as_one() -> None:
    made = rollouts(4)
    advantages = [torch.zeros(4, 2)] * 4
    objective = ObjectiveConfig.model_validate({"updates_per_iteration": 2, "update_on": "prompts"})
    whole = split_updates(made, advantages, objective)
    halves = [split_updates(made[rank : rank + 2], advantages[rank : rank + 2], objective) for rank in (0, 2)]
    for update in range(2):
        together = [id(rollout) for half in halves for rollout, _, _ in half[update]]
        assert together == [id(rollout) for rollout, _, _ in whole[update]]


# --- precision and pieces ---------------------------------------------------------------------------------------------

SIGMAS = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.0])


def flow(x: torch.Tensor, sigma: object, text: PromptEmbedding) -> torch.Tensor:
    return 0.7 * x.float() + 0.1


@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_a_draw_has_the_log_probability_it_was_given(kernel: str) -> None:
    method = KERNELS[kernel]()
    noise = torch.randn(2, 5, 30, generator=generator_for(0))
    start = torch.randn(1, 30, generator=generator_for(1))
    anchor = ode_trajectory(flow, start, TEXT, SIGMAS)
    branches = anchor_branch(flow, method, anchor, TEXT, SIGMAS, (0, 2), noise)
    trained = torch.tensor([[False] * 5, [True, False, True, True, False]])
    paths = full_sde(flow, method, start.expand(5, -1), TEXT, SIGMAS, (0, 2), noise, trained)
    assert [step.index for step in paths.steps] == [2]
    assert paths.steps[0].of_siblings(torch.arange(5)).tolist() == [0, 2, 3]
    assert len(paths.steps[0].x) == len(paths.steps[0].x_next) == 3
    for step in (*branches.steps, *paths.steps):
        x = step.x.expand_as(step.x_next)
        sigma, sigma_next = SIGMAS[step.index].item(), SIGMAS[step.index + 1].item()
        again = method.step(x, flow(x, sigma, TEXT), sigma, sigma_next).log_prob(step.x_next)
        assert torch.equal(again, step.old_log_prob)
        assert again.dtype == torch.float32


def test_pieces_hold_every_sibling_once_and_shared_states_stay_whole() -> None:
    x, x_next, old = torch.arange(5.0)[:, None], torch.arange(5.0)[:, None] + 10, torch.arange(5.0)
    pieces = list(TrainStep(3, x, x_next, old).pieces(2))
    assert [len(piece.x_next) for _, piece in pieces] == [2, 2, 1]
    assert torch.equal(torch.cat([piece.x for _, piece in pieces]), x)
    assert torch.equal(torch.cat([old[rows] for rows, _ in pieces]), old)
    shared = list(TrainStep(3, x[:1], x_next, old).pieces(2))
    assert len(shared) == 1
    assert shared[0][1].x_next.shape == (5, 1)
