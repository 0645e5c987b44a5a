"""``adagrpo sample``: draw pictures from any checkpoint."""

import argparse
import sys
from pathlib import Path

from harness.commands import Commands
from harness.commands.options import add_drawing_options, checkpoint_of


def add_parser(commands: Commands) -> None:
    """Register ``sample``."""
    parser = commands.add_parser("sample", help="draw PNGs from a checkpoint")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="as for evaluate")
    parser.add_argument("--prompt", action="append", default=[], help="what to draw; may be repeated")
    parser.add_argument("--prompts", help="a prompt list to draw instead")
    parser.add_argument("--seed", type=int, action="append", default=[], help="may be repeated (default: 3407)")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    add_drawing_options(parser)
    parser.set_defaults(command=_sample)


def _sample(options: argparse.Namespace) -> int:
    from harness.config import ConfigError
    from harness.models.pipelines.truncation import truncations
    from harness.prompts.lists import normalise, problem_with, read_prompts
    from harness.trained.loading import device_of, load_policy
    from harness.trained.pictures import SEEDS, write_pictures

    if bool(options.prompt) == bool(options.prompts):
        raise ConfigError("give prompts either by --prompt TEXT or by --prompts FILE")
    prompts = read_prompts(options.prompts).prompts if options.prompts else tuple(map(normalise, options.prompt))
    for prompt in prompts:
        if problem := problem_with(prompt):
            raise ConfigError(f"--prompt {prompt[:40]!r}: is {problem.kind}{problem.detail}")
    seeds = options.seed or SEEDS[:1]
    if min(seeds) < 0:
        raise ConfigError(f"--seed {min(seeds)}: must be at least 0")
    device = device_of(options.device)
    checkpoint = checkpoint_of(options.checkpoint, options)
    policy = load_policy(checkpoint, device, prompts)
    for line in truncations([policy], prompts, "prompts"):
        print(f"warning: {line}", file=sys.stderr, flush=True)
    for path in write_pictures(policy, prompts, seeds, options.output, checkpoint.label):
        print(path, flush=True)
    return 0
