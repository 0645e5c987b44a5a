"""``adagrpo check-reward-parity``: does the project score as the published packages do?"""

import argparse
import sys

from harness.commands import Commands
from harness.errors import ConfigError


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "check-reward-parity", help="score random checkpoints with published packages and with this project"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="hpsv2, hpsv3 (default: both); a few minutes")
    parser.set_defaults(command=_check)


def _check(options: argparse.Namespace) -> int:
    from harness.rewards import RewardError
    from harness.rewards.assets import AssetError
    from harness.rewards.parity import REWARDS, check_parity

    try:
        problems = check_parity(options.names or REWARDS, lambda line: print(line, flush=True))
    except (RewardError, AssetError) as error:
        raise ConfigError(str(error)) from None
    for problem in problems:
        print(f"FAILED {problem}", file=sys.stderr)
    return 1 if problems else 0
