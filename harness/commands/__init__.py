"""The commands of ``adagrpo``: functions whose docstring is their help and whose parameters are their options.

Heavy imports happen only when a function is called, so that every ``--help`` is quick.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from inspect import Parameter, signature
from itertools import groupby
from math import inf
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from harness.foundation.errors import ConfigError

Where = Annotated[Literal["auto", "cpu", "cuda"], "device to compute on"]
Function = TypeVar("Function", bound=Callable[..., int])
COMMANDS: dict[str, Callable[..., int]] = {}
"""Functions by the name of the command."""


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Refuse a command line with a ConfigError."""
        raise ConfigError(f"{message}; see {self.prog} --help")


def command(function: Function) -> Function:
    """Make a function a command: ``show_config`` becomes ``adagrpo show-config``. It returns the exit code.

    Parameters before ``*`` are arguments, those after it options: required without a default, flags if they are bool,
    with several values if they are sequences, repeatable if they are tuples. ``Annotated`` has their help and, for
    numbers, the smallest valid value and one that all valid ones are below. ``overrides`` also takes words that come
    later. A docstring ends with an example, and its module's begins with the title under which ``adagrpo --help`` lists
    the command.
    """
    COMMANDS[function.__name__.replace("_", "-")] = function
    return function


def say(line: object) -> None:
    """Print a line of progress and flush it, so that it is seen at once, in a file too."""
    print(line, flush=True)


def parse(arguments: Sequence[str] | None) -> Callable[[], int]:
    """Parse a command line into a function that executes it. Raises ConfigError if the command line is not valid."""
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse itself does not accept overrides that come after an option.
    if rest:
        if not hasattr(options, "overrides") or any("=" not in word or word.startswith("-") for word in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        options.overrides = [*options.overrides, *rest]
    if given := getattr(options, "overrides", None):
        from harness.config import check_overrides

        check_overrides(given)
    del options.traceback
    function = options.__dict__.pop("command")
    return partial(function, **vars(options))


def make_parser() -> Parser:
    """Parser whose result has ``command``, the function, beside the function's parameters."""
    parser = Parser(
        prog="adagrpo",
        description="GRPO for flow-matching image models: AdaGRPO's harness.",
        epilog=_overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    parser.add_argument("--traceback", action="store_true", help="also show where an error comes from; at any place")
    parsers = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for name, function in COMMANDS.items():
        said, example = _texts(function)
        own = parsers.add_parser(name, description=said, epilog=f"example: {example}")
        own.set_defaults(command=function)
        hints = get_type_hints(function, include_extras=True)
        for key, parameter in signature(function).parameters.items():
            _add(own, parameter, *get_args(hints[key]))
    return parser


def _texts(function: Callable[..., int]) -> tuple[str, str]:
    """Description and example of a command: the example is the last line of its docstring, between backticks."""
    said, _, example = " ".join((function.__doc__ or "").split()).partition("Example: ``")
    return said.rstrip(), example.removesuffix("``")


def _overview() -> str:
    """List of all commands with an example each, under the titles of their modules."""
    lines = []
    order = {f"{__name__}.{name}": place for place, name in enumerate(("runs", "grids", "reports", "checkpoints"))}
    known = sorted(COMMANDS.items(), key=lambda one: order.get(one[1].__module__, len(order)))
    for title, functions in groupby(known, lambda one: sys.modules[one[1].__module__].__doc__ or ""):
        lines += ["", title.partition(":")[0].partition(".")[0].strip()]
        for name, function in functions:
            said, example = _texts(function)
            sentence = re.split(r"[.;] |\.$", said)[0]
            lines += [f"  {name:20}{sentence}", f"  {'':20}$ {example}"]
    return "\n".join([*lines, "", "A command's own help: adagrpo COMMAND --help. Pages: docs/index.md"])


def _version() -> str:
    try:
        return f"adagrpo {version('adagrpo')}"
    except PackageNotFoundError:
        return "adagrpo, not installed"


def _add(
    parser: Parser, parameter: Parameter, kind: Any, said: str, least: float | None = None, limit: float = inf
) -> None:
    if get_origin(kind) in (Union, UnionType):
        [kind] = (one for one in get_args(kind) if one is not NoneType)
    is_option, default = parameter.kind is Parameter.KEYWORD_ONLY, parameter.default
    flag = f"--{parameter.name.replace('_', '-')}" if is_option else parameter.name
    settings: dict[str, Any] = {"metavar": "KEY=VALUE"} if parameter.name == "overrides" else {}
    if get_origin(kind) is tuple:
        settings["action"] = "append"
    elif get_origin(kind) is Sequence:
        settings["nargs"] = "*" if default is not Parameter.empty and not is_option else "+"
    elif not is_option and default is not Parameter.empty:
        settings["nargs"] = "?"
    if get_origin(kind) in (tuple, Sequence):
        kind = get_args(kind)[0]
    if kind is bool:
        settings["action"] = "store_true"
    elif get_origin(kind) is Literal:
        settings["choices"] = get_args(kind)
    else:
        settings["type"] = kind if least is None else _within(least, limit, kind)
    if default is not Parameter.empty:
        settings["default"] = list(default) if default == () else default
        said += f" (default: {default})" * (default not in (None, False, "", ()) and "default" not in said)
    elif is_option:
        settings["required"] = True
    parser.add_argument(flag, help=said, **settings)


def _within(least: float, limit: float, kind: type) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        if kind(text) < least:
            raise argparse.ArgumentTypeError(f"{text} must be at least {least:g}")
        if not kind(text) < limit:
            raise argparse.ArgumentTypeError(f"{text} must be a number below {limit:g}")
        return kind(text)

    parse.__name__ = kind.__name__  # argparse names it if the text is not a number
    return parse
