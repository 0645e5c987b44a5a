"""Reports: tables, figures and page, and finished runs as small files to commit."""

from pathlib import Path
from typing import Annotated

from harness.commands import command
from harness.foundation.errors import ConfigError


@command
def report(
    *,
    runs: Annotated[Path, "folder with run directories"],
    output: Annotated[Path, "folder to write to"],
    readme: Annotated[Path | None, "file to write the claims into, between its markers"] = None,
    planned_seeds: Annotated[
        int | None, "judge a grid planned with N seeds per cell (at least 4) and an early look at half of them", 4
    ] = None,
) -> int:
    """Write tables, figures and the page from logs, without training.

    Example: ``adagrpo report --runs results/runs/miniature --output results/reports/miniature``
    """
    from analysis.report.report import write_report

    if not runs.is_dir():
        raise ConfigError(f"--runs {runs}: no such folder")
    print(f"report: {write_report(runs, output, readme, planned_seeds)}")
    return 0


@command
def shards(
    runs: Annotated[Path, "folder with run directories, at any depth"],
    *,
    output: Annotated[Path, "folder to write to, such as results/miniature/runs"],
    pictures: Annotated[int | None, "prompts to keep pictures of (default: those that a page shows)", 0] = None,
) -> int:
    """Write each finished run as one small file, which is enough to make the report.

    Example: ``adagrpo shards results/runs/miniature --output kept``
    """
    from analysis.runs.gallery import NUM_PROMPTS
    from analysis.runs.shards import write_shards

    written = write_shards(runs, output, NUM_PROMPTS if pictures is None else pictures)
    size = sum(path.stat().st_size for path in written)
    print(f"{len(written)} finished runs, {size / 1e6:.1f} MB in {output}")
    return 0
