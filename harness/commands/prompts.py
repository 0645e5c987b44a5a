"""``adagrpo prompts``: make prompt lists of other people's files."""

import argparse
from pathlib import Path

from harness.commands import Commands


def add_parser(commands: Commands) -> None:
    """Register ``prompts import``."""
    prompts = commands.add_parser("prompts", help="make train, validation and test lists of prompt files")
    actions = prompts.add_subparsers(required=True, metavar="ACTION")
    load = actions.add_parser("import", help="check, deduplicate and split prompts by hash; prints counts")
    load.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help=".txt, .csv, .tsv, .json, .jsonl or .ndjson; see docs/prompts.md",
    )
    load.add_argument("--output", type=Path, required=True, help="folder to write train, validation and test lists to")
    load.add_argument("--shares", default="90,5,5", help="percent for train, validation, test (default: 90,5,5)")
    load.add_argument("--exclude", type=Path, action="append", default=[], metavar="FILE", help="prompts to keep out")
    load.add_argument("--column", "--key", help="of the prompt in a table or in JSON objects (default: prompt)")
    load.add_argument("--max-characters", type=int, help="longer prompts are left out (default: 2000)")
    load.set_defaults(command=_import)


def _import(options: argparse.Namespace) -> int:
    from harness.config import ConfigError
    from harness.prompts.imported import Shares, import_prompts, write_lists
    from harness.prompts.lists import MAX_CHARACTERS

    limit = MAX_CHARACTERS if options.max_characters is None else options.max_characters
    if not 1 <= limit <= MAX_CHARACTERS:
        raise ConfigError(f"--max-characters {limit}: must be 1 to {MAX_CHARACTERS}")
    shares = Shares.parse(options.shares)
    imported = import_prompts(
        options.files, shares, exclude=options.exclude, column=options.column, max_characters=limit
    )
    paths = write_lists(imported.lists, options.output)
    print("\n".join([*imported.summary(), "in a configuration:", "prompts:"]))
    for split, path in zip(imported.lists, paths, strict=True):
        print(f"  {split}: {path.resolve()}")
    return 0
