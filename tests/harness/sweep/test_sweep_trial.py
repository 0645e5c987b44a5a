"""A trial: the mean over paired seeds, given up where it is not promising, marked where it collapsed."""

from pathlib import Path
from statistics import mean
from typing import Any

import optuna
import pytest
from landscape import BASE, INTERVAL, ITERATIONS, execute, height, make_sweep
from optuna.trial import FrozenTrial, TrialState

from harness.config import ConfigError, RunConfig
from harness.experiments.sweep.definition import Sweep
from harness.experiments.sweep.study import make_pruner
from harness.experiments.sweep.trial import ExecuteRun, Objective, OnValidation, RunResult, SurplusTrial

GOOD, BAD = {"capability.decay": 0.9, "fusion.weight": 3.0}, {"capability.decay": 0.55, "fusion.weight": 0.02}


def run_points(
    sweep: Sweep, points: list[dict[str, Any]], execute_run: ExecuteRun = execute, origin: str = "sampled"
) -> list[FrozenTrial]:
    directions = list(sweep.file.objectives.values())
    study = optuna.create_study(directions=directions, pruner=make_pruner(sweep))
    for point in points:
        study.enqueue_trial(point, user_attrs={"origin": origin})
    study.optimize(Objective(sweep, execute_run), n_trials=len(points))
    return study.get_trials()


class Recording(list[tuple[int, int]]):
    """Executes the landscape and holds the seed of each run and how far it got."""

    def __call__(self, config: RunConfig, on_validation: OnValidation) -> RunResult:
        self.append((config.seed, 0))

        def watch(iteration: int, metrics: Any) -> None:
            self[-1] = (config.seed, iteration)
            on_validation(iteration, metrics)

        return execute(config, watch)


def test_a_trial_s_value_is_the_mean_over_its_seeds(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    (trial,) = run_points(sweep, [GOOD])
    heights = [height(config) for config in sweep.configs(GOOD, [1000, 1001])]
    assert trial.values == [pytest.approx(mean(heights))]
    curves = [seed["curve"] for seed in trial.user_attrs["seeds"]]
    assert [[iteration for iteration, _ in curve] for curve in curves] == [list(range(0, ITERATIONS + 1, INTERVAL))] * 2
    assert [curve[-1][1] for curve in curves] == [pytest.approx(value) for value in heights]
    # The pruner's steps count iterations over seeds; its value at each is the mean of the seeds begun.
    assert trial.intermediate_values[ITERATIONS] == pytest.approx(heights[0])
    assert trial.intermediate_values[2 * ITERATIONS] == pytest.approx(mean(heights))
    assert len(trial.intermediate_values) == 2 * ITERATIONS / INTERVAL


def test_a_trial_beyond_the_budget_trains_nothing(tmp_path: Path) -> None:
    recording = Recording()
    with pytest.raises(SurplusTrial):
        run_points(make_sweep(tmp_path, trials=1), [GOOD, BAD], recording)
    assert len(recording) == 2


def test_several_objectives_are_metrics_or_costs(tmp_path: Path) -> None:
    objectives = {"ocr/word_accuracy": "maximize", "compute": "minimize"}
    (trial,) = run_points(make_sweep(tmp_path, objectives=objectives), [GOOD])
    assert trial.values == [0.5, 130.0]


def test_a_metric_that_is_not_measured_is_named_at_the_first_validation(tmp_path: Path) -> None:
    recording = Recording()
    with pytest.raises(ConfigError, match="'ocr/accuracy' is not measured; the nearest is 'ocr/word_accuracy'"):
        run_points(make_sweep(tmp_path, objectives={"ocr/accuracy": "maximize"}), [GOOD], recording)
    assert recording == [(1000, 0)]


def test_a_hopeless_trial_is_given_up_in_its_first_seed_but_the_reference_never(tmp_path: Path) -> None:
    recording = Recording()
    sweep = make_sweep(tmp_path, pruner={"kind": "median", "startup_trials": 1, "warmup_iterations": 4})
    trials = run_points(sweep, [GOOD, BAD], recording)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert recording == [(1000, ITERATIONS), (1001, ITERATIONS), (1000, 4)]
    assert len(trials[1].user_attrs["seeds"]) == 1
    assert run_points(sweep, [GOOD, BAD], origin="reference")[1].state == TrialState.COMPLETE


def test_a_trial_that_diverges_is_infeasible_and_costs_no_further_seed(tmp_path: Path) -> None:
    def diverging(config: RunConfig, on_validation: OnValidation) -> RunResult:
        if config.capability.decay != BAD["capability.decay"]:
            return execute(config, on_validation)
        on_validation(0, {"ocr": BASE})
        on_validation(2, {"ocr": 0.95})
        return RunResult("broken", 7.0, "pictures are not finite at iteration 3")

    good, bad = run_points(make_sweep(tmp_path), [GOOD, BAD], diverging)
    assert (bad.state, bad.values) == (TrialState.COMPLETE, [0.95])
    assert bad.constraints == {"not_finite": 1.0, "below_base": pytest.approx(0.95 * BASE - 0.95)}
    assert bad.user_attrs["collapse"] == "pictures are not finite at iteration 3"
    assert len(bad.user_attrs["seeds"]) == 1
    assert good.constraints["not_finite"] == 0
    assert good.constraints["below_base"] < 0
    assert good.values is not None
    assert good.values[0] < 0.95  # the last value of the infeasible one was higher


def test_a_point_whose_values_do_not_go_together_is_given_up_and_the_others_go_on(tmp_path: Path) -> None:
    # Each of them goes with the reference; Flow-CPS's eta is at most 1.
    space = {"method": ["flow_grpo", "flow_cps"], "method.eta": {"low": 0.3, "high": 1.2}}
    sweep = make_sweep(tmp_path, space=space, reference={"method": "flow_grpo", "method.eta": 0.7})
    points = [{"method": "flow_cps", "method.eta": 1.1}, {"method": "flow_cps", "method.eta": 0.5}]
    refused, taken = run_points(sweep, points)
    assert (refused.state, taken.state) == (TrialState.PRUNED, TrialState.COMPLETE)
    assert refused.constraints == {"not_valid": 1.0}
    assert "eta" in refused.user_attrs["collapse"]


def test_a_trial_that_ends_below_the_untrained_model_is_infeasible_and_a_repeated_iteration_counts_once(
    tmp_path: Path,
) -> None:
    def worse(config: RunConfig, on_validation: OnValidation) -> RunResult:
        for iteration in (0, 2, 2, 4):
            on_validation(iteration, {"ocr": BASE - iteration / 10})
        return RunResult("worse", 0.0)

    (trial,) = run_points(make_sweep(tmp_path), [GOOD], worse)
    assert trial.constraints == {"not_finite": 0.0, "below_base": pytest.approx(0.4 - 0.05 * BASE)}
    assert [iteration for iteration, _ in trial.user_attrs["seeds"][0]["curve"]] == [0, 2, 4]


def test_an_untrained_model_that_cannot_be_measured_is_an_error_and_no_trial(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the untrained model cannot be measured: pictures are not finite"):
        run_points(make_sweep(tmp_path), [GOOD], lambda config, watch: RunResult("r", 0.0, "pictures are not finite"))
