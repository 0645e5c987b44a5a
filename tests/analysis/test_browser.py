"""The report in a real browser: it loads without an error, sorts, follows the colour scheme, and fits a phone."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")

PROBE = """
<script>
  const result = {};
  const table = document.querySelector("table.runs");
  const column = [...table.tHead.rows[0].cells].findIndex((head) => head.textContent === "Test reward");
  const shown = () => [...table.tBodies[0].rows].map((row) => row.cells[column].textContent);
  const button = table.tHead.rows[0].cells[column].querySelector("button");
  button.click(); result.ascending = shown();
  button.click(); result.descending = shown();
  result.direction = table.tHead.rows[0].cells[column].getAttribute("aria-sort");
  const cells = document.querySelector("#cells table");
  for (const _ of [1, 2]) cells.tHead.rows[0].cells[2].querySelector("button").click();
  result.after = [...cells.tBodies[0].rows].map((row) => row.cells[2].querySelector("b").textContent);
  result.paper = getComputedStyle(document.body).backgroundColor;
  result.width = document.documentElement.clientWidth;
  result.needed = document.documentElement.scrollWidth;
  result.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
  document.body.innerHTML = "<pre id='result'></pre>";
  document.getElementById("result").textContent = JSON.stringify(result);
</script>
"""


def opened(page: Path, folder: Path, dark: bool, width: int) -> dict[str, Any]:
    """What the probe found, after the page's own scripts have run; fails if the console has an error."""
    probed = folder / "probed.html"
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{PROBE}</body>"))
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += [f"--window-size={width},900", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    command += ["--enable-logging=stderr", "--dump-dom", probed.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "Uncaught" not in done.stderr, done.stderr
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


@pytest.mark.parametrize(("dark", "width", "paper"), [(False, 1280, 255), (True, 500, 20)])
def test_the_page_sorts_and_fits_in_light_and_dark(
    report: Path, tmp_path: Path, dark: bool, width: int, paper: int
) -> None:
    result = opened(report / "report.html", tmp_path, dark, width)
    assert result["ascending"] == ["0.700", "0.740", "0.800", "0.900"]
    assert result["descending"] == result["ascending"][::-1]
    assert result["direction"] == "descending"
    # The untrained model's value, which comes first, is the same.
    assert result["after"] == ["0.850", "0.720"]
    assert int(re.search(r"\d+", result["paper"])[0]) == paper
    # Wide tables scroll within their frames; the page itself does not.
    assert result["needed"] <= result["width"] <= width
    assert [url for url in result["requests"] if not url.startswith("data:")] == []
