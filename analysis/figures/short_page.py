"""Short self-contained HTML page in the report's style: sentences, tables, figures and pictures."""

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
    """Render the page as HTML.

    Args:
        title: title of the window.
        heading: heading at the top.
        scope: prefix of the ids in its figures.
        introduction: sentences.
        conclusion: sentences that are emphasised.
        tables: tables, in order.
        figures: figures, in order.
        pictures: titles, each with captions and addresses of pictures.
        refresh: seconds after which a browser reloads the page; None for never.
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
