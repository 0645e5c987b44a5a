"""Grids: the paper's 30 cells, choosing among them, and planning without running."""

from pathlib import Path

import pytest

from analysis.cells.costs import Rates
from harness import cli
from harness.config import ConfigError, grid_of
from harness.experiments import plan as plan_module
from harness.experiments.grid import expand_grid, parse_seeds
from harness.experiments.plan import plan
from harness.runs.directory import find_run, prepare_run


def test_the_paper_grid_is_every_selection_with_and_without_fusion_for_every_method() -> None:
    configs = expand_grid("paper")
    cells = {(c.method.kernel, c.selection, c.fusion.enabled) for c in configs}
    assert len(cells) == 3 * 5 * 2
    assert len(configs) == 3 * len(cells)
    assert [c.seed for c in configs[:30]] == [0] * 30


def test_cells_seeds_and_profile_can_be_chosen() -> None:
    only = "method=flow_grpo,flow_cps selection=random,curriculum fusion=true"
    configs = expand_grid("paper", only=only, seeds=[7], profile="weak")
    assert {(c.method.kernel, c.selection) for c in configs} == {
        (method, selection) for method in ("flow_grpo", "flow_cps") for selection in ("random", "curriculum")
    }
    assert len(configs) == 4
    assert all(c.fusion.enabled and c.seed == 7 and c.experiment == "weak" for c in configs)
    assert all(c.model.path.endswith("weak") for c in configs)


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("selection=curiculum", "nearest is 'curriculum'"),
        ("selecton=random", "unknown key 'selecton'; the nearest is 'selection'"),
        ("random", "write key=value"),
        ("selection=random selection=curriculum", "each key once"),
        ("fusion=true fusion.enabled=false", "each key once"),
        ("", "names no cells"),
    ],
)
def test_a_choice_that_means_nothing_is_one_clear_line(only: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        expand_grid("paper", only=only)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "only", "message"),
    [
        ("seeds: [0]\ncells: []", None, "has no run"),
        ("seeds: [0]\ncells: [{selection: []}]", None, "has no run"),
        ("seeds: []\ncells: [{selection: random}]", None, "has no run"),
        ("seeds: [0]\ncells: [{}]", "selection=random", "unknown key 'selection'; there are none"),
        ("seeds: [0]\ncells: [{seed: 4}]", None, "both set seed"),
        ("seeds: [0]\ncells: [{fusion: {weight: 1}, fusion.weight: 2}]", None, "both set fusion.weight"),
        ("seeds: [0]\ncells: [{selection: random, seeds: [a]}]", None, r"grid\.yaml, a cell or trial: seed='a'"),
    ],
)
def test_a_grid_that_means_nothing_is_one_clear_line(
    content: str, only: str | None, message: str, tmp_path: Path
) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text(f"profile: smoke\n{content}\n")
    with pytest.raises(ConfigError, match=message) as error:
        expand_grid(str(grid), only=only)
    assert "\n" not in str(error.value)


def test_values_that_no_cell_has_together_are_an_error(tmp_path: Path) -> None:
    grid = tmp_path / "two.yaml"
    grid.write_text(
        "profile: smoke\nseeds: [0]\ncells:\n"
        "  - {method: flow_grpo, selection: random}\n  - {method: flow_cps, selection: medium}\n"
    )
    with pytest.raises(ConfigError, match="selection=medium: no cell"):
        expand_grid(str(grid), only="method=flow_grpo selection=medium")


