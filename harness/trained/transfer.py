"""What a model learns from words of half of the defects, on words of each half: docs/testbed.md has the commands.

``python -m harness.trained.transfer`` writes the two training lists. With the directories
of two runs, trained on one of them each, it prints what each has gained and writes ``results/testbed/transfer.csv``.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.config import ROOT
from harness.foundation.files import read_text, write_atomically
from harness.models.miniature.defects import DEFECTS, Kind
from harness.models.miniature.prompts import LETTERS, list_path, parse_prompt
from harness.prompts.lists import read_prompts

HALVES: tuple[tuple[Kind, Kind], ...] = (("blot", "cut"), ("fade", "blur"))
RESULT = ROOT / "results" / "testbed" / "transfer.csv"


def has_only(word: str, kinds: Sequence[Kind]) -> bool:
    """Whether a word has letters of these kinds of defect, and none of any other kind."""
    found = {kind for kind, letters in DEFECTS.items() if set(letters) & set(word)}
    return bool(found) and found <= set(kinds)


def half_path(kinds: Sequence[Kind]) -> Path:
    """Where the training list of a half lies."""
    return LETTERS.folder / f"train-{'-'.join(kinds)}.txt"


def make_half(kinds: Sequence[Kind]) -> list[str]:
    """The prompts of the training list whose words have letters of these kinds of defect alone."""
    prompts = read_text(list_path("train", LETTERS)).splitlines()
    return [prompt for prompt in prompts if has_only(parse_prompt(prompt).word, kinds)]


def rewards_of(run: Path) -> dict[int, NDArray[np.float64]]:
    """The trained reward of every validation prompt at each evaluation of a run, ``{iteration: [prompts]}``."""
    records = [json.loads(line) for line in read_text(run / "eval.jsonl").splitlines()]
    return {one["iteration"]: np.array(one["per_prompt"]["ocr"]) for one in records if one["split"] == "validation"}


def compare(runs: Sequence[dict[int, NDArray[np.float64]]], words: Sequence[str]) -> pd.DataFrame:
    """What the run of each half has gained on the words of each, at every evaluation after the first.

    Args:
        runs: of ``rewards_of``, in the order of ``HALVES``.
        words: of the validation prompts.

    Returns:
        A row per iteration and half trained on: mean gain of the words of each half and its standard error, and the
        correlation over all words of the gains of the two runs.
    """
    rows: list[dict[str, float | str]] = []
    for iteration in sorted(set(runs[0]) & set(runs[1]) - {0}):
        gains = [run[iteration] - run[0] for run in runs]
        for trained, gain in zip(HALVES, gains, strict=True):
            row: dict[str, float | str] = {"iteration": iteration, "trained_on": "-".join(trained)}
            for half in HALVES:
                of_half = gain[[has_only(word, half) for word in words]]
                row[f"gain_{'_'.join(half)}"] = round(float(of_half.mean()), 4)
                row[f"se_{'_'.join(half)}"] = round(float(of_half.std(ddof=1) / np.sqrt(len(of_half))), 4)
            rows.append(row | {"correlation": round(float(np.corrcoef(gains[0], gains[1])[0, 1]), 3)})
    return pd.DataFrame(rows)


def main(folders: Sequence[str]) -> None:
    """Write the lists, or what two runs have gained."""
    if not folders:
        for kinds in HALVES:
            write_atomically(half_path(kinds), "\n".join(make_half(kinds)) + "\n")
        return
    words = [parse_prompt(prompt).word for prompt in read_prompts(list_path("validation", LETTERS)).prompts]
    table = compare([rewards_of(Path(folder)) for folder in folders], words)
    write_atomically(RESULT, table.to_csv(index=False))
    print(table.to_string(index=False))


if __name__ == "__main__":
    main(sys.argv[1:])
