"""Pages that name code name what is there."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
_NAMED = re.compile(r"\[`([A-Za-z_.]+)`\]\(([^)#]+\.py)\)")


@pytest.mark.parametrize("page", ["paper.md", "tour.md"])
def test_named_code_is_where_the_page_says(page: str) -> None:
    named = _NAMED.findall((DOCS / page).read_text(encoding="utf-8"))
    assert len(named) > 10
    missing = []
    for name, link in named:
        code = (DOCS / link).resolve().read_text(encoding="utf-8")
        parts = name.split(".")
        if not all(re.search(rf"^\s*(?:(?:def|class) )?{part}\b", code, re.MULTILINE) for part in parts):
            missing.append((name, link))
    assert not missing


def test_links_lead_to_files_of_the_project() -> None:
    broken = []
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]:
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not link.startswith("http") and not (page.parent / link).exists():
                broken.append((page.name, link))
    assert not broken
