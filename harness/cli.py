"""The ``adagrpo`` command. Bad input is one clear line and exit code 2; a failed run is exit code 1."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from harness.errors import HarnessError

COMMANDS = (
    "train",
    "launch",
    "grid",
    "reproduce",
    "study",
    "sweep",
    "mechanism",
    "probe",
    "status",
    "show_config",
    "doctor",
    "report",
    "shards",
    "fetch_assets",
    "serve_reward",
    "check_reward_parity",
    "evaluate",
    "sample",
    "export",
    "prompts",
    "pretrain_miniature",
)
"""Modules of ``harness.commands``, in the order of the help."""

# Libraries announce each optional package that is missing; none of them is needed.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``adagrpo``."""
    options = _parse(arguments)
    try:
        if given := getattr(options, "overrides", None):
            from harness.config import check_overrides

            check_overrides(given)
        code = options.command(options)
    except HarnessError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    sys.exit(code)


def _fail(message: str, code: int) -> None:
    print(f"adagrpo: error: {message}", file=sys.stderr)
    sys.exit(code)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse itself takes no override that comes after an option.
    if rest:
        if not hasattr(options, "overrides") or any("=" not in word or word.startswith("-") for word in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        options.overrides = [*options.overrides, *rest]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adagrpo", description="GRPO for flow-matching image models: AdaGRPO's harness."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in COMMANDS:
        import_module(f"harness.commands.{name}").add_parser(commands)
    return parser


if __name__ == "__main__":
    main()
