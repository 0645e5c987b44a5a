"""Plug-ins: parts of a run that are defined outside of this project and loaded by reference.

A reference is ``path/to/file.py:Object`` or ``module:Object``, or the name of an entry point of the group
``adagrpo.plugins``. The object's name identifies it in settings, runs and tables. Its source, byte by byte, is part of
a run's identity. An exception is reported in one line with file and line; docs/extend.md has what each kind receives.
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
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import entry_points
from itertools import accumulate
from pathlib import Path
from typing import Any, NoReturn

from harness.foundation.errors import HarnessError
from harness.foundation.places import ROOT, folders_of

GROUP = "adagrpo.plugins"
_REFERENCE = re.compile(r"(?P<place>.*[^\s:/]\.py|[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w{0,39})")


class PluginError(HarnessError, RuntimeError):
    """Plug-in that cannot be found, raises, or returns something invalid; the message names its file and line."""

    exit_code = 2


@dataclass(frozen=True)
class Plugin:
    """A plug-in that was loaded.

    Attributes:
        name: name of the object, and so of the plug-in.
        source: absolute reference.
        files: source by path below ``plugins/NAME`` in a run: its file, and what that imports of its own package.
        found: the object.
    """

    name: str
    source: str
    files: Mapping[str, bytes]
    found: Any = field(repr=False)

    @property
    def sha256(self) -> str:
        """sha256 of the source files with their paths."""
        parts = [f"{path} {hashlib.sha256(text).hexdigest()}" for path, text in sorted(self.files.items())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def made(self, **settings: Any) -> Any:
        """The object to call: an instance with these settings if the plug-in is a class, else the plug-in's object."""
        with explaining():
            return self.found(**settings) if isinstance(self.found, type) else self.found

    def __str__(self) -> str:
        """Name and place of the object, as errors give them."""
        place = self.source
        with suppress(OSError, TypeError):
            place = f"{inspect.getsourcefile(self.found)}:{inspect.getsourcelines(self.found)[1]}"
        return f"plug-in {self.name} ({place})"

    def refuse(self, problem: str) -> NoReturn:
        """Raise PluginError with the problem and the place where the object is defined."""
        raise PluginError(f"{self}: {problem}")


def is_reference(value: object) -> bool:
    """Whether a setting's value is a reference to a plug-in; beside ``twin:NAME``, no other value has such a colon."""
    return isinstance(value, str) and not value.startswith("twin:") and bool(_REFERENCE.fullmatch(value))


def absolute(reference: str, written_in: Path | None = None) -> str:
    """A reference with an absolute path, so that it can be read in other folders; a module's is unchanged.

    The path is searched in ``folders_of``, then in ``ROOT``; else it is relative to the working directory.
    """
    place, _, name = reference.rpartition(":")
    if not place.endswith(".py"):
        return reference
    path = Path(place).expanduser()
    there = next((folder for folder in (*folders_of(written_in), ROOT) if (folder / path).is_file()), Path())
    return f"{(there / path).resolve()}:{name}"


@cache
def installed() -> Mapping[str, str]:
    """References of the plug-ins of installed packages, by name."""
    return {entry.name: entry.value for entry in entry_points(group=GROUP)}


def find(source: str) -> Plugin:
    """Load the plug-in of a reference; a file is executed again only if its source has changed, a module never.

    Raises:
        PluginError: the file, module or object does not exist, or cannot be imported.
    """
    match = _REFERENCE.fullmatch(source)
    if match is None:
        raise PluginError(f"plug-in {source!r}: write path/to/file.py:Object or module:Object")
    place, name = match["place"], match["name"]
    with explaining():
        files = _files_of(place, source)
        plugin = Plugin(name, source, {path: _read(file) for path, file in files.items()}, None)
        key = source, plugin.sha256
        if key not in _FOUND:
            module = _executed(Path(place), plugin) if place.endswith(".py") else _imported(place, plugin.sha256)
            if not hasattr(module, name):
                known = [word for word, value in vars(module).items() if not word.startswith("_") and callable(value)]
                raise PluginError(f"plug-in {source}: has no {name}, but {', '.join(known) or 'nothing'}")
            _FOUND[key] = replace(plugin, found=getattr(module, name))
        return _FOUND[key]


