"""Plug-ins: parts of a run that are written outside of this project, found by name when they are needed.

A reference is ``path/to/file.py:Object`` or ``module:Object``, or the name of an entry point of the group
``adagrpo.plugins``. The object's name names it in settings, runs and tables. Its source, byte by byte, is part of what
a run is. What it raises is one line with its file and line; docs/extend.md has what each kind is called with.
"""

import ast
import hashlib
import importlib.util
import inspect
import re
import sys
import traceback
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NoReturn

from harness.foundation.errors import HarnessError
from harness.foundation.places import ROOT, folders_of

GROUP = "adagrpo.plugins"
_REFERENCE = re.compile(r"(?P<place>[^\s:]*[^\s:/]\.py|[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w{0,39})")
_FILE = re.compile(r"[^\s:={}\[\],'\"]+\.py(?=:[A-Za-z_])")
_NOT_REFERENCES = ("twin:",)


class PluginError(HarnessError, RuntimeError):
    """A plug-in that cannot be found, that raises, or that returns what it must not; names its file and line."""

    exit_code = 2


@dataclass(frozen=True)
class Plugin:
    """A plug-in that was found.

    Attributes:
        name: of the object, and of the plug-in.
        source: absolute reference.
        files: its source by path below ``plugins/NAME`` in a run: its file, and what this imports of its own package.
        found: the object.
    """

    name: str
    source: str
    files: Mapping[str, bytes]
    found: Any = field(repr=False)

    @property
    def sha256(self) -> str:
        """Hash of the source."""
        parts = [f"{path} {hashlib.sha256(text).hexdigest()}" for path, text in sorted(self.files.items())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def made(self, **settings: Any) -> Any:
        """What is called: an instance, if the object is a class, else the object."""
        return self.found(**settings) if isinstance(self.found, type) else self.found

    def refuse(self, problem: str) -> NoReturn:
        """Raise PluginError: what the plug-in did, with the place of the object."""
        raise PluginError(f"plug-in {self.name} ({self._place}): {problem}")

    @property
    def _place(self) -> str:
        try:
            return f"{inspect.getsourcefile(self.found)}:{inspect.getsourcelines(self.found)[1]}"
        except (OSError, TypeError):
            return self.source


def is_reference(value: object) -> bool:
    """Whether a value of a setting is a plug-in's reference: with a colon, as no other name has one."""
    return isinstance(value, str) and not value.startswith(_NOT_REFERENCES) and bool(_REFERENCE.fullmatch(value))


def absolute(text: str, written_in: Path | None = None) -> str:
    """A reference, or settings with references in them, with absolute paths: they are read in other folders, too.

    See ``folders_of``; then among what comes with the code. What is in none of them is one of the working directory.
    """

    def found(match: re.Match[str]) -> str:
        path = Path(match[0]).expanduser()
        there = next((folder for folder in (*folders_of(written_in), ROOT) if (folder / path).is_file()), Path())
        return str((there / path).resolve())

    return _FILE.sub(found, text)


@cache
def installed() -> Mapping[str, str]:
    """References by name, of installed packages."""
    return {entry.name: entry.value for entry in entry_points(group=GROUP)}


def find(source: str) -> Plugin:
    """The plug-in of a reference; its module is executed when its source is another one than before.

    Raises:
        PluginError: there is no such file, module or object, or it cannot be imported.
    """
    match = _REFERENCE.fullmatch(source)
    if match is None:
        raise PluginError(f"plug-in {source!r}: write path/to/file.py:Object or module:Object")
    place, name = match["place"], match["name"]
    files = _files_of(place, source)
    plugin = Plugin(name, source, {path: file.read_bytes() for path, file in files.items()}, None)
    _FILES.update(str(file) for file in files.values())
    key = source, plugin.sha256
    if key not in _FOUND:
        module = _executed(Path(place), plugin) if place.endswith(".py") else _imported(place)
        if not hasattr(module, name):
            known = [word for word, value in vars(module).items() if not word.startswith("_") and callable(value)]
            raise PluginError(f"plug-in {source}: has no {name}, but {', '.join(known) or 'nothing'}")
        _FOUND[key] = Plugin(name, source, plugin.files, getattr(module, name))
    return _FOUND[key]


_FOUND: dict[tuple[str, str], Plugin] = {}
_FILES: set[str] = set()
"""Files of plug-ins, which ``explained`` looks for."""


def explained(error: BaseException) -> PluginError | None:
    """The error in one line, if a plug-in raised it or called what did; the line is the last of the plug-in's own."""
    if isinstance(error, PluginError):
        return error
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in _FILES]
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None
    if isinstance(error, SyntaxError) and error.filename in _FILES:
        place = f"{error.filename}:{error.lineno}"
    if place is None:
        return None
    what = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    return PluginError(f"plug-in {place}: {type(error).__name__}: {what}")


@contextmanager
def explaining() -> Iterator[None]:
    """Within: what a plug-in raises is raised as ``explained`` says it."""
    try:
        yield
    except Exception as error:
        found = explained(error)
        if found is None or found is error:
            raise
        raise found from error


def _executed(file: Path, plugin: Plugin) -> types.ModuleType:
    module = types.ModuleType(f"adagrpo_plugin_{plugin.sha256[:16]}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # dataclasses look there
    with explaining():
        # Not by importlib, whose cache takes a file changed within a second for the same.
        exec(compile(plugin.files[file.name], str(file), "exec"), vars(module))
    return module


def _imported(name: str) -> types.ModuleType:
    with explaining():
        return importlib.import_module(name)


def _files_of(place: str, source: str) -> dict[str, Path]:
    """Files that a plug-in's source is in, by their path from where its module is imported from."""
    if place.endswith(".py"):
        file = Path(place)
        if not file.is_file():
            raise PluginError(
                f"plug-in {source}: no such file; a run keeps a copy of its plug-ins, in plugins/ of its folder"
            )
        return {file.name: file}
    try:
        spec = importlib.util.find_spec(place)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise PluginError(
            f"plug-in {source}: there is no module {place} in Python; install it, set PYTHONPATH, or write the path of "
            "its file"
        )
    file, top = Path(spec.origin), place.partition(".")[0]
    root = file.parents[place.count(".") + (file.name == "__init__.py")]
    found: dict[str, Path] = {}
    left = [file]
    while left:
        file = left.pop()
        if str(file.relative_to(root)) not in found:
            found[str(file.relative_to(root))] = file
            left += [path for name in _imports(file, root) for path in _modules(root, name, top)]
    return found


def _imports(file: Path, root: Path) -> Iterator[str]:
    """Dotted names that a file imports, or may."""
    package = file.relative_to(root).parts[:-1]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join(filter(None, (*above, node.module)))
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


def _modules(root: Path, name: str, top: str) -> list[Path]:
    """Files of a module of the package ``top``, with the packages that it is in."""
    parts = name.split(".")
    if parts[0] != top:
        return []
    packages = [root.joinpath(*parts[:count], "__init__.py") for count in range(1, len(parts) + 1)]
    return [path for path in (*packages, root.joinpath(*parts).with_suffix(".py")) if path.is_file()]
