"""Rules beside the paper's: which candidate they take, what they remember, and what they cost."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from harness.adagrpo import CapabilityTracker, select_prompt
from harness.config import ROOT, ConfigError, RunConfig, compose, inert_settings
from harness.config.selection import needs_of
from harness.rules import ledger as ledger_module
from harness.rules.ledger import Ledger, Ridge
from harness.rules.selection import RULES, Candidates
from harness.training.accounting import expected_cost
from harness.training.engine import flat
from tests.harness.conftest import build_trainer, selecting

SMALL = ["rollout.candidates=3", "rollout.group_size=2", "rollout.branch_indices=[1]", "reward={colour: 1}"]
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


@given(st.lists(st.integers(0, 50), min_size=1, max_size=9), st.integers(0, 99))
def test_quantiles_hold_the_papers_three_levels(rewards: list[int], seed: int) -> None:
    values = torch.tensor(rewards, dtype=torch.float64)
    for level, strategy in ((0.0, "hardest"), (0.5, "medium"), (1.0, "easiest")):
        seen = Candidates(values[:, None], tracker(1.0), torch.Generator().manual_seed(seed), level=level)
        assert RULES["quantile"](seen) == select_prompt(values, strategy)


@settings(deadline=None)
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
    assert {chosen("predicted", explore=1.0)} <= set(range(5))
    draws = {RULES["predicted"](candidates([[0.0]] * 5, embeddings=x, ledger=Ledger())) for _ in range(1)}
    assert draws == {RULES["random"](candidates([[0.0]] * 5))}  # it knows nothing yet


def test_a_posterior_that_is_unsure_makes_thompson_try_others() -> None:
    ledger, x = linear_ledger(noise=0.5), torch.randn(5, 3, generator=torch.Generator().manual_seed(1)) * 3
    seen = [
        Candidates(torch.zeros(5, 1), tracker(0.5), torch.Generator().manual_seed(seed), x, ledger)
        for seed in range(30)
    ]
    assert len({RULES["thompson"](one) for one in seen}) > 1
    assert len({RULES["predicted"](one) for one in seen}) == 1


# --- in a run


def metrics(trainer: object, count: int) -> list[dict[str, object]]:
    lines = [trainer.iterate() for _ in range(count)]  # type: ignore[attr-defined]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_rule_trains_at_the_cost_that_was_said_and_continues_as_if_it_had_not_stopped(
    rule: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ledger_module, "MIN_OUTCOMES", 2)
    monkeypatch.setattr(ledger_module, "COOLDOWN", 1)
    prompts = (ROOT / "experiments/prompts/many/train.txt").read_text().splitlines()[:8]
    (tmp_path / "few.txt").write_text("\n".join(prompts))
    settings = [*SMALL, *selecting(rule), "choice.floor=0.3", "rollout.prompts_per_iteration=2"]
    settings += [f"prompts.train={tmp_path / 'few.txt'}", "model.num_steps=4"]
    whole, second = (build_trainer(*settings) for _ in range(2))
    metrics(whole, 2)
    state = copy.deepcopy(whole.state_dict())
    expected = metrics(whole, 2)
    cost = expected_cost(whole.config)
    assert [expected[-1][name] for name in ("sample_forwards", "reward_calls")] == [
        cost.sample_forwards,
        cost.reward_calls,
    ]
    assert (expected[-1]["ranks"] is None) == (needs_of(rule).samples == 0)
    live = second.engine.tensors()
    with torch.no_grad():
        for path, tensor in flat({key: state[key] for key in ("parameters", "averages", "optimizer")}).items():
            live[path].copy_(tensor)
    second.load_state_dict(state)
    assert metrics(second, 2) == expected


def test_what_is_replayed_is_a_prompt_of_before_and_the_rest_is_random(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "COOLDOWN", 0)
    always, never, chance = (
        metrics(build_trainer(*SMALL, *choice), 4)
        for choice in (
            ["selection=replay", "choice.level=1"],
            ["selection=replay", "choice.level=0"],
            ["selection=random"],
        )
    )
    assert [line["prompts"] for line in always] == [chance[0]["prompts"]] * 4
    assert len({line["reward_mean"] for line in always}) == 4  # sampled anew
    assert [line["prompts"] for line in never] == [line["prompts"] for line in chance]
    assert [line["sample_forwards"] for line in always] == [line["sample_forwards"] for line in chance]


def test_candidates_are_the_same_whatever_is_asked_of_them() -> None:
    lines = {
        rule: metrics(build_trainer(*SMALL, f"selection={rule}"), 1)[0]
        for rule in ("curriculum", "screened", "easiest")
    }
    one, two = lines["curriculum"], lines["screened"]
    assert one["candidate_reward_mean"] == lines["easiest"]["candidate_reward_mean"]
    assert two["sample_forwards"] - one["sample_forwards"] == 3 * 8  # type: ignore[operator]


def test_a_group_that_is_hardly_spread_teaches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build_trainer(*SMALL, "choice.floor=0.5")
    ledger, width = trainer.choosing.ledger, trainer.policy.encode(["a"]).summary.shape[1]
    assert ledger is not None
    remember(ledger, 0, torch.rand(20), [5.0] * 20, [*range(20)], torch.zeros(20, width))
    assert metrics(trainer, 1)[0]["zero_std_share"] == 1


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["selection=quantile"], "choice.level"),
        (["selection=quantile", "choice.level=1.5"], "choice.level"),
        (["selection=replay"], "choice.level"),
        (["selection=random", "choice.level=0.5"], "choice.level"),
        (["selection=preview", "fusion.enabled=true"], "fusion.enabled"),
    ],
)
def test_settings_that_do_not_go_together_are_named(overrides: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        compose("miniature-luck", overrides=overrides)


def test_what_a_rule_does_not_read_is_no_part_of_its_runs() -> None:
    assert {"capability.decay", "choice.explore"} <= set(inert_settings(composed("quantile")))
    for rule in ("predicted", "bandit"):
        assert not {"capability.decay", "choice.explore"} & set(inert_settings(composed(rule)))
    assert "choice.explore" in inert_settings(composed("replay"))
    assert "capability.anchor" not in inert_settings(composed("anchored"))
