"""``adagrpo fetch-assets``: the text recognisers' weights."""

import argparse

from harness.commands import Commands


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser("fetch-assets", help="fetch the text recognisers that serve as rewards")
    parser.set_defaults(command=fetch)


def fetch(options: argparse.Namespace) -> int:
    """Fetch what is missing."""
    from harness.rewards.files.assets import fetch_assets

    fetch_assets()
    return 0