@pytest.mark.parametrize("cell", ["selection: [random, random]", "{selection: random, fusion.weight: [1, 2]}"])
def test_a_run_does_not_occur_twice(cell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By a value that is given twice, or a setting that nothing reads."""
    (tmp_path / "twice.yaml").write_text(f"profile: smoke\nseeds: [0]\ncells:\n  - {cell}\n")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["grid", str(tmp_path / "twice.yaml"), "--plan"])
    assert "2 cells have this run" in capsys.readouterr().err


def test_a_reward_is_a_file_s_name_or_weights(tmp_path: Path) -> None:
    grid = tmp_path / "rewards.yaml"
    grid.write_text("profile: smoke\nseeds: [0]\ncells:\n  - {reward: [ocr_colour, {ocr-v4: 1.0}]}\n")
    assert [run.reward for run in expand_grid(str(grid))] == [{"ocr": 1.0, "colour": 0.5}, {"ocr-v4": 1.0}]


def test_cells_may_have_seeds_of_their_own(tmp_path: Path) -> None:
    grid = tmp_path / "seeds.yaml"
    grid.write_text(
        "profile: smoke\nseeds: 3-5\ncells:\n"
        "  - {selection: [random, medium], seeds: [8]}\n  - {selection: easiest}\n"
        "  - {selection: hardest, seeds: '3,9'}\n"
    )
    runs = [(config.selection, config.seed) for config in expand_grid(str(grid))]
    # All first seeds, then all second ones.
    assert runs == [
        *[("random", 8), ("medium", 8), ("easiest", 3), ("hardest", 3)],
        *[("easiest", 4), ("hardest", 9), ("easiest", 5)],
    ]
    assert [config.seed for config in expand_grid(str(grid), only="selection=easiest,medium", seeds=[1])] == [1, 1]
    grid.write_text("profile: smoke\nseeds: 5-3\ncells:\n  - {selection: random}\n")
    with pytest.raises(ConfigError, match=r"seeds\.yaml: seeds 5-3: the range 5-3 is empty"):
        expand_grid(str(grid))


def test_seeds_are_numbers_and_ranges() -> None:
    assert parse_seeds("0-2,5,1") == [0, 1, 2, 5]
    for wrong in ("", "a", "3-1", "-1", "0;1", "0-100000", "9" * 5000):
        with pytest.raises(ConfigError, match="--seeds"):
            parse_seeds(wrong)


def test_a_profile_names_its_grid(tmp_path: Path) -> None:
    assert grid_of("miniature-luck") == grid_of("weak") == "paper"
    assert grid_of("smoke") == "smoke"
    profile = tmp_path / "own.yaml"
    profile.write_text("use_model: miniature-luck\n")
    with pytest.raises(ConfigError, match="names no grid"):
        grid_of(str(profile))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(plan_module, "find_run", lambda config: find_run(config, tmp_path / "runs"))
    return tmp_path / "runs"


def test_a_plan_writes_nothing_and_invents_no_hours(runs: Path) -> None:
    lines = plan(expand_grid("smoke"), slots=2)
    assert "1 new" in lines[0]
    assert "hours and disk: not known" in lines[-1]
    assert not runs.exists()


def test_a_plan_counts_what_is_left_and_estimates_from_finished_runs(runs: Path) -> None:
    configs = expand_grid("smoke", ["iterations=10"], seeds=[0, 1])
    finished, started = (prepare_run(config, runs) for config in configs[:2])
    for iteration in range(1, 11):
        totals = {"total_sample_forwards": 4 * iteration, "total_train_forwards": 0, "total_reward_calls": iteration}
        seconds = {"iteration": 8.0, "reward": 2.0}
        finished.append("metrics.jsonl", {"iteration": iteration, "seconds": seconds, **totals})
    evaluation = {"iteration": 10, "split": "validation", "metrics": {"ocr": 0.5}, "num_prompts": 5, "num_noises": 1}
    finished.append("eval.jsonl", evaluation | {"seconds": 100.0})
    finished.set_status("finished", 10, 10)
    started.set_status("running", 4, 10)
    lines = plan(configs, slots=2)
    assert "3 runs and 26 iterations left" in lines[-2]
    seconds_of = [plan_module.expected_seconds(config, Rates(1.5, 2.0, 20.0, 1, 0.0)) for config in configs[1:]]
    hours = (0.6 * seconds_of[0] + sum(seconds_of[1:])) / 3600
    assert f"about {hours / 2:.2f} hours on 2 slots ({hours:.2f} of work)" in lines[-1]
    assert "measured on 1 finished run" in lines[-1]
