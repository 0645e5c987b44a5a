"""The short form of ``make faults``: SIGKILL to a trainer, and to a grid's launcher, each at a random moment."""

import random
from pathlib import Path

import pytest

from tests.faults.__main__ import Kill, main_alone, torture, whole_group

SHORT = ["iterations=3", "evaluation.interval=3", "evaluation.validation_prompts=2", "evaluation.gallery=0"]


@pytest.mark.parametrize(("kill", "words"), [(whole_group, ("train", "plain")), (main_alone, ("grid", "1"))])
def test_what_was_killed_ends_as_if_it_had_not_been(tmp_path: Path, kill: Kill, words: tuple[str, ...]) -> None:
    row = torture(words[0], 1, tmp_path, random.Random(), kill, *words, *SHORT, "runtime.checkpoint_interval=1")
    assert (row.tries, row.lost) == (1, [])
