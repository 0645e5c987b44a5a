"""Options that commands which draw pictures share."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.trained.checkpoints import Checkpoint


def add_drawing_options(parser: argparse.ArgumentParser, default: str = "the checkpoint's") -> None:
    """Base model, size, steps and device; size and steps have a default, in words."""
    parser.add_argument(
        "--profile",
        default="miniature",
        help="base model and sampling settings of a checkpoint that does not know its own (default: miniature)",
    )
    parser.add_argument("--height", type=int, help=f"pixels (default: {default})")
    parser.add_argument("--width", type=int, help=f"pixels (default: {default})")
    parser.add_argument("--steps", type=int, help=f"Euler steps (default: {default})")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def checkpoint_of(name: str, options: argparse.Namespace, evaluated: bool = False) -> "Checkpoint":
    """The checkpoint that a name means, sampled as the options say.

    Args:
        name: on the command line.
        options: of ``add_drawing_options``.
        evaluated: where the options leave it open, sample as the configuration evaluates, not as it trains.

    Raises:
        ConfigError: as ``find_checkpoint``, or an unfit size.
    """
    from harness.trained.checkpoints import find_checkpoint

    checkpoint = find_checkpoint(name, options.profile)
    if evaluated:
        settings = checkpoint.config.evaluation
        checkpoint = checkpoint.sampled(settings.height, settings.width, settings.num_steps)
    return checkpoint.sampled(options.height, options.width, options.steps)
