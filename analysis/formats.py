"""Formatting of tables as CSV, Markdown and LaTeX, and of numbers for readers."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from analysis.statistics import Interval
from harness.foundation.files import write_atomically

MISSING = "–"


class Entry(NamedTuple):
    """A number in a wide table."""

    value: float
    """NaN is shown as a dash."""
    sd: float = math.nan
    interval: Interval | None = None
    digits: int = 3
    signed: bool = False
    percent: bool = False


class WideTable(NamedTuple):
    """A table for readers."""

    title: str
    head: Sequence[str]
    """Headings of all columns; the first column holds the rows' labels."""
    rows: Sequence[tuple[str, Sequence[Entry | str]]]
    """Label and entries of each row; text is shown as it is."""


def write_frame(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, floats with six significant digits, since further ones depend on the processor.

    Integers keep all digits. Values below 5e-13 become 0, since they are rounding errors.
    """

    # float_format would skip the columns of objects that result from joining empty tables.
    def shown(value: object) -> object:
        return f"{round(value, 12) + 0:.6g}" if isinstance(value, float) and math.isfinite(value) else value

    write_atomically(path, frame.map(shown).to_csv(index=False, lineterminator="\n"))


def number(value: float, digits: int = 3, signed: bool = False) -> str:
    """Format a number with a true minus sign; a dash if it is not finite."""
    if not math.isfinite(value):
        return MISSING
    return f"{value:{'+' if signed else ''},.{digits}f}".replace("-", "−")


def entry_text(entry: Entry | str) -> str:
    """Format an entry, as in "0.903 ± 0.022", "+0.016 [+0.005, +0.027]" or "+24 % [+12 %, +36 %]"."""
    if isinstance(entry, str):
        return entry
    if not math.isfinite(entry.value):
        return MISSING
    text = _text(entry.value, entry)
    if entry.interval is not None:
        return f"{text} [{_text(entry.interval.low, entry)}, {_text(entry.interval.high, entry)}]"
    return f"{text} ± {_text(entry.sd, entry._replace(signed=False))}" if math.isfinite(entry.sd) else text


def interval_text(interval: Interval) -> str:
    """Format a difference with its bounds, as in "+0.016 [+0.005, +0.027]"; a dash for NaN."""
    return entry_text(Entry(interval.estimate, interval=interval, signed=True))


def _text(value: float, entry: Entry) -> str:
    return (
        f"{number(100 * value, entry.digits, entry.signed)} %"
        if entry.percent
        else number(value, entry.digits, entry.signed)
    )


def markdown(table: WideTable) -> str:
    """Render a table in GitHub's Markdown, under its title."""
    title = markdown_text(table.title)
    lines = [f"**{title}**", "", markdown_row(table.head), "|" + "---|" * len(table.head)]
    lines += [markdown_row([label, *map(entry_text, entries)]) for label, entries in table.rows]
    return "\n".join([*lines, ""])


def latex(table: WideTable) -> str:
    """Render a table as a booktabs ``tabular``; a rule follows each "difference" row and the untrained model's."""
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escape(table.title)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
        r"\toprule",
        _latex_row(table.head),
        r"\midrule",
    ]
    for position, (label, entries) in enumerate(table.rows):
        lines.append(_latex_row([label, *map(entry_text, entries)]))
        is_last = position == len(table.rows) - 1
        if not is_last and label.startswith(("difference", "Untrained")):
            lines.append(r"\midrule")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Render headings and rows as a table in GitHub's Markdown; every line ends with a newline."""
    return "".join(f"{markdown_row(line)}\n" for line in (head, ["---"] * len(head), *rows))


def markdown_row(cells: Sequence[str]) -> str:
    """Render a row of a table in GitHub's Markdown, with its cells escaped."""
    return "| " + " | ".join(map(markdown_text, cells)) + " |"


def markdown_text(text: str) -> str:
    """Escape text so that it neither ends its cell or line nor becomes an HTML element."""
    return " ".join(text.splitlines()).replace("\\", r"\\").replace("|", r"\|").replace("<", "&lt;")


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(_escape, cells)) + r" \\"


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}
_LATEX |= {"±": r"$\pm$", "−": "$-$", "→": r"$\to$", "–": "--", "×": r"$\times$"}


def _escape(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.splitlines()))
