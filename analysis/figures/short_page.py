"""A short page: sentences, tables, figures and pictures, in the report's style and in one file."""

from collections.abc import Sequence
from pathlib import Path

import jinja2

from analysis.figures.drawing import Drawing
from analysis.formats import WideTable, entry_text

_TEMPLATES = Path(__file__).parent.parent / "report" / "templates"


def short_page(
    title: str,
    heading: str,
    scope: str,
    introduction: Sequence[str],
    conclusion: Sequence[str],
    tables: Sequence[WideTable],
    figures: Sequence[Drawing],
    pictures: Sequence[tuple[str, Sequence[tuple[str, str]]]] = (),
    refresh: float | None = None,
) -> str:
    """The page as text.

    Args:
        title: of the window.
        heading: above all.
        scope: what ids of its figures begin with.
        introduction: sentences.
        conclusion: sentences that stand out.
        tables: in order.
        figures: in order.
        pictures: titles, each with captions and addresses of pictures.
        refresh: seconds after which a browser reads the page again.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["entry"] = entry_text
    return environment.get_template("short.html.j2").render(
        title=title,
        heading=heading,
        scope=scope,
        introduction=introduction,
        conclusion=conclusion,
        tables=tables,
        figures=figures,
        pictures=pictures,
        refresh=refresh,
    )
