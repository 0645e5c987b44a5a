"""``adagrpo pretrain-miniature``: the base models from scratch."""

import argparse
from pathlib import Path

from harness.commands import Commands
from harness.errors import ConfigError


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("pretrain-miniature", help="train the miniature's base and weak models from scratch")
    parser.add_argument("--output", type=Path, required=True, help="folder to write base/ and weak/ to; resumable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="optimiser steps (default: 4200); weak/ is saved at 4/7 of them")
    parser.add_argument("--threads", type=int, default=2)
    parser.set_defaults(command=pretrain_miniature)


def pretrain_miniature(options: argparse.Namespace) -> int:
    """Pretrain, or continue."""
    from harness.models.miniature.pretrain import PretrainConfig, pretrain

    defaults = PretrainConfig()
    steps = defaults.steps if options.steps is None else options.steps
    if steps < 2:
        raise ConfigError(f"--steps {steps}: must be at least 2")
    config = PretrainConfig(
        seed=options.seed,
        steps=steps,
        weak_steps=max(1, round(steps * defaults.weak_steps / defaults.steps)),
        threads=options.threads,
    )
    try:
        for line in pretrain(config, options.output):
            print(line, flush=True)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return 0
