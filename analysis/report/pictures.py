"""Pictures before and after training for a page: by difficulty, and for every cell."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from analysis.cells.labels import METHOD_NAMES, Cell, selection_order
from analysis.cells.logs import TRAINING_REWARD, load_gallery
from analysis.cells.study import Study, adagrpo_pairs
from analysis.runs.gallery import Gallery

_OF_EACH_CELL = 4
"""Prompts per cell in a page's gallery."""
_OfPrompt = tuple[str, list[tuple[str, str]]]
"""A prompt with its pictures, as pairs of caption and address: the untrained model's, then each trained cell's."""
_Found = tuple[Cell, Mapping[Any, Any], Gallery]
"""A cell, its first run that has pictures, and these pictures."""


class ByDifficulty(NamedTuple):
    """Table of pictures with a column per prompt, hardest first, and a row per policy."""

    prompts: Sequence[tuple[str, float]]
    """Prompts with the untrained model's reward."""
    rows: Sequence[tuple[str, Sequence[str]]]
    """Name of the policy, and the addresses of its pictures."""


def pictures_by_difficulty(study: Study) -> ByDifficulty | None:
    """Pictures of the same prompts and noise before and after training, from the first seed of bases and + AdaGRPO.

    None if no run has pictures, or if no run has its prompts' untrained rewards.
    """
    found: list[_Found] = []
    members_of = dict(study.grid_cells)
    for base, ours in adagrpo_pairs(study):
        found += [entry for cell in (base, *ours) if (entry := _first_pictures(cell, members_of[cell]))]
    for _, run, start in found:
        rewards = run["by_prompt"]["untrained"].get(TRAINING_REWARD)
        if rewards is None:
            continue
        order = sorted(range(min(len(start.pictures), len(rewards))), key=lambda i: rewards[i])
        prompts = [(start.pictures[i].prompt, float(rewards[i])) for i in order]
        rows = [("before training", [_uri(start.pictures[i].before) for i in order])]
        for cell, _, trained in found:
            after = {picture.prompt: picture.after for picture in trained.pictures}
            if all(prompt in after for prompt, _ in prompts):
                rows.append((cell.label, [_uri(after[prompt]) for prompt, _ in prompts]))
        return ByDifficulty(prompts, rows)
    return None


def gallery(study: Study) -> list[tuple[str, str, list[_OfPrompt]]]:
    """Gallery of each method: its name, a caption, and the pictures of each cell's first seed, by prompt.

    Variants of cells are left out, since there may be many.
    """
    in_order = sorted(study.grid_cells, key=lambda item: (item[0].fusion, selection_order(item[0])))
    of_method: dict[str, list[_Found]] = {}
    for cell, members in in_order:
        if entry := _first_pictures(cell, members):
            of_method.setdefault(cell.method, []).append(entry)
    return [
        (METHOD_NAMES.get(method, method), _caption(entries), _by_prompt(entries))
        for method, entries in of_method.items()
    ]


def _first_pictures(cell: Cell, members: pd.DataFrame) -> _Found | None:
    """Pictures of a cell's first seed that has any, with its run."""
    for run in members.sort_values(["seed", "run_id"]).to_dict("records"):
        pictures = load_gallery(Path(run["folder"]))
        if pictures is not None:
            return cell, run, pictures
    return None


def _caption(entries: Sequence[_Found]) -> str:
    seeds = sorted({run["seed"] for _, run, _ in entries})
    unfinished = [cell.short for cell, run, _ in entries if run["state"] != "finished"]
    text = f"Seed {', '.join(map(str, seeds))}"
    return f"{text}; not finished: {', '.join(unfinished)}" if unfinished else text


def _by_prompt(entries: Sequence[_Found]) -> list[_OfPrompt]:
    prompts = dict.fromkeys(picture.prompt for _, _, of_run in entries for picture in of_run.pictures[:_OF_EACH_CELL])
    found = []
    for prompt in prompts:
        pictures = [(cell, run, p) for cell, run, of_run in entries for p in of_run.pictures if p.prompt == prompt]
        # All runs of a model start from the same picture, which is shown once.
        starts = {picture.before: cell.short for cell, _, picture in reversed(pictures)}
        several = len(starts) > 1
        tiles = [
            (f"before training ({cell})" if several else "before training", _uri(before))
            for before, cell in reversed(starts.items())
        ]
        tiles += [(cell.short, _uri(picture.after)) for cell, _, picture in pictures]
        found.append((prompt, tiles))
    return found


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
