"""YAML as people mean it: one reading of every text, or one line that says what to write instead.

YAML 1.1 reads ``010`` as 8, ``1:30`` as 90, ``on`` as true and ``1e-4`` as a word, and of two equal keys the second
wins. Here a number is decimal, true and false are the only truth values, dates are words, and a key stands once.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import yaml

from harness.foundation.errors import ConfigError

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 50
"""Of brackets and indents in each other; reading goes as deep, and the interpreter's stack ends somewhere."""
MAX_VALUES = 100_000
"""With those of aliases each time."""

_NUMBER_LENGTH = 400  # digits of the longest float
_TAG = "tag:yaml.org,2002:"
_MISREAD = "!misread"
_WORDS = {"null": None, "true": True, "false": False}
_PLAIN = (
    (f"{_TAG}null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (f"{_TAG}bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (f"{_TAG}int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    (f"{_TAG}float", r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    # What some reader of YAML takes for a number that is not the one it looks like, or for none that is finite.
    (
        _MISREAD,
        r"[-+]?(?:0[0-9_]+(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?|0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+"
        r"|[0-9][0-9_]*_[0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?|[0-9]*\.[0-9_]*_[0-9_]*"
        r"|[0-9][0-9_]*(?::[0-9]{1,2})+(?:\.[0-9_]*)?"
        r"|\.?(?:inf|Inf|INF|nan|NaN|NAN)|[iI]nfinity)",
        list("-+.0123456789iInN"),
    ),
)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The parser, in C where the build has it, with plain words resolved as above."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way


class _Dumper(yaml.SafeDumper):
    """Quotes what either reading of YAML would take for something else than a word."""


for _tag, _pattern, _first in _PLAIN:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), _first)


def parse(text: str, where: str, note: Callable[[str, int], None] = lambda key, line: None) -> Any:
    """What a YAML text holds: mappings with words as keys, lists, words, finite numbers, true, false and null.

    Args:
        text: one document.
        where: begins every complaint: a file, an override.
        note: receives the dotted key and the line, from 1, of each value that is no mapping, or an empty one.

    Raises:
        ConfigError: one line with the place and what to write.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"{where}: has {len(text):,} characters, and at most {MAX_CHARACTERS:,} are read")
    try:
        _check_events(text, where)
        return _Reader(where, note).value(yaml.compose(text, _Loader), "")
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None


def dump(content: Any, **options: Any) -> str:
    """Plain values as YAML that ``parse``, and any other reader, reads as what they are; keys keep their order."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, **options)


def _check_events(text: str, where: str) -> None:
    """Refuse what could not be read safely, before anything that reads recursively sees it."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise ConfigError(f"{where}: {_line(event)}: more than {MAX_DEPTH} levels of brackets or indents")
        if (tag := getattr(event, "tag", None)) not in (None, "!"):
            raise ConfigError(f"{where}: {_line(event)}: tags such as {tag} are not read; write the value alone")


class _Reader:
    """Makes values of nodes, of which one that has an alias is met several times."""

    def __init__(self, where: str, note: Callable[[str, int], None]) -> None:
        self._where, self._note = where, note
        self._left = MAX_VALUES
        self._open: list[yaml.Node] = []

    def value(self, node: yaml.Node | None, key: str) -> Any:
        if node is None:
            return None
        self._left -= 1
        if self._left < 0 or node in self._open:
            raise ConfigError(f"{self._where}: {_line(node)}: aliases (*name) stand for too many values, or themselves")
        if isinstance(node, yaml.ScalarNode):
            self._note(key, node.start_mark.line + 1)
            return _scalar(node, f"{self._where}: {_line(node)}{f': {key}' if key else ''}")
        self._open.append(node)
        content: Any
        if isinstance(node, yaml.MappingNode):
            content = self._mapping(node, key)
        else:
            content = [self.value(one, f"{key}[{i}]") for i, one in enumerate(node.value)]
        self._open.pop()
        if not content or isinstance(content, list):
            self._note(key, node.start_mark.line + 1)
        return content

    def _mapping(self, node: yaml.MappingNode, key: str) -> dict[str, Any]:
        lines: dict[str, int] = {}
        content: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for name, value in node.value:
            line = name.start_mark.line + 1
            if name.tag != f"{_TAG}str" or not name.value:
                shown = name.value if isinstance(name.value, str) else "..."
                raise ConfigError(f"{self._where}: line {line}: {shown!r} is no key; a key is a word, or in quotes")
            full = f"{key}.{name.value}" if key else name.value
            if name.value in lines:
                raise ConfigError(
                    f"{self._where}: the key {full!r} stands twice, in lines {lines[name.value]} and {line}; keep one"
                )
            lines[name.value] = line
            if name.value == "<<" and not name.style:
                merged = self._merged(value, key)
            else:
                content[name.value] = self.value(value, full)
        return merged | content

    def _merged(self, node: yaml.Node, key: str) -> dict[str, Any]:
        """What ``<<`` brings into a mapping: another one, or several, of which the first that has a key counts."""
        parts = self.value(node, key)
        merged: dict[str, Any] = {}
        for part in reversed(parts if isinstance(parts, list) else [parts]):
            if not isinstance(part, dict):
                raise ConfigError(f"{self._where}: {_line(node)}: << merges mappings alone")
            merged |= part
        return merged


def _line(place: Any) -> str:
    return f"line {place.start_mark.line + 1}"


def _scalar(node: yaml.ScalarNode, place: str) -> Any:
    kind, text = node.tag.removeprefix(_TAG), node.value
    if kind == "str":
        return text
    if kind in ("null", "bool"):
        return _WORDS.get(text.lower())
    if kind == _MISREAD or len(text) > _NUMBER_LENGTH:
        raise ConfigError(
            f"{place}: {text[:40]!r} is no plain number; write a finite decimal one without leading zeros, "
            "underscores, colons or prefixes, as in 30 or 1e-4, or put a word in quotes"
        )
    if kind == "int":
        return int(text)
    number = float(text)
    if not math.isfinite(number):
        raise ConfigError(f"{place}: {text[:40]!r} is too large a number")
    return number
