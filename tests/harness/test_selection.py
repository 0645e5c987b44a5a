"""Rules beside the paper's: which candidate they take, what they remember, and what they cost."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from harness.adagrpo import CapabilityTracker, select_prompt
from harness.config import ROOT, RunConfig, compose, inert_settings
from harness.config.selection import needs_of
from harness.rules import ledger as ledger_module
from harness.rules.ledger import Ledger, Ridge
from harness.rules.selection import RULES, Candidates
from harness.training.accounting import expected_cost
from harness.training.engine import flat
from harness.training.trainer import Trainer
from tests.harness.conftest import build_trainer, selecting

SMALL = ["rollout={candidates: 3, group_size: 2, branch_indices: [1]}", "model.num_steps=4", "reward={colour: 1}"]
DRAWN = {"random", "thompson", "replay", "skipping", "variance"}
"""Rules whose choice is a draw by place, which is nothing to a prompt either: candidates are drawn themselves."""


def tracker(*rewards: float) -> CapabilityTracker:
    made = CapabilityTracker()
    made.update(torch.tensor(rewards))
    return made


def candidates(rewards: list[list[float]], level: float = 0.0, **more: object) -> Candidates:
    """With capability .4, std .1."""
    generator = torch.Generator().manual_seed(0)
    return Candidates(torch.tensor(rewards), tracker(0.3, 0.5), generator, level=level, **more)  # type: ignore[arg-type]


def composed(rule: str, *overrides: str) -> RunConfig:
    return compose("miniature-luck", overrides=[*selecting(rule), *overrides])


# --- rules on samples

ONE = [[0.1], [0.9], [0.35], [0.52], [0.4]]


@pytest.mark.parametrize(
    ("rule", "level", "chosen"),
    [
        ("quantile", 0.0, 0),
        ("quantile", 0.5, 4),
        ("quantile", 0.74, 4),  # floor(.74 * 4) = 2
        ("quantile", 0.75, 3),
        ("quantile", 1.0, 1),
        ("fixed", 0.3, 2),
        ("fixed", -7.0, 0),
        ("anchored", 0.0, 4),
        ("anchored", 1.0, 3),  # .5
        ("anchored", -0.5, 2),  # .35
        ("preview", 0.0, 4),
    ],
)
def test_a_rule_takes_the_candidate_at_its_level(rule: str, level: float, chosen: int) -> None:
    assert RULES[rule](candidates(ONE, level)) == chosen


def test_screening_takes_the_widest_pair_and_the_first_of_equal_ones() -> None:
    assert RULES["screened"](candidates([[0.1, 0.2], [0.9, 0.5], [0.3, 0.3]])) == 1
    assert RULES["screened"](candidates([[0.5, 0.5], [0.1, 0.3], [0.3, 0.1]])) == 1


@given(st.lists(st.integers(0, 50), min_size=1, max_size=9))
def test_quantiles_hold_the_papers_three_levels(rewards: list[int]) -> None:
    values = torch.tensor(rewards, dtype=torch.float64)
    for level, strategy in ((0.0, "hardest"), (0.5, "medium"), (1.0, "easiest")):
        assert RULES["quantile"](candidates(values[:, None].tolist(), level)) == select_prompt(values, strategy)


@given(st.permutations(range(6)), st.sampled_from(sorted(set(RULES) - DRAWN)))
def test_the_choice_is_of_a_candidate_and_not_of_its_place(order: list[int], rule: str) -> None:
    ledger = linear_ledger()
    remember(
        ledger, 40, [0.5] * 6, [0.2] * 6, list(range(6)), above=[1e7 * i for i in (1, 2, 3, 5, 6, 8)], below=[4e7] * 6
    )
    remember(ledger, 41, [0.5], [0.3], [3])
    generator, numbers = torch.Generator().manual_seed(1), torch.arange(6)
    rewards, embeddings = torch.rand(6, 2, generator=generator), torch.randn(6, 3, generator=generator)

    def chosen(rows: list[int]) -> int:
        history = {"embeddings": embeddings[rows], "prompts": numbers[rows], "ledger": ledger}
        seen = candidates(rewards[rows].tolist(), 0.5, strategy="medium", **history)
        return rows[RULES[rule](seen)]

    assert chosen(list(order)) == chosen(list(range(6)))


# --- the ledger


def remember(
    ledger: Ledger,
    iteration: int,
    means: list[float] | Tensor,
    spreads: list[float] | Tensor,
    prompts: list[int],
    embeddings: Tensor | None = None,
    **counted: list[float],
) -> None:
    """Record prompts; ``counted`` are rewards above and below, and the strategy."""
    nothing = {"above": [0.0] * len(prompts), "below": [0.0] * len(prompts), "strategy": [-1.0] * len(prompts)}
    columns = [means, spreads, *(nothing | counted).values()]
    outcomes = torch.stack([torch.as_tensor(column, dtype=torch.float64) for column in columns], dim=1)
    x = torch.zeros(len(prompts), 3) if embeddings is None else embeddings
    ledger.record(iteration, x, outcomes, torch.tensor(prompts))


def linear_ledger(noise: float = 0.0) -> Ledger:
    """Means .5 + .1 x_1, spreads .2 + .03 x_2, over iterations of two prompts."""
    ledger, generator = Ledger(decay=0.5), torch.Generator().manual_seed(3)
    for iteration in range(1, 41):
        x = torch.randn(2, 3, generator=generator)
        means = 0.5 + 0.1 * x[:, 0].double() + noise * torch.randn(2, generator=generator)
        remember(ledger, iteration, means, 0.2 + 0.03 * x[:, 1].double(), [101, 102], x)
    return ledger


def test_ridge_is_the_solution_of_the_normal_equations() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y, q = (torch.randn(*shape, generator=generator).double() for shape in ((30, 4), (30,), (5, 4)))
    weights = torch.rand(30, generator=generator).double() + 0.1
    shares = weights / weights.sum()
    centred = x - shares @ x
    scale = (shares @ centred.square().sum(1)).sqrt()
    z, target = centred / scale, y - shares @ y
    solutions, errors = {}, {}
    for penalty in ledger_module._PENALTIES:
        inverse = torch.linalg.inv(z.T @ (weights[:, None] * z) + penalty * torch.eye(4).double())
        solutions[penalty] = shares @ y + (q - shares @ x) / scale @ (inverse @ (z.T @ (weights * target)))
        left_out = []
        for row in range(30):  # the slow way: without the row
            kept = torch.arange(30) != row
            x_, y_, w = x[kept], y[kept], weights[kept]
            level, centre = w @ y_ / w.sum(), w @ x_ / w.sum()
            c = (x_ - centre) / scale
            beta = torch.linalg.solve(
                c.T @ (w[:, None] * c) + penalty * torch.eye(4).double(), c.T @ (w * (y_ - level))
            )
            left_out.append(weights[row] * (y[row] - level - (x[row] - centre) / scale @ beta) ** 2)
        errors[penalty] = sum(left_out)
    best = min(reversed(ledger_module._PENALTIES), key=lambda penalty: errors[penalty])
    assert_close(Ridge(x, weights).predict(y, q).mean, solutions[best])


def test_a_prediction_is_sure_near_what_was_seen_and_says_nothing_of_noise() -> None:
    ledger = linear_ledger()
    known = ledger.mean_of(torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]]))
    assert_close(known.mean, torch.tensor([0.6, 0.4]).double(), atol=0.01, rtol=0)
    far = ledger.mean_of(torch.tensor([[0.0, 0, 0], [100.0, 0, 0]])).std
    assert far[0] < far[1] / 10
    generator = torch.Generator().manual_seed(5)
    noise = Ledger()
    for iteration in range(100):
        rewards = torch.rand(2, generator=generator, dtype=torch.float64)
        remember(noise, iteration, rewards, rewards, [1, 2], torch.randn(2, 8, generator=generator))
    predicted = noise.mean_of(torch.randn(50, 8, generator=generator)).mean
    assert predicted.std() < 0.1  # of rewards with a standard deviation of .29


def test_outcomes_age_and_the_oldest_are_dropped() -> None:
    ledger = Ledger(forgetting=0.5, capacity=64)
    x = torch.tensor([[1.0], [-1.0]])
    for iteration in range(1, 61):
        sign = 1 if iteration > 40 else -1  # the world has changed
        remember(ledger, iteration, 0.5 + sign * 0.1 * x[:, 0].double(), [1.0, 1.0], [1, 2], x)
    assert len(ledger.outcomes) == len(ledger.prompts) == 64
    assert_close(ledger.mean_of(x).mean, torch.tensor([0.6, 0.4]).double(), atol=0.01, rtol=0)


def test_rules_on_predictions_choose_by_them() -> None:
    ledger = linear_ledger()
    ledger.capability = tracker(0.7)
    x = torch.tensor([[0.0, 0, 0], [2.1, 0, 0], [-1.0, 0, 0], [-2.0, -4, 0], [1.0, 2, 0]])

    def chosen(rule: str, **more: object) -> int:
        return RULES[rule](candidates([[0.0]] * 5, embeddings=x, ledger=ledger, **more))

    assert chosen("predicted") == 1  # .71
    assert chosen("predicted_hardest") == 2  # the fourth is harder, but has hardly any spread
    assert chosen("predicted_spread") == 4
    assert chosen("thompson") == 1
    unknowing = RULES["predicted"](candidates([[0.0]] * 5, embeddings=x, ledger=Ledger()))
    assert unknowing == RULES["random"](candidates([[0.0]] * 5))


def test_a_posterior_that_is_unsure_makes_thompson_try_others() -> None:
    ledger, x = linear_ledger(noise=0.5), torch.randn(5, 3, generator=torch.Generator().manual_seed(1)) * 3
    seen = [
        Candidates(torch.zeros(5, 1), tracker(0.5), torch.Generator().manual_seed(seed), x, ledger)
        for seed in range(30)
    ]
    assert len({RULES["thompson"](one) for one in seen}) > 1
    assert len({RULES["predicted"](one) for one in seen}) == 1


# --- in a run


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are predicted, and may be repeated, from the second iteration on."""
    monkeypatch.setattr(ledger_module, "MIN_OUTCOMES", 2)
    monkeypatch.setattr(ledger_module, "COOLDOWN", 0)


