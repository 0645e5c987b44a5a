"""The notebook in docs/ runs as it stands, and what is kept with it is what a reader sees on a page."""

import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "first-run.ipynb"


def shown(notebook: nbformat.NotebookNode) -> tuple[int, str]:
    """How many pictures its cells show, and all that they print."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = sum("image/jpeg" in output.get("data", {}) for output in outputs)
    return pictures, "".join(output.get("text", "") for output in outputs)


def test_the_notebook_trains_and_shows_what_it_says() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    kept = shown(notebook)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    pictures, printed = shown(notebook)
    assert pictures == kept[0] == 6
    first, middle, last = map(float, re.findall(r"([\d.]+) at iteration", printed))
    assert last > middle > first + 0.03
    assert not re.findall("warning|error", printed + kept[1], re.IGNORECASE)
    assert NOTEBOOK.stat().st_size < 250_000
