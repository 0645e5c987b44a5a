"""YAML with a single reading of every text, or a one-line error that says what to write instead.

YAML 1.1 reads ``010`` as 8, ``1:30`` as 90, ``on`` as true and ``1e-4`` as a string, and of two equal keys the second
wins. Here numbers are decimal, true and false are the only booleans, all else is strings, and equal keys are an error.
"""

import re
from collections.abc import Callable
from math import inf
from typing import Any

import yaml

from harness.foundation.errors import ConfigError

MAX_VALUES = 100_000
"""Largest number of values in a text; those behind an alias count each time."""
MAX_DEPTH = 1_000
"""Deepest nesting that is read; at some tens of thousands the C parser would overflow."""
_TAG = "tag:yaml.org,2002:"
_PLAIN = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]{0,99})", list("-+0123456789")),
    ("float", r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
)
_MAKE: dict[str, Callable[[str], Any]] = {
    f"{_TAG}null": lambda text: None,
    f"{_TAG}bool": lambda text: text.lower() == "true",
    f"{_TAG}int": int,
    f"{_TAG}float": float,
    f"{_TAG}str": str,
}


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Loader that resolves plain scalars by ``_PLAIN``, in C if PyYAML was built with it."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way


class _Dumper(yaml.SafeDumper):
    """Dumper that quotes strings which YAML 1.1 or this module's reading would take for something else."""


for _kind, _pattern, _first in _PLAIN:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(rf"(?:{_pattern})\Z"), _first)


def parse(text: str, where: str, note: Callable[[str, int], None] = lambda key, line: None) -> Any:
    """Parse a YAML text: mappings with strings as keys, lists, strings, numbers, true, false and null.

    Args:
        text: one document.
        where: file or override that begins every error message.
        note: called with the dotted key and the line, from 1, of each value that is not a mapping, or an empty one.

    Raises:
        ConfigError: one line with the place and what to write instead.
    """
    try:
        if len(text) > 10 * MAX_DEPTH:  # else it cannot nest so deeply that composing it is a danger
            _require_shallow(text)
        node = yaml.compose(text, _Loader)
        return None if node is None else _Reader(where, note).value(node, "")
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{where}: brackets or indents are nested too deeply") from None


def _require_shallow(text: str) -> None:
    """Raise RecursionError if a text nests deeper than ``MAX_DEPTH``; events, unlike nodes, are read one by one."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise RecursionError


def _tag_of(node: yaml.Node) -> str:
    """Tag that a scalar has by itself (if the node's is another one, it stands in the text); empty for what is none."""
    if not isinstance(node, yaml.ScalarNode):
        return ""
    kinds = (kind for kind, pattern, _ in _PLAIN if not node.style and re.fullmatch(pattern, node.value))
    return _TAG + next(kinds, "str")


def dump(content: Any, **options: Any) -> str:
    """YAML of plain values that ``parse``, and any other reader, reads back unchanged; keys keep their order."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, **options)


class _Reader:
    """Constructor of values from nodes; a node with aliases is visited several times."""

    def __init__(self, where: str, note: Callable[[str, int], None]) -> None:
        self._where, self._note = where, note
        self._left = MAX_VALUES

    def value(self, node: yaml.Node, key: str) -> Any:
        line = node.start_mark.line + 1
        self._left -= 1
        if self._left < 0:
            raise self._wrong(line, "aliases (*name) stand for too many values, or themselves")
        content: Any
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            content = self._mapping(node, key)
        elif isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            content = [self.value(one, f"{key}[{i}]") for i, one in enumerate(node.value)]
        elif node.tag == _tag_of(node):
            content = _MAKE[node.tag](node.value)
            if content in (inf, -inf):
                raise self._wrong(line, f"{node.value:.40} is too large a number")
        else:
            raise self._wrong(line, f"tags such as {node.tag} are not read; write the value alone")
        if not content or not isinstance(content, dict):
            self._note(key, line)
        return content

    def _mapping(self, node: yaml.MappingNode, key: str) -> dict[str, Any]:
        lines: dict[str, int] = {}
        content: dict[str, Any] = {}
        for name, value in node.value:
            line = name.start_mark.line + 1
            if not name.value or not name.tag == _tag_of(name) == f"{_TAG}str":
                raise self._wrong(line, f"{name.value!r:.40} is no key; a key is a word, or in quotes")
            full = f"{key}.{name.value}" if key else name.value
            if name.value in lines:
                raise self._wrong(line, f"the key {full!r} stands twice, first in line {lines[name.value]}; keep one")
            lines[name.value] = line
            if name.value == "<<" and not name.style:
                parent = self.value(value, key)
                if not isinstance(parent, dict):
                    raise self._wrong(line, "<< merges one mapping")
                content = parent | content
            else:
                content[name.value] = self.value(value, full)
        return content

    def _wrong(self, line: int, problem: str) -> ConfigError:
        return ConfigError(f"{self._where}: line {line}: {problem}")
