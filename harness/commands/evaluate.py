"""``adagrpo evaluate``: score checkpoints on a prompt list."""

import argparse
from pathlib import Path

from harness.commands import Commands
from harness.commands.options import add_drawing_options, checkpoint_of


def add_parser(commands: Commands) -> None:
    """Register ``evaluate``."""
    parser = commands.add_parser("evaluate", help="score checkpoints on a prompt list, with every available reward")
    parser.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CHECKPOINT",
        help="run directory, exported folder, LoRA file, transformer folder, pipeline folder, or: base",
    )
    parser.add_argument("--prompts", help="list to score on (default: the first checkpoint's test list)")
    parser.add_argument("--rewards", help="comma-separated (default: every one that can score here)")
    parser.add_argument("--noises", type=int, help="pictures a prompt (default: the configuration's)")
    parser.add_argument("--grid-prompts", type=int, default=4, help="prompts in grid.png (default: 4)")
    parser.add_argument("--output", type=Path, help="folder (default: one in results/evaluations/)")
    add_drawing_options(parser, default="the checkpoint's evaluations'")
    parser.set_defaults(command=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from harness.config import ROOT, ConfigError
    from harness.prompts.lists import read_prompts
    from harness.rewards.readiness import choose_rewards
    from harness.trained.benchmark import Benchmark, default_folder, left_out, table
    from harness.trained.loading import device_of

    device = device_of(options.device)
    checkpoints = [checkpoint_of(name, options, evaluated=True) for name in options.checkpoints]
    config = checkpoints[0].config
    num_noises = config.evaluation.test_noises if options.noises is None else options.noises
    if num_noises < 1 or options.grid_prompts < 0:
        raise ConfigError("--noises must be at least 1, and --grid-prompts at least 0")
    prompts = read_prompts(options.prompts or config.prompts.test)
    wanted = None if options.rewards is None else options.rewards.split(",")
    size = config.model.height, config.model.width
    panel = choose_rewards(wanted, prompts.prompts, *size, config.rewards, config.runtime.threads)
    try:
        benchmark = Benchmark(prompts, panel, num_noises, options.grid_prompts)
        folder = options.output or default_folder(benchmark, checkpoints, ROOT / "results" / "evaluations")
        for line in left_out(panel):
            print(line, flush=True)
        scores = benchmark.run(checkpoints, device, folder, say=lambda line: print(line, flush=True))
    finally:
        panel.close()
    print("\n".join(["", *table(scores), "", f"written to {folder}"]))
    return 0
