"""``adagrpo check-reward-parity``: does the project score as the published packages do?"""

import argparse
import sys
from pathlib import Path

from harness.commands import Commands
from harness.errors import ConfigError


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "check-reward-parity", help="score random checkpoints with published packages and with this project"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="hpsv2, hpsv3 (default: both); a few minutes")
    parser.add_argument("--output", type=Path, help="page to write, such as docs/reward-parity.md (default: none)")
    parser.set_defaults(command=_check)


def _check(options: argparse.Namespace) -> int:
    from harness.files import write_atomically
    from harness.rewards import RewardError
    from harness.rewards.files.assets import AssetError
    from harness.rewards.parity import REWARDS, check_parity
    from harness.rewards.parity_page import page, table

    try:
        outcomes = check_parity(options.names or REWARDS, lambda line: print(line, flush=True))
    except (RewardError, AssetError) as error:
        raise ConfigError(str(error)) from None
    print("\n".join(table(outcomes)))
    if options.output is not None:
        write_atomically(options.output, page(outcomes))
        print(f"written to {options.output}")
    problems = [f"{name}: {problem}" for name, outcome in outcomes.items() for problem in outcome.problems]
    for problem in problems:
        print(f"FAILED {problem}", file=sys.stderr)
    return 1 if problems else 0
