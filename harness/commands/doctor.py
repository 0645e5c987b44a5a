"""``adagrpo doctor``: can this machine run a profile?"""

import argparse

from harness.commands import Commands


def add_parser(commands: Commands) -> None:
    """Register ``doctor``."""
    parser = commands.add_parser("doctor", help="what a profile needs of this machine, and what is missing")
    parser.add_argument("--profile", default="smoke", help="file in experiments/profiles/ (default: smoke)")
    parser.add_argument(
        "--seconds-per-forward", type=float, help="of one sample through the network (default: measured or estimated)"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for every run")
    parser.set_defaults(command=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from harness.config import ConfigError
    from harness.experiments.doctor.checks import check

    seconds = options.seconds_per_forward
    if seconds is not None and not seconds > 0:
        raise ConfigError(f"--seconds-per-forward {seconds}: must be more than 0")
    report = check(options.profile, options.overrides, seconds)
    print("\n".join(report.lines()))
    return 2 if report.missing else 0