def metrics(trainer: Trainer, count: int) -> list[dict[str, object]]:
    lines = [trainer.iterate() for _ in range(count)]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"easiest", "hardest", "medium"}))
def test_every_rule_trains_at_the_cost_that_was_said_and_continues_as_if_it_had_not_stopped(
    rule: str, soon: None, tmp_path: Path
) -> None:
    prompts = (ROOT / "experiments/prompts/many/train.txt").read_text().splitlines()[:8]
    (tmp_path / "few.txt").write_text("\n".join(prompts))
    settings = [*SMALL, *selecting(rule), "choice.floor=0.3", "rollout.prompts_per_iteration=2"]
    trainer = build_trainer(*settings, f"prompts.train={tmp_path / 'few.txt'}")
    metrics(trainer, 1)
    state = copy.deepcopy(trainer.state_dict())
    [expected] = metrics(trainer, 1)
    cost = expected_cost(trainer.config)
    assert (expected["sample_forwards"], expected["reward_calls"]) == (cost.sample_forwards, cost.reward_calls)
    assert (expected["ranks"] is None) == (needs_of(rule).samples == 0)
    live = trainer.engine.tensors()
    with torch.no_grad():
        for path, tensor in flat({key: state[key] for key in ("parameters", "averages", "optimizer")}).items():
            live[path].copy_(tensor)
    trainer.load_state_dict(state)
    assert metrics(trainer, 1) == [expected]


