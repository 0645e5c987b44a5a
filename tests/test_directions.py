"""An import goes only to a package further down, and never in a circle: the layout that docs and readers rely on."""

import ast
from collections.abc import Collection, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (
    "harness.cli",
    "harness.commands",
    "harness.experiments",
    "harness.trained",
    "harness.training",
    "harness.runs",
    "harness.rewards harness.rollout",
    "harness.models harness.prompts",
    "harness.config",
    "analysis.report",
    "analysis.sweep",
    "analysis.figures",
    "analysis.verdicts",
    "analysis.cells",
    "analysis.runs",
    "analysis.decisions analysis.probing",
    "analysis.formats analysis.paper",
    "analysis.estimates",
    "analysis.statistics",
    "harness.rules",
    "harness.foundation harness.adagrpo harness.objective harness.transitions",
)
"""From the top down: packages, and modules that stand alone. One of a floor may import those of lower floors."""


@cache
def imports() -> dict[str, set[str]]:
    """The modules of the project that each module imports, at the top or later."""
    files = [path for top in ("harness", "analysis") for path in (ROOT / top).rglob("*.py")]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}
    return {
        module: {found for found in named_in(path, modules) if found in modules} for module, path in modules.items()
    }


def named_in(path: Path, modules: Collection[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else node.module for name in names)


def package_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def test_every_package_has_a_floor() -> None:
    packages = {package_of(module) for module in imports()} - {"harness", "analysis"}
    assert packages == set(" ".join(FLOORS).split())


def test_an_import_goes_only_to_a_package_further_down() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names.split()}
    wrong = {
        (package_of(module), package_of(found)): f"{module} imports {found}"
        for module, those in imports().items()
        for found in those
        if package_of(module) != package_of(found)
        and package_of(found) in floor
        and floor[package_of(module)] >= floor[package_of(found)]
    }
    assert not wrong, "\n".join(wrong.values())


def test_no_files_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        raise AssertionError(" imports ".join(reversed(error.args[1]))) from None


def test_a_reader_can_hold_the_layout_in_mind() -> None:
    """At most 20 packages and 65 arrows between them, ``analysis`` counted as one."""

    def place(module: str) -> str:
        return "analysis" if module.startswith("analysis") else package_of(module)

    arrows = {(place(module), place(found)) for module, those in imports().items() for found in those}
    between = {(one, other) for one, other in arrows if one != other and "harness" not in (one, other)}
    assert len({name for arrow in between for name in arrow}) <= 20
    assert len(between) <= 65