_FOUND: dict[tuple[str, str], Plugin] = {}
_IMPORTED: dict[str, str] = {}
"""Hash of each module's source when it was imported."""
_FILES: set[str] = set()
"""Files of plug-ins, by which ``explaining`` recognises their frames."""


@contextmanager
def explaining() -> Iterator[None]:
    """Context in which an exception that a plug-in raised, or that what it called raised, is a PluginError of one line.

    It names the last line of the plug-in's own code. ``sys.exit`` counts: it would end the command as a success.
    """
    try:
        yield
    except PluginError:
        raise
    except (Exception, SystemExit) as error:
        trace = traceback.extract_tb(error.__traceback__)
        frames = [f"{frame.filename}:{frame.lineno}" for frame in trace if frame.filename in _FILES]
        what = str(error)
        if isinstance(error, SyntaxError) and error.filename in _FILES:
            frames, what = [f"{error.filename}:{error.lineno}"], error.msg
        if not frames and isinstance(error, TypeError):  # of the call itself, as in "Rule.choose() missing 1 argument"
            called = what.partition("(")[0].partition(".")[0]
            frames = [plugin.source for plugin in _FOUND.values() if plugin.name == called]
        if not frames:
            raise
        raise PluginError(f"plug-in {frames[-1]}: {type(error).__name__}: {' '.join(what.split())}") from error


def _executed(file: Path, plugin: Plugin) -> types.ModuleType:
    module = types.ModuleType(f"adagrpo_plugin_{plugin.sha256[:16]}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    # Not with importlib, whose cache does not notice that a file changed within the same second.
    exec(compile(plugin.files[file.name], str(file), "exec"), vars(module))
    return module


def _imported(name: str, sha256: str) -> types.ModuleType:
    if _IMPORTED.setdefault(name, sha256) != sha256:
        raise PluginError(f"plug-in {name}: has changed since this process imported it; start it again")
    return importlib.import_module(name)


def _read(file: Path) -> bytes:
    """Source of a plug-in's file. Raises PluginError if it is UTF-16 or not text."""
    _FILES.add(str(file))
    source = file.read_bytes()
    if b"\0" in source:  # Python's own error does not name the file
        raise PluginError(f"plug-in {file}: is not text in UTF-8; save it as UTF-8")
    return source


def _files_of(place: str, source: str) -> dict[str, Path]:
    """Files of a plug-in's source, by path relative to the folder that its module is imported from."""
    if place.endswith(".py"):
        file = Path(place)
        if not file.is_file():
            raise PluginError(
                f"plug-in {source}: no such file; a run keeps a copy of its plug-ins, in plugins/ of its folder"
            )
        return {file.name: file}
    try:
        with explaining():
            for name in accumulate(place.split("."), "{}.{}".format):
                spec = importlib.util.find_spec(name)  # imports the package that contains it
                if spec is not None and str(spec.origin).endswith(".py"):
                    _read(Path(str(spec.origin)))
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
    """Dotted names that a file imports, or that may be modules (``name`` in ``from package import name``)."""
    package = file.relative_to(root).parts[:-1]
    for node in ast.walk(ast.parse(_read(file), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join(filter(None, (*above, node.module)))
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


def _modules(root: Path, name: str, top: str) -> list[Path]:
    """Files of a module of the package ``top`` and of the packages that contain it; none for modules of others."""
    parts = name.split(".")
    if parts[0] != top:
        return []
    packages = [root.joinpath(*parts[:count], "__init__.py") for count in range(1, len(parts) + 1)]
    return [path for path in (*packages, root.joinpath(*parts).with_suffix(".py")) if path.is_file()]
