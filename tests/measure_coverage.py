"""``make coverage``: which lines of harness/ the tests and the dry run execute, written to docs/coverage.md.

Worker processes count too: coverage starts in each of them. A line that needs what is not here, such as a GPU, is
marked so in the page, by the conditions that it depends on.
"""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "coverage.md"
GOAL = 90.0
"""Percent of the lines of harness/."""

_EXPERIMENT = "paper-dry-coverage"
_RUNS = ROOT / "results" / "runs" / _EXPERIMENT
_DATA = ROOT / ".cache" / "coverage"
_CONDITIONS = {"cuda": "CUDA"}
"""Words in an if's condition, and what its body needs."""
_CALLS = {"torch.cuda.": "CUDA"}
"""Words in a line, and what it needs itself."""
_FILES = {
    "harness/rewards/remote/workers/": "a reward package's environment",  # by make check-reward-parity
}
"""Starts of paths, and what those files need."""


@dataclass(frozen=True)
class FileCoverage:
    """A file's lines: how many can be executed, and which were not."""

    statements: int
    missing: tuple[int, ...]

    @property
    def percent(self) -> float:
        """Share of the lines that were executed."""
        return 100 * (1 - len(self.missing) / self.statements) if self.statements else 100.0


def main() -> int:
    """Run tests and dry run, write the page; 1 if either fails or less than ``GOAL`` is covered."""
    shutil.rmtree(_DATA, ignore_errors=True)
    shutil.rmtree(_RUNS, ignore_errors=True)
    _DATA.mkdir(parents=True)
    report = [f"--runs={_RUNS}", f"--output={_DATA / 'report'}"]
    commands = [
        ["-m", "pytest", "-q", "-n", "2"],
        ["-m", "harness.cli", "grid", "paper-dry", f"experiment={_EXPERIMENT}"],
        ["-m", "harness.cli", "report", *report],
    ]
    codes = [_measured(command) for command in commands]
    shutil.rmtree(_RUNS, ignore_errors=True)
    files = _results()
    PAGE.write_text(page(files, {name: (ROOT / name).read_text() for name in files}))
    total = overall(files).percent
    print(f"{total:.1f} % of harness/, by file in {PAGE}")
    return 1 if any(codes) or total < GOAL else 0


def _measured(command: list[str]) -> int:
    environment = os.environ | {"COVERAGE_FILE": str(_DATA / "data"), "OMP_NUM_THREADS": "1"}
    options = [f"--rcfile={ROOT / 'pyproject.toml'}"]
    return subprocess.run(
        [sys.executable, "-m", "coverage", "run", *options, *command], cwd=ROOT, env=environment, check=False
    ).returncode


def _results() -> dict[str, FileCoverage]:
    from coverage import Coverage

    measured = Coverage(data_file=str(_DATA / "data"), config_file=str(ROOT / "pyproject.toml"))
    measured.combine([str(_DATA)])
    found = {}
    for file in sorted((ROOT / "harness").rglob("*.py")):
        _, statements, _, missing, _ = measured.analysis2(str(file))
        found[file.relative_to(ROOT).as_posix()] = FileCoverage(len(statements), tuple(missing))
    return found


# --- the page ---------------------------------------------------------------------------------------------------------


def overall(files: Mapping[str, FileCoverage]) -> FileCoverage:
    """All files as one; its missing lines are only counted."""
    missing = sum(len(file.missing) for file in files.values())
    return FileCoverage(sum(file.statements for file in files.values()), tuple(range(missing)))


def page(files: Mapping[str, FileCoverage], sources: Mapping[str, str]) -> str:
    """The page: a row per file.

    Args:
        files: by path, relative to the repository.
        sources: their text.
    """
    total = overall(files)
    lines = [
        "# Coverage",
        "",
        "Written by `make coverage`: lines of `harness/` that the tests and the dry run (`PROFILE=paper-dry`) execute",
        "on a machine without a GPU, in all processes that they start.",
        "",
        f"**{total.percent:.1f} %** of {total.statements:,} lines. Lines that were not executed are listed by file; in",
        "brackets is what they need, where it is not here.",
        "",
        "| file | lines | executed | not executed |",
        "| --- | --- | --- | --- |",
    ]
    for name, file in files.items():
        needs = {line: why for line, why in unmeetable(name, sources[name]).items() if line in file.missing}
        shown = ", ".join(_ranges(file.missing, needs))
        lines.append(f"| {name} | {file.statements} | {file.percent:.0f} % | {shown} |")
    return "\n".join([*lines, ""])


def unmeetable(name: str, source: str) -> dict[int, str]:
    """Lines of a file that need a GPU, or what else a plain machine lacks, and what."""
    for start, need in _FILES.items():
        if name.startswith(start):
            return dict.fromkeys(range(1, source.count("\n") + 2), need)
    return dict(_needs_of(ast.parse(source).body, None))


def _needs_of(body: list[ast.stmt], need: str | None) -> Iterator[tuple[int, str]]:
    """Lines of a block and what they need; ``need`` is the whole block's."""
    for statement in body:
        blocks = list(_blocks_of(statement))
        own = need or (None if blocks else _named(_CALLS, statement))
        if own:
            yield from ((line, own) for line in range(statement.lineno, (statement.end_lineno or 0) + 1))
            continue
        condition = statement.test if isinstance(statement, ast.If) else None
        found = None if condition is None else _named(_CONDITIONS, condition)
        is_negated = isinstance(condition, ast.UnaryOp) and isinstance(condition.op, ast.Not)
        for number, block in enumerate(blocks):
            yield from _needs_of(block, found if number == is_negated else None)
        if found and is_negated and isinstance(statement.body[-1], ast.Return | ast.Raise | ast.Continue):  # type: ignore[attr-defined]
            need = found  # what follows an early return


def _blocks_of(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    """The blocks of a compound statement, an if's own first and its else's second."""
    for field in ("body", "orelse", "finalbody"):
        if block := getattr(statement, field, []):
            yield block
    for inner in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
        yield inner.body


def _named(words: Mapping[str, str], node: ast.AST) -> str | None:
    text = ast.unparse(node).lower()
    return next((need for word, need in words.items() if word in text), None)


def _ranges(missing: tuple[int, ...], needs: Mapping[int, str]) -> Iterator[str]:
    """``12-15 (CUDA)``: neighbours of one kind together."""
    start = previous = None
    for line in (*missing, None):
        if previous is not None and (line is None or line != previous + 1 or needs.get(line) != needs.get(previous)):
            why = f" ({needs[previous]})" if previous in needs else ""
            yield (f"{start}" if start == previous else f"{start}-{previous}") + why
            start = line
        elif previous is None:
            start = line
        previous = line


if __name__ == "__main__":
    sys.exit(main())
