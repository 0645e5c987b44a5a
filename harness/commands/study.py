"""``adagrpo study``: the experiments that answer the paper's claims; runs only what has no committed shard."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.commands import Commands
from harness.commands.train import add_rerun
from harness.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from analysis.cells.tuning import Tuned
    from harness.experiments.study import PlannedRun, Study
    from harness.runs.directory import RunDirectory


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("study", help="execute the study's experiments; runs whose shard is there are skipped")
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="files beside the study's (default: all)")
    parser.add_argument("--study", type=Path, help="the study's file (default: experiments/studies/all.yaml)")
    parser.add_argument("--only", metavar="CELLS", help="of one experiment, such as 'selection=random,curriculum'")
    parser.add_argument("--seeds", metavar="LIST", help="of one experiment, such as 500-503 (default: its own)")
    parser.add_argument("--plan", action="store_true", help="list runs and core-hours against the budget; run nothing")
    parser.add_argument("--slots", type=int, help="runs at a time (default: as many as cores, or GPUs, suffice for)")
    add_rerun(parser)
    parser.set_defaults(command=execute_study)


def execute_study(options: argparse.Namespace) -> int:
    """Execute experiments, tuning first, or print the plan; 1 if a run failed."""
    from harness.experiments.grid import parse_seeds
    from harness.experiments.study import DEFAULT, plan_runs, read_study
    from harness.runs.directory import RUNS

    study = read_study(options.study or DEFAULT)
    names = tuple(dict.fromkeys(options.experiments)) or study.names
    seeds = None if options.seeds is None else parse_seeds(options.seeds)
    if (options.only or seeds) and len(names) != 1:
        raise ConfigError("--only and --seeds choose among the runs of one experiment: name it")
    configs = {name: study.configs(name, options.only, seeds) for name in names}
    if options.plan:
        _print_plan(study, {name: plan_runs(study, configs[name], RUNS) for name in names})
        return 0
    code = 0
    if study.file.tuning in names:
        code = _execute(study, plan_runs(study, configs[study.file.tuning], RUNS), options)
        if not options.only and not seeds:
            _write_tuned(study)
    rest = [name for name in names if name != study.file.tuning]
    if rest:
        _require_tuned(study)
        # Composed again: tuning may have just written their settings.
        wanted = [config for name in rest for config in study.configs(name, options.only, seeds)]
        code |= _execute(study, plan_runs(study, wanted, RUNS), options)
    return code


def _execute(study: "Study", planned: Sequence["PlannedRun"], options: argparse.Namespace) -> int:
    from analysis.claims import STUDY_SEEDS
    from analysis.runs.gallery import NUM_PROMPTS
    from analysis.runs.runlog import RunLogError
    from analysis.runs.shards import write_shards
    from harness.experiments.study import execute
    from harness.runs.directory import RUNS

    def keep(run: "RunDirectory") -> None:
        # A page shows the pictures of each cell's first seed; of all runs they would be most of what is committed.
        try:
            write_shards(run.folder, study.shards, NUM_PROMPTS if run.config.seed == STUDY_SEEDS[0] else 0)
        except RunLogError as error:
            print(f"not kept: {error}", file=sys.stderr)

    outcome = execute(
        planned,
        options.slots,
        lambda line: print(line, flush=True),
        keep,
        RUNS,
        options.rerun_changed,
    )
    for run_id, reason in outcome.failed.items():
        print(f"failed: {run_id}: {reason}", file=sys.stderr)
    return 1 if outcome.failed else 0


def _print_plan(study: "Study", experiments: dict[str, list["PlannedRun"]]) -> None:
    from analysis.cells.costs import measured_rates
    from harness.config import ROOT
    from harness.experiments.study import hours_left, plan_lines
    from harness.runs.identity import note_on_code

    source, own = study.shards, measured_rates(study.shards)
    rates = own
    if own is None and study.file.rates_from:
        source = ROOT / study.file.rates_from
        rates = measured_rates(source)
    print("\n".join(plan_lines(experiments, rates)))
    every = {one.shard: one for planned in experiments.values() for one in planned}
    for line in note_on_code(one.changes for one in every.values()):
        print(f"\n{line}")
    left = [one for one in every.values() if not one.is_kept]
    recorded = own.recorded_hours if own else 0.0
    print(f"\n{len(every)} runs, {len(left)} left; {recorded:.2f} core-hours recorded in all shards so far")
    if rates is None:
        print("core-hours: not known before a run has finished")
        return
    needed = hours_left(left, rates)
    print(f"about {needed:.2f} core-hours left, {recorded + needed:.2f} in all", end="")
    budget = study.file.budget_hours
    if budget is not None:
        over = recorded + needed - budget
        print(f"; budget {budget:g}: " + (f"OVER by {over:.2f}" if over > 0 else f"{-over:.2f} to spare"), end="")
    print(
        f"\nmedians of {rates.num_runs} finished runs in {source}: {1e3 * rates.per_forward:.2f} ms a forward, "
        f"{1e3 * rates.per_reward_call:.1f} ms a reward call, {1e3 * rates.per_picture:.0f} ms a picture evaluated"
    )


def _write_tuned(study: "Study") -> None:
    """Write what tuning chose into the method files of the other experiments."""
    from analysis.claims import PILOT_SEEDS, VALIDATION_POINTS
    from harness.config import EXPERIMENTS
    from harness.experiments.study import tuned_method, tuned_text
    from harness.files import read_text, write_atomically

    table, chosen = _tuning(study)
    for kernel, setting in chosen.items():
        rows = table[table["method"] == kernel]
        means = rows.groupby(["eta", "learning_rate"], as_index=False).agg(
            mean=("value", "mean"), seeds=("seed", "size")
        )
        evidence = [
            f"Chosen by adagrpo study tuning: mean of the last {VALIDATION_POINTS} validations, over pilot seeds "
            + ", ".join(map(str, PILOT_SEEDS))
        ]
        evidence += [
            f"eta {row['eta']:g}, {row['learning_rate']:g}: {row['mean']:.4f} ({row['seeds']} seeds)"
            for row in means.sort_values("mean", ascending=False).to_dict("records")
        ]
        path = EXPERIMENTS / "methods" / f"{tuned_method(kernel)}.yaml"
        text = tuned_text(kernel, *setting, evidence)
        if read_text(path) != text:
            write_atomically(path, text)
        print(f"{kernel}: eta {setting.eta:g}, learning rate {setting.learning_rate:g} ({path})")


def _require_tuned(study: "Study") -> None:
    """Raise ConfigError unless the method files have what tuning chose."""
    from harness.config import EXPERIMENTS, read_experiment
    from harness.experiments.study import tuned_method

    if study.file.tuning is None:
        return
    for kernel, setting in _tuning(study)[1].items():
        path = EXPERIMENTS / "methods" / f"{tuned_method(kernel)}.yaml"
        content = read_experiment(path)
        if (content["method"]["eta"], content["optimizer"]["learning_rate"]) != setting:
            raise ConfigError(
                f"{path}: not what tuning chose, eta {setting.eta:g} and learning rate {setting.learning_rate:g}; "
                f"write it with  adagrpo study {study.file.tuning}"
            )


def _tuning(study: "Study") -> tuple["pd.DataFrame", dict[str, "Tuned"]]:
    """The values of all tuning runs and what they choose; ConfigError while one is left."""
    from analysis.cells.logs import load_logs
    from analysis.cells.tuning import chosen_settings, tuning_table
    from harness.experiments.study import plan_runs
    from harness.runs.directory import RUNS

    assert study.file.tuning is not None
    configs = study.configs(study.file.tuning)
    planned = plan_runs(study, configs, RUNS)
    # A run that diverged has no value; its setting is out.
    left = [one for one in planned if not one.is_kept and one.run.status()["state"] != "failed"]
    if left:
        raise ConfigError(
            f"tuning comes first, and {len(left)} of its {len(planned)} runs are left: "
            f"run  adagrpo study {study.file.tuning}"
        )
    folders = {one.shard.parent for one in planned if one.is_kept}
    if len(folders) != 1:
        raise ConfigError(f"tuning: no run of it has finished: run  adagrpo study {study.file.tuning}")
    table = tuning_table(load_logs(folders.pop(), (), with_prompts=False))
    table = table[table["run_id"].isin([one.run.run_id for one in planned])]
    chosen = chosen_settings(table)
    if without := sorted({config.method.kernel for config in configs} - set(chosen)):
        raise ConfigError(f"tuning: no setting of {', '.join(without)} finished with every pilot seed")
    return table, chosen
