"""``adagrpo export``: hand a run's result over to plain diffusers."""

import argparse
from contextlib import nullcontext
from pathlib import Path

from harness.commands import Commands


def add_parser(commands: Commands) -> None:
    """Register ``export``."""
    parser = commands.add_parser("export", help="write a run's LoRA or transformer for plain diffusers, with a card")
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a finished run, or with --latest of any")
    parser.add_argument("--output", type=Path, required=True, help="new folder to write to")
    parser.add_argument("--latest", action="store_true", help="the latest checkpoint of a run that is not finished")
    parser.add_argument("--merge", action="store_true", help="write the whole pipeline with the trained weights in it")
    parser.add_argument("--license", help="identifier for the card (default: the base model's)")
    parser.set_defaults(command=_export)


def _export(options: argparse.Namespace) -> int:
    from harness.trained.checkpoints import find_run_checkpoint
    from harness.trained.export import export, latest_weights

    with latest_weights(options.run) if options.latest else nullcontext(find_run_checkpoint(options.run)) as checkpoint:
        form = export(checkpoint, options.output, merge=options.merge, licence=options.license)
    print(f"{form} with model card: {options.output}")
    return 0
