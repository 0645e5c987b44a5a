"""Rollouts: counts, shared batches, and agreement with the pipeline itself."""

import pytest
import torch

from harness.models.pipelines.embedding import PromptEmbedding
from harness.prompts.lists import draw_candidates, generator_for
from harness.rollout import anchor_branch, full_sde, in_batches, ode_trajectory
from harness.transitions import FlowSDE

PROMPT = 'the word "harbor" in red on yellow'
SIGMAS = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.0])
TEXT = PromptEmbedding(torch.zeros(1, 2, 3), torch.zeros(1, 3))


class LinearFlow:
    """v = x, and a note of every batch it was asked for."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x: torch.Tensor, sigma: object, text: PromptEmbedding) -> torch.Tensor:
        assert len(text) == len(x)
        self.batches.append(len(x))
        return x


def test_ode_follows_the_closed_form() -> None:
    trajectory = ode_trajectory(LinearFlow(), torch.ones(2, 3, 4), TEXT.repeat(2), SIGMAS)
    assert trajectory.final[0, 0, 0].item() == pytest.approx(0.9 * 0.8 * 0.7 * 0.6)
    assert trajectory.states.shape == (5, 2, 3, 4)


def test_branches_at_one_step_share_a_batch_and_the_stochastic_step_is_free() -> None:
    flow = LinearFlow()
    anchor = ode_trajectory(LinearFlow(), torch.ones(1, 3, 4), TEXT, SIGMAS)
    noise = torch.randn(3, 5, 3, 4, generator=generator_for(0))
    rollout = anchor_branch(flow, FlowSDE(), anchor, TEXT, SIGMAS, (0, 1, 2), noise)
    assert flow.batches == [5, 10, 15]
    assert rollout.sample_forwards == 30
    assert rollout.finals.shape == (15, 3, 4)


def test_a_branch_is_one_stochastic_step_then_the_ode() -> None:
    anchor = ode_trajectory(LinearFlow(), torch.ones(1, 3, 4), TEXT, SIGMAS)
    noise = torch.randn(2, 5, 3, 4, generator=generator_for(0))
    rollout = anchor_branch(LinearFlow(), FlowSDE(), anchor, TEXT, SIGMAS, (0, 2), noise)
    x = anchor.states[2].expand(5, 3, 4)
    siblings = FlowSDE().step(x, x, 0.7, 0.4).sample(noise=noise[1])
    torch.testing.assert_close(rollout.steps[1].x_next, siblings)
    torch.testing.assert_close(rollout.finals[5:], siblings * 0.6)
    assert rollout.steps[1].x.shape == (1, 3, 4)


def test_forwards_of_the_paper_s_settings_and_of_the_miniature_s() -> None:
    # The paper's setting: 592 and 184 forwards per iteration without candidates, the anchor's own N included.
    for steps, group, indices, expected in ((16, 12, (0, 2, 4, 6), 592), (8, 8, (0, 1, 2, 3), 184)):
        sigmas = torch.linspace(1, 0, steps + 1)
        anchor = ode_trajectory(LinearFlow(), torch.ones(1, 2), TEXT, sigmas)
        rollout = anchor_branch(
            LinearFlow(), FlowSDE(), anchor, TEXT, sigmas, indices, torch.zeros(len(indices), group, 2)
        )
        assert steps + rollout.sample_forwards == expected


def test_full_sde_is_stochastic_only_where_asked() -> None:
    start = torch.ones(3, 2)
    rollout = full_sde(LinearFlow(), FlowSDE(), start, TEXT, SIGMAS, (1,), torch.zeros(1, 3, 2))
    assert [step.index for step in rollout.steps] == [1]
    torch.testing.assert_close(rollout.steps[0].x, start * 0.9)
    assert rollout.sample_forwards == 12


def test_batches_within_the_budget_give_the_same_numbers() -> None:
    flow = LinearFlow()
    x = torch.randn(7, 2)
    assert torch.equal(in_batches(flow, 3)(x, 0.5, TEXT.repeat(7)), x)
    assert flow.batches == [3, 3, 1]


def test_candidates_are_disjoint_and_the_same_for_every_cell_of_a_seed() -> None:
    prompts = tuple(f"p{i}" for i in range(50))
    drawn = draw_candidates(prompts, slots=3, candidates=10, seed=4, iteration=2)
    assert len({prompt for slot in drawn for prompt in slot}) == 30
    assert drawn == draw_candidates(prompts, 3, 10, 4, 2)
    assert drawn != draw_candidates(prompts, 3, 10, 4, 3)
    assert drawn != draw_candidates(prompts, 3, 10, 5, 2)
