"""Options that commands which draw pictures share."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.checkpoints import Checkpoint


def add_drawing_options(parser: argparse.ArgumentParser) -> None:
    """Base model, size, steps and device."""
    parser.add_argument(
        "--profile",
        default="miniature",
        help="base model and sampling settings of a checkpoint that does not know its own (default: miniature)",
    )
    parser.add_argument("--height", type=int, help="pixels (default: the checkpoint's)")
    parser.add_argument("--width", type=int, help="pixels (default: the checkpoint's)")
    parser.add_argument("--steps", type=int, help="Euler steps (default: the checkpoint's)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def checkpoint_of(name: str, options: argparse.Namespace) -> "Checkpoint":
    """The checkpoint that a name means, sampled as the options say. Raises ConfigError as ``find_checkpoint``."""
    from harness.checkpoints import find_checkpoint

    return find_checkpoint(name, options.profile).sampled(options.height, options.width, options.steps)
