"""``adagrpo pretrain-miniature``: the miniature's models, each by its recipe."""

import argparse
from pathlib import Path

from harness.commands import Commands
from harness.foundation.errors import ConfigError


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "pretrain-miniature", help="pretrain a model of the miniature by its recipe, see docs/testbed.md; resumable"
    )
    parser.add_argument(
        "--recipe", required=True, metavar="NAME", help="strikes (makes base and weak), letters-luck or letters"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for models and states; resumable")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.set_defaults(command=pretrain_miniature)


def pretrain_miniature(options: argparse.Namespace) -> int:
    """Pretrain, or continue."""
    if options.threads < 1:
        raise ConfigError(f"--threads {options.threads}: must be at least 1")

    from harness.config import nearest
    from harness.models.miniature.pretrain import pretrain
    from harness.models.miniature.recipes import RECIPES

    if options.recipe not in RECIPES:
        raise ConfigError(f"--recipe {options.recipe} is unknown; {nearest(options.recipe, list(RECIPES))}")
    for line in pretrain(RECIPES[options.recipe], options.output, options.threads):
        print(line, flush=True)
    return 0
