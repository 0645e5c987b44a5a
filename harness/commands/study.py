"""``adagrpo study``: the experiments that answer the paper's claims; runs only what has no committed shard."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from harness.commands import Commands
from harness.commands.grid import exit_code, say
from harness.commands.train import add_rerun
from harness.foundation.errors import ConfigError


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
    from harness.experiments.study import DEFAULT, plan_lines, read_study
    from harness.experiments.tuning import require_tuned, write_tuned

    study = read_study(options.study or DEFAULT)
    names = tuple(dict.fromkeys(options.experiments)) or study.names
    seeds = None if options.seeds is None else parse_seeds(options.seeds)
    if (options.only or seeds) and len(names) != 1:
        raise ConfigError("--only and --seeds choose among the runs of one experiment: name it")

    def execute(experiments: Sequence[str]) -> int:
        # Composed when their turn comes: tuning may have just written their settings.
        configs = [config for name in experiments for config in study.configs(name, options.only, seeds)]
        return exit_code(study.execute(study.planned(configs), options.slots, say, options.rerun_changed))

    # All are read before the first run, so that what is wrong is said before anything is made.
    configs = {name: study.configs(name, options.only, seeds) for name in names}
    if options.plan:
        planned = {name: study.planned(of_name) for name, of_name in configs.items()}
        print("\n".join(plan_lines(study, planned)))
        return 0
    code, tuning = 0, study.file.tuning
    if tuning is not None and tuning in names:
        code = execute([tuning])
        if not options.only and not seeds:
            print("\n".join(write_tuned(study)))
    if rest := [name for name in names if name != tuning]:
        require_tuned(study)
        code |= execute(rest)
    return code
