"""Code, as hashes, and packages behind a number or a verdict. Only the standard library is needed."""

import ast
import hashlib
import importlib.metadata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "onnxruntime", "openvino", "numpy")
"""Packages that numbers depend on; OpenVINO only if it is installed."""
OF_IDENTITY = ("fingerprints", "command", "settings")
"""Keys of identity.json that are read as the environment's; they say what a run is, also before it begins."""
_RULES = ("judge_grid", "decide")
"""Names that only the rules' files define: ``analysis.verdicts.protocol`` and ``analysis.decisions``."""
_WIDER_SEALS: dict[str | None, str] = {
    "376d4b3131cc34cc26b711d6f88154cb41a5769cd1467608929ce259bcad26cb": (
        "acf719462e24aeb334e1518839ff66f38a67ed3f605559a03421baf316daec25"
    )
}
"""Older seals, which also covered imports of the rules, and the seals of the rules alone; commit 0f4f2ec has both."""
_BESIDE_NUMBERS = ("Mirror", "write_atomically", "SELECTIONS", "numbers_sha256")
"""Names defined in files that runs import but no number depends on: the copy of logs to wandb; reading and writing of
files; names, labels, colours and sizes; and this file."""


@cache
def package_versions() -> dict[str, str]:
    """Versions of the installed ``PACKAGES``."""
    found = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


_KINDS = {"packages": dict, "settings": dict, "resumed": list, "warnings": list, "gpus": list}
_KINDS |= {"code_sha256": str, "seal_sha256": str}


def require_environment(content: Mapping[str, Any]) -> None:
    """Check that a run's environment.json has values of the expected types; raise ValueError naming the key if not."""
    resumed = content.get("resumed")
    for one in (content, *(resumed if isinstance(resumed, list) else [])):
        if not isinstance(one, Mapping):
            raise ValueError("'resumed' must hold objects")
        for key, kind in _KINDS.items():
            if one.get(key) is not None and not isinstance(one[key], kind):
                raise ValueError(f"{key!r} is no {kind.__name__}")


def has_begun(environment: Mapping[str, Any]) -> bool:
    """Whether a run recorded an execution, and not only what it is."""
    return not environment.keys() <= set(OF_IDENTITY)


def changes_since(environment: Mapping[str, Any]) -> list[str]:
    """List the changes of code and packages since any of a run's executions, as text; empty if there are none.

    Args:
        environment: content of the run's environment.json, if it has one yet, and ``OF_IDENTITY``.
    """
    if not has_begun(environment):
        return []
    changes, now = [], package_versions()
    for one in (environment, *environment.get("resumed", ())):
        if one.get("code_sha256") is None:
            changes.append("code not recorded")
        elif one["code_sha256"] != numbers_sha256():
            changes.append("other code")
        recorded = one.get("packages") or {}
        changes += [
            f"{name} {version} where {now.get(name, 'none')} is now"
            for name, version in recorded.items()
            if version != now.get(name)
        ]
    return list(dict.fromkeys(changes))


def note_on_changes(runs: Iterable[Collection[str]]) -> list[str]:
    """Line with the number of runs not made by the present code and packages, see ``changes_since``; [] without any."""
    changed = [changes for changes in runs if changes]
    if not changed:
        return []
    counts = Counter(change for changes in changed for change in changes)
    what = ", ".join(f"{change} ({count})" for change, count in sorted(counts.items()))
    were = "1 run was" if len(changed) == 1 else f"{len(changed)} runs were"
    return [f"{were} begun or finished by other code than the present one: {what}"]


def was_under_other_rules(environment: Mapping[str, Any]) -> bool:
    """Whether other or unknown rules, not the present ones, were in force at any execution of a run."""
    seals = [one.get("seal_sha256") for one in (environment, *environment.get("resumed", ()))]
    return any(_WIDER_SEALS.get(seal, seal) != seal_sha256() for seal in seals)


@cache
def numbers_sha256(root: Path = ROOT) -> str:
    """Hash of all code that the numbers of a run depend on: everything that its execution imports, and all rewards."""
    files = _python_files(root / "harness")
    start = [file for file in files if _defines(file, "Session")]
    rewards = {file.parent for file in files if _defines(file, "Reward")}
    start += [file for file in files if rewards & set(file.parents)]
    beside = {file for file in files if any(_defines(file, name) for name in _BESIDE_NUMBERS)}
    return code_sha256(_imported(start, root, beside))


@cache
def seal_sha256(root: Path = ROOT) -> str:
    """Hash of the rules: the claims about a grid, and how a claim is decided.

    Code that reads and draws runs is not covered and may be fixed; a claim, a margin or a test must not change.
    """
    return code_sha256(
        file for file in _python_files(root / "analysis") if any(_defines(file, name) for name in _RULES)
    )


@cache
def protocol_sha256(root: Path = ROOT) -> str:
    """Hash of the bytes of the study's protocol."""
    return hashlib.sha256((root / "analysis" / "verdicts" / "planned.py").read_bytes()).hexdigest()


def code_sha256(files: Iterable[Path]) -> str:
    """Hash of the statements in Python files, regardless of their place, without comments, docstrings and imports.

    Moving a top-level statement or a file, or renaming a file, does not change the hash; changing a statement does.
    """
    statements = sorted(text for file in files for text in _statements(file))
    return hashlib.sha256("\n".join(statements).encode()).hexdigest()


class _Bare(ast.NodeTransformer):
    """Removes imports, ``__all__`` and strings that stand alone, which only people and tools read."""

    def visit_Import(self, node: ast.Import) -> None: ...

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None: ...

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node

    def visit_Assign(self, node: ast.Assign) -> ast.Assign | None:
        return None if any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets) else node


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _statements(file: Path) -> Iterator[str]:
    tree = _Bare().visit(ast.parse(file.read_text(encoding="utf-8")))
    for node in ast.walk(tree):
        # A body that held only imports or a docstring is empty now.
        if isinstance(node, ast.stmt) and getattr(node, "body", None) == []:
            setattr(node, "body", [ast.Pass()])  # noqa: B010 - statements have no body in common
    for statement in tree.body:
        text = ast.unparse(statement)
        if text not in ("if TYPE_CHECKING:\n    pass", "pass"):
            yield text


def _python_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def _defines(file: Path, name: str) -> bool:
    return any(
        getattr(node, "name", None) == name or (isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name)
        for node in _tree(file).body
    )


def _imported(start: Iterable[Path], root: Path, but: Collection[Path] = ()) -> set[Path]:
    """The given files and all project files that they import, directly or indirectly, at the top or later."""
    found: set[Path] = set()
    left = list(start)
    while left:
        file = left.pop()
        if file not in found and file not in but:
            found.add(file)
            left += [path for path in _imports(file, root) if path.is_file()]
    return found


def _imports(file: Path, root: Path) -> Iterator[Path]:
    for node in ast.walk(_tree(file)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] in ("harness", "analysis"):
                path = root.joinpath(*name.split("."))
                yield path.with_name(f"{path.name}.py")
                yield path / "__init__.py"
