"""Names that others chose, in every form a report has: they are text, never a part of it."""

import re
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import fabricated
import pytest
from matplotlib.axes import Axes

from analysis.figures.drawing import Panel, draw_together
from analysis.formats import Entry, WideTable, latex, markdown
from analysis.report.report import write_report

NAMES = ['"><script>alert(1)</script>', 'x" onload="alert(1)', "a|b\\|c", "_&%$#{}$", "`x` $x_{$ <img src=x onerror=y>"]


class Elements(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, list[str]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, [name for name, _ in attrs]))


def check(page: str, scripts: int) -> None:
    found = Elements(page).found
    assert [tag for tag, _ in found].count("script") == scripts
    assert not [name for _, names in found for name in names if name.startswith("on")]
    assert not [tag for tag, names in found if tag == "img" and "onerror" in names]


def test_a_report_of_hostile_runs_has_no_element_of_theirs(tmp_path: Path) -> None:
    for number, name in enumerate([" ".join(NAMES[:2]), " ".join(NAMES[2:])]):
        fabricated.write_run(
            tmp_path / "runs" / f"foreign-{number}",
            experiment=name,
            reward={"ocr": 1.0},
            state="failed" if number == 0 else "finished",
            reason=name,
            method={"kernel": "flow_grpo", "eta": 0.7, "note": name},
        )
    report = write_report(tmp_path / "runs", tmp_path / "report")
    page = report.read_text(encoding="utf-8")
    check(page, scripts=1)
    # Two experiments have the same figures, and yet no id twice.
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) > 100
    assert len([*report.parent.glob("figures/*curves-reward-flow_grpo-cells*.svg")]) == 2
    for table in (tmp_path / "report" / "tables").rglob("*.md"):
        assert "<script" not in table.read_text(encoding="utf-8")
        assert "<img" not in table.read_text(encoding="utf-8")


def test_figures_show_a_name_as_it_is() -> None:
    def draw(axes: Axes, name: str) -> None:
        axes.plot([0, 1], [0, 1], label=f"a {name}")
        axes.set_yticks([0, 1], [name, "b"])
        axes.set_xlabel(name)
        axes.text(0, 0, name)

    panels = [Panel("panel", name, partial(draw, name=name), note=name) for name in NAMES]
    drawing = draw_together(f"figure-{NAMES[0]}", NAMES[0], panels, 1)
    check(drawing.inline(NAMES[1]), scripts=0)
    shown: list[str] = []
    parser = HTMLParser()
    parser.handle_data = shown.append  # type: ignore[method-assign]
    parser.feed(drawing.svg)
    text = "".join(shown)
    assert [text.count(name) for name in NAMES] == [7, 6, 6, 6, 6]


@pytest.mark.parametrize("name", [*NAMES, "two\nlines"])
def test_tables_keep_their_columns(name: str) -> None:
    table = WideTable(name, ["", name, "b"], [(name, [Entry(1.0), name])])
    for row in markdown(table).splitlines()[-3:]:
        # GitHub parts cells at each bar that no backslash precedes, itself unescaped.
        assert len(re.sub(r"\\.", "", row).split("|")) == 5
    tex = latex(table).splitlines()
    assert len(tex) == 11
    rows = [line.replace(r"\&", "") for line in tex if line.endswith(r"\\")]
    assert [row.count("&") for row in rows] == [2, 2]
    for line in tex[2:]:
        assert not set("$#%") & set(re.sub(r"\$-\$|\\.", "", line))