def test_what_is_replayed_is_a_prompt_of_before_and_the_rest_is_random(soon: None) -> None:
    choices = ["selection=replay", "choice.level=1"], ["selection=replay", "choice.level=0"], ["selection=random"]
    always, never, chance = (metrics(build_trainer(*SMALL, *choice), 3) for choice in choices)
    assert [line["prompts"] for line in always] == [chance[0]["prompts"]] * 3
    assert len({line["reward_mean"] for line in always}) == 3  # sampled anew
    assert [line["prompts"] for line in never] == [line["prompts"] for line in chance]
    assert [line["sample_forwards"] for line in always] == [line["sample_forwards"] for line in chance]


def test_candidates_are_the_same_whatever_is_asked_of_them() -> None:
    rules = ("curriculum", "easiest", "screened")
    one, other, two = (build_trainer(*SMALL, f"selection={rule}").iterate() for rule in rules)
    assert one["candidate_reward_mean"] == other["candidate_reward_mean"]
    assert two["sample_forwards"] - one["sample_forwards"] == 3 * 4


def test_a_group_that_is_hardly_spread_teaches_nothing() -> None:
    trainer = build_trainer(*SMALL, "choice.floor=0.5")
    ledger, width = trainer.choosing.ledger, trainer.policy.encode(["a"]).summary.shape[1]
    assert ledger is not None
    remember(ledger, 0, torch.rand(20), [5.0] * 20, [*range(20)], torch.zeros(20, width))
    assert trainer.iterate()["zero_std_share"] == 1


def test_what_a_rule_does_not_read_is_no_part_of_its_runs() -> None:
    assert {"capability.decay", "choice.explore"} <= set(inert_settings(composed("quantile")))
    for rule in ("predicted", "bandit"):
        assert not {"capability.decay", "choice.explore"} & set(inert_settings(composed(rule)))
    assert "choice.explore" in inert_settings(composed("replay"))
    assert "capability.anchor" not in inert_settings(composed("anchored"))
