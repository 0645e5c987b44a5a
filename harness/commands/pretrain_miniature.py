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
    parser.add_argument("--start", type=Path, help="go on from this pipeline instead of from random weights")
    parser.add_argument("--stage", default="mixed", help="with --start: the first stage to train (default: mixed)")
    parser.add_argument("--threads", type=int, default=2)
    parser.set_defaults(command=pretrain_miniature)


def pretrain_miniature(options: argparse.Namespace) -> int:
    """Pretrain, or continue."""
    from harness.models.miniature.pretrain import PretrainConfig, pretrain

    if options.start is not None and not (options.start / "model_index.json").is_file():
        raise ConfigError(f"--start {options.start}: no pipeline folder (no model_index.json there)")
    config = PretrainConfig(seed=options.seed, threads=options.threads)
    try:
        for line in pretrain(config, options.output, options.start, options.stage):
            print(line, flush=True)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return 0
