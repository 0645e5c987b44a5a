"""The short form of ``make faults``: SIGKILL to a trainer at a random moment."""

import random
from pathlib import Path

from tests.faults.__main__ import torture, whole_group

SHORT = ["iterations=3", "model.num_steps=4", "runtime.checkpoint_interval=1", "evaluation.interval=3"]
SHORT += ["evaluation.validation_prompts=2", "evaluation.gallery=0", "evaluation.base_test=false"]


def test_a_trainer_that_was_killed_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    row = torture("trainer", 1, tmp_path, random.Random(), whole_group, "train", "plain", *SHORT)
    assert (row.tries, row.lost) == (1, [])
