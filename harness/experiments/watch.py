"""Page about runs at work, written again and again: progress, health, chosen prompts, curves, pictures."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from analysis.cells.chosen import quoted_word
from analysis.cells.logs import Logs, find_runs, load_logs
from analysis.cells.study import split_studies
from analysis.figures.curves import ITERATION, Quantity, cell_panels, pair_panels, quantities
from analysis.figures.drawing import draw_panel
from analysis.figures.short_page import short_page
from analysis.formats import Entry, WideTable
from analysis.report.pictures import gallery
from harness.experiments.jobs.runner import launches_at_work
from harness.experiments.status import counts_of, state_of
from harness.foundation.errors import ConfigError
from harness.foundation.files import write_atomically
from harness.foundation.records import read_lines
from harness.runs.directory import RunDirectory
from harness.training.signs import signs

_OF_GROUPS = Quantity("trained", "reward_mean", ITERATION, "Reward of groups trained on", "train")
_HEALTH = {
    "zero_std_share": "Share of groups without advantages",
    "grad_norm": "Gradient norm",
    "ratio_max_deviation": "Largest |ratio − 1|",
}
"""Metrics of an iteration: without advantages nothing is learnt; a jump of the norm or a ratio far from 1 precedes a
collapse."""
_CURVES = [_OF_GROUPS, *(Quantity(name, name, ITERATION, label, "train") for name, label in _HEALTH.items())]
_MOST_RUNS = 6
_MOST_SENTENCES = 3
_MOST_PROMPTS = 4


def watch(folder: Path, page: Path, seconds: float, once: bool, say: Callable[[str], object]) -> None:
    """Write the page, and again every ``seconds`` as long as a run is at work or waits for one that is.

    Args:
        folder: a run's directory, or one that contains some at any depth.
        page: file to write.
        seconds: time between two writings.
        once: write the page only once.
        say: called with a line when the page exists for the first time.

    Raises:
        ConfigError: there is no run, or none can be read.
    """
    told = ""
    while True:
        states = {path: state_of(RunDirectory(path)) for path in find_runs(folder) if path.is_dir()}
        if not states:
            raise ConfigError(f"{folder}: holds no run (no config.yaml at any depth)")
        at_work = [f"{progress}." for _, progress in launches_at_work(folder)]
        is_over = once or not (at_work or "running" in states.values())
        write_atomically(page, draw(folder, states, at_work, None if is_over else seconds))
        if not told:
            told = f"{page}: open it in a browser"
            say(told if is_over else f"{told}; drawn again every {seconds:g} s, Ctrl-C ends it")
        if is_over:
            return
        time.sleep(seconds)


def draw(folder: Path, states: Mapping[Path, str], at_work: list[str], seconds: float | None) -> str:
    """HTML text of the page.

    Args:
        folder: as in ``watch``.
        states: states of its runs, by their directories.
        at_work: progress of each launch at work.
        seconds: time after which a browser loads the page again; None for never.
    """
    begun = [path for path in states if (path / "metrics.jsonl").is_file()]
    drawn = f"Drawn at {datetime.now():%H:%M:%S}" + ("." if seconds is None else f", again every {seconds:g} seconds.")
    now = [*at_work, drawn]
    heading = f"{folder.resolve().name}: {len(states)} run{'s' * (len(states) > 1)}, {counts_of(states.values())}"
    if not begun:
        return short_page(heading, heading, "watch", now, ["No run has made an iteration yet."], [], [], (), seconds)
    logs = load_logs(begun, skip_damaged=True)
    rows = logs.summary.assign(at_work=[states[path] == "running" for path in logs.summary["folder"]])
    shown = rows.sort_values(["at_work", "updated"], ascending=False)["folder"][:_MOST_RUNS]
    found = {path: _signs(path) for path in shown}
    said = [f"{path.name}: {words}" for path in shown for _, words in found[path]][:_MOST_SENTENCES]
    studies = split_studies(logs)
    drawn_of = [(study, one) for study in studies for one in (*quantities(study), *_CURVES)]
    panels = [panel for pair in drawn_of for panel in (*pair_panels(*pair), *cell_panels(*pair))]
    pictures = [
        (f"{method}: {prompt}", tiles)
        for study in studies
        for method, _, prompts in gallery(study)
        for prompt, tiles in prompts[:_MOST_PROMPTS]
    ]
    return short_page(
        f"adagrpo watch {folder.name}",
        heading,
        "watch",
        now,
        said or ["No sign that a reward is hacked or that pictures of a group become alike."],
        [_table(logs, found, states)],
        [draw_panel(panel) for panel in panels],
        pictures,
        seconds,
    )


def _signs(path: Path) -> list[tuple[str, str]]:
    """Name and sentence of each sign of reward hacking that a run shows."""
    try:
        config = RunDirectory(path).config
    except ConfigError as error:
        return [("cannot be read", str(error))]
    return [*signs(config, *(read_lines(path / name) for name in ("eval.jsonl", "metrics.jsonl")))]


def _table(logs: Logs, found: Mapping[Path, Sequence[tuple[str, str]]], states: Mapping[Path, str]) -> WideTable:
    """Table with a row per run: state, reward, health and prompts of its last iteration, and names of its signs."""
    head = ["Run", "State", "Iteration", "Reward of its groups", *_HEALTH.values()]
    head += ["Signs", "Chosen (1 is the hardest)"]
    rows: list[tuple[str, list[Entry | str]]] = []
    iterations = dict(zip(logs.summary["folder"], logs.summary["iterations"], strict=True))
    for path, of_run in found.items():
        records = read_lines(path / "metrics.jsonl")
        if not records:  # it was resumed before its first checkpoint, or its first line is not whole yet
            continue
        last = records[-1]
        # If each step has updates of its own, the plain ratio refers to their start, the other one to the rollout.
        last["ratio_max_deviation"] = last.get("rollout_ratio_max_deviation", last["ratio_max_deviation"])
        numbers = [Entry(last["reward_mean"]), *(Entry(last[name], digits=4) for name in _HEALTH)]
        ranks = last["ranks"] or [None] * len(last["prompts"])
        chosen = ", ".join(
            (quoted_word(prompt) or prompt[:40]) + ("" if rank is None else f" ({rank + 1})")
            for prompt, rank in zip(last["prompts"], ranks, strict=True)
        )
        done, named = f"{last['iteration']} of {iterations[path]}", ", ".join(name for name, _ in of_run) or "none"
        rows.append((path.name, [states[path], done, *numbers, named, chosen]))
    left = len(iterations) - len(rows)
    return WideTable("The last iteration of each run" + (f"; {left} more are not shown" if left else ""), head, rows)
