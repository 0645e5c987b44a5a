"""``adagrpo shards``: finished runs become small files that are committed."""

import argparse
from pathlib import Path

from harness.commands import Commands
from harness.foundation.errors import ConfigError


def add_parser(commands: Commands) -> None:
    """Add the command to the subparsers of ``adagrpo``."""
    parser = commands.add_parser("shards", help="write each finished run as one small file, enough to make the report")
    parser.add_argument("runs", type=Path, help="folder with run directories, at any depth")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to, such as results/miniature/runs")
    parser.add_argument(
        "--pictures", type=int, metavar="N", help="prompts whose pictures are kept (default: those that a page shows)"
    )
    parser.set_defaults(command=_shards)


def _shards(options: argparse.Namespace) -> int:
    from analysis.runs.gallery import NUM_PROMPTS
    from analysis.runs.runlog import RunLogError
    from analysis.runs.shards import write_shards

    pictures = NUM_PROMPTS if options.pictures is None else options.pictures
    if pictures < 0:
        raise ConfigError(f"--pictures {pictures}: must be at least 0")
    try:
        written = write_shards(options.runs, options.output, pictures)
    except RunLogError as error:
        raise ConfigError(str(error)) from None
    size = sum(path.stat().st_size for path in written)
    print(f"{len(written)} finished runs, {size / 1e6:.1f} MB in {options.output}")
    return 0
