"""Names of settings in other trainers, and conversion of their configurations without executing any of their code."""

import ast
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from harness.config.composition import merge, nest, read_yaml
from harness.config.messages import nearest
from harness.foundation.errors import ConfigError
from harness.foundation.files import read_text

DICTIONARY = Path(__file__).with_name("dictionary.yaml")
FAMILIES = ("GRPO-Series", "flow_grpo", "DanceGRPO", "FlowCPS")
"""Trainers whose configurations can be converted."""
_KERNELS = {"GRPO-Series": "flow_grpo", "flow_grpo": "flow_grpo", "DanceGRPO": "dance_grpo", "FlowCPS": "flow_cps"}


class Converted(NamedTuple):
    """Result of converting a configuration of another trainer."""

    settings: dict[str, Any]
    """Converted settings, nested by section as in a file of experiments/methods/."""
    left: dict[str, str]
    """Names that were not converted, with the reasons."""


_AS: dict[str, Callable[[Any], Any]] = {
    "model.precision": lambda value: "fp32" if value == "no" else str(value),
    "objective.normalisation": lambda value: "batch_std" if value else "group",
    "optimizer.tuning": lambda value: value if isinstance(value, str) else ("lora" if value else "full"),
    "rollout.branch_indices": lambda value: value if isinstance(value, list) else [value],
    "reward": lambda value: dict(value) if isinstance(value, dict) else {str(value): 1.0},
}
"""Conversions of values that are written differently here."""


def convert(file: Path, family: str | None = None, function: str | None = None) -> Converted:
    """Convert a configuration: a shell script's arguments, or a Python file's assignments ``config.a.b = value``.

    Args:
        file: ``.sh`` (GRPO-Series, DanceGRPO) or ``.py`` (flow_grpo, FlowCPS).
        family: one of ``FAMILIES``; None infers it from the file.
        function: function of a Python file whose assignments are read; None for the only one that has any.

    Raises:
        ConfigError: the file cannot be read, or the family or function is unknown or not clear.
    """
    text = read_text(file)
    if file.suffix == ".py":
        found, left = _assignments(text, str(file), function)
        family = family or "flow_grpo"
    else:
        found, left = _arguments(text, str(file)), {}
        family = family or ("DanceGRPO" if "num_generations" in found else "GRPO-Series")
    if family not in FAMILIES:
        raise ConfigError(f"--family {family}: is unknown; {nearest(family, FAMILIES)}")
    column = "flow_grpo" if family == "FlowCPS" else family
    settings: dict[str, Any] = nest("method.kernel", _KERNELS[family])
    read = set()
    for here, names in read_yaml(DICTIONARY)["settings"].items():
        name = names.get(column)
        if name in found:
            read.add(name)
            settings = merge(settings, nest(here, _AS.get(here, lambda value: value)(found[name])))
    if family == "DanceGRPO":
        for name in [name for name in ("use_hpsv2", "use_hpsv3") if name in found]:
            settings |= {"reward": {name.removeprefix("use_"): 1.0}}
            read.add(name)
    left |= {
        name: f"{value!r} has no setting here that means the same" for name, value in found.items() if name not in read
    }
    return Converted(settings, left)


def _arguments(text: str, where: str) -> dict[str, Any]:
    """Arguments ``--name value ...`` of the longest command in a script; the value of a name alone is True."""
    commands = [
        line for line in re.sub(r"\\\s*\n", " ", text).splitlines() if " --" in line and not line.startswith("#")
    ]
    if not commands:
        raise ConfigError(f"{where}: has no command with arguments --NAME VALUE")
    try:
        words = shlex.split(max(commands, key=len).rstrip("\\ "), comments=True)
    except ValueError as error:
        raise ConfigError(f"{where}: is no shell script that can be read ({error})") from None
    script = next((place for place, word in enumerate(words) if word.endswith(".py")), -1)
    found: dict[str, list[Any]] = {}
    values: list[Any] = []
    for word in words[script + 1 :]:
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").partition("=")
            values = found[name] = [_literal(value)] if value else []
        else:
            values.append(_literal(word))
    return {name: (values[0] if len(values) == 1 else values) if values else True for name, values in found.items()}


def _assignments(text: str, where: str, function: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Values that a function assigns to its configuration; computed ones by name, with why they are not read."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise ConfigError(f"{where}:{error.lineno}: is no Python ({error.msg})") from None
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef) and _assigned(node)}
    if function is None and len(functions) != 1:
        raise ConfigError(f"{where}: name a configuration with --function; there are {', '.join(functions) or 'none'}")
    chosen = function or next(iter(functions))
    if chosen not in functions:
        raise ConfigError(f"{where}: --function {chosen} is unknown; {nearest(chosen, tuple(functions) or ('none',))}")
    found: dict[str, Any] = {}
    left: dict[str, str] = {}
    for name, value in _assigned(functions[chosen]):
        found.pop(name, None)
        left.pop(name, None)
        try:
            found[name] = ast.literal_eval(value)
        except ValueError:
            if not isinstance(value, ast.Call) or "ConfigDict" not in ast.unparse(value):
                left[name] = f"is computed, {ast.unparse(value)[:60]}, and nothing is executed"
    return found, left


def _assigned(function: ast.FunctionDef) -> list[tuple[str, ast.expr]]:
    """``config.a.b = value`` as ``("a.b", value)``, in order; after ``config.a = a = ...``, ``a.b = value``, too."""
    aliases = {"config": ""}
    found = []
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign):
            continue
        dotted = [ast.unparse(target) for target in node.targets]
        full = [name for name in dotted if name.startswith("config.")]
        aliases |= {name: f"{full[0].removeprefix('config.')}." for name in dotted if full and name.isidentifier()}
        for name in dotted:
            first, _, rest = name.partition(".")
            if rest and first in aliases:
                found.append((f"{aliases[first]}{rest}", node.value))
    return found


def _literal(word: str) -> Any:
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word


def page() -> str:
    """Table for docs/dictionary.md."""
    content: Mapping[str, Any] = read_yaml(DICTIONARY)
    sources = content["sources"]
    head = ["here", *sources]
    lines = [head, ["---"] * len(head)]
    for here, names in content["settings"].items():
        lines.append([f"`{here}`", *(f"`{names[source]}`" if source in names else "" for source in sources)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    read = "\n".join(f"- {name}: `{s['repository']}` {s['commit'][:7]}, `{s['file']}`" for name, s in sources.items())
    return f"{read}\n\n{table}\n"
