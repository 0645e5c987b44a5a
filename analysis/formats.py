"""Tables as CSV, Markdown and LaTeX; numbers as people read them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from analysis.statistics import Interval
from harness.foundation.files import write_atomically

MISSING = "–"


class Entry(NamedTuple):
    """A number of a wide table."""

    value: float
    """NaN where there is none."""
    sd: float = math.nan
    interval: Interval | None = None
    digits: int = 3
    signed: bool = False
    percent: bool = False


class WideTable(NamedTuple):
    """A table as people read it."""

    title: str
    head: Sequence[str]
    """Headings of all columns, the first of which has the rows' labels."""
    rows: Sequence[tuple[str, Sequence[Entry | str]]]
    """Label and entries; one that is a text is shown as it is."""


def write_frame(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, statistics with six significant digits: further ones depend on the processor.

    Integers keep all digits. Below 1e-12 there is only what rounding has left of 0.
    """

    # Not float_format, which leaves alone the columns of objects that joining empty tables makes.
    def shown(value: object) -> object:
        return f"{round(value, 12) + 0:.6g}" if isinstance(value, float) and math.isfinite(value) else value

    write_atomically(path, frame.map(shown).to_csv(index=False, lineterminator="\n"))


def number(value: float, digits: int = 3, signed: bool = False) -> str:
    """A number with a true minus sign; a dash for NaN."""
    if not math.isfinite(value):
        return MISSING
    return f"{value:{'+' if signed else ''},.{digits}f}".replace("-", "−")


def entry_text(entry: Entry | str) -> str:
    """As in "0.903 ± 0.022", "+0.016 [+0.005, +0.027]" or "+24 % [+12 %, +36 %]"."""
    if isinstance(entry, str):
        return entry
    if not math.isfinite(entry.value):
        return MISSING
    text = _text(entry.value, entry)
    if entry.interval is not None:
        return f"{text} [{_text(entry.interval.low, entry)}, {_text(entry.interval.high, entry)}]"
    return f"{text} ± {_text(entry.sd, entry._replace(signed=False))}" if math.isfinite(entry.sd) else text


def interval_text(interval: Interval) -> str:
    """A difference with its bounds, as in "+0.016 [+0.005, +0.027]"; a dash where there is none."""
    return entry_text(Entry(interval.estimate, interval=interval, signed=True))


def _text(value: float, entry: Entry) -> str:
    return (
        f"{number(100 * value, entry.digits, entry.signed)} %"
        if entry.percent
        else number(value, entry.digits, entry.signed)
    )


def markdown(table: WideTable) -> str:
    """A table of GitHub's Markdown under its title."""
    title = markdown_text(table.title)
    lines = [f"**{title}**", "", markdown_row(table.head), "|" + "---|" * len(table.head)]
    lines += [markdown_row([label, *map(entry_text, entries)]) for label, entries in table.rows]
    return "\n".join([*lines, ""])


def latex(table: WideTable) -> str:
    """A ``tabular`` of the booktabs package, in a ``table``; rules part the groups that a "difference" row ends."""
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
    """Lines of a table of GitHub's Markdown, each with its end."""
    return "".join(f"{markdown_row(line)}\n" for line in (head, ["---"] * len(head), *rows))


def markdown_row(cells: Sequence[str]) -> str:
    """A row of a table of GitHub's Markdown, whatever its cells say."""
    return "| " + " | ".join(map(markdown_text, cells)) + " |"


def markdown_text(text: str) -> str:
    """Text that neither ends its cell or line nor becomes an element of the page."""
    return " ".join(text.splitlines()).replace("\\", r"\\").replace("|", r"\|").replace("<", "&lt;")


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(_escape, cells)) + r" \\"


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}
_LATEX |= {"±": r"$\pm$", "−": "$-$", "→": r"$\to$", "–": "--", "×": r"$\times$"}


def _escape(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.splitlines()))
