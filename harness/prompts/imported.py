"""Import of prompt files: prompts are checked, deduplicated and split into lists by hash."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from harness.config import ConfigError
from harness.foundation.files import write_atomically
from harness.prompts.lists import MAX_CHARACTERS, normalise, problem_with, prompt_key, read_texts


class Shares(NamedTuple):
    """Percentages of prompts for each list; they add up to 100."""

    train: float
    validation: float
    test: float

    @classmethod
    def parse(cls, text: str) -> "Shares":
        """Parse text like ``"90,5,5"``. Raises ConfigError unless it is three numbers >= 0 that add up to 100."""
        try:
            train, validation, test = (float(part) for part in text.split(","))
        except ValueError:
            raise ConfigError(f"--shares {text}: write three percentages, as in 90,5,5") from None
        if not min(train, validation, test) >= 0 or not abs(train + validation + test - 100) <= 1e-9:
            raise ConfigError(f"--shares {text}: train, validation and test must add up to 100")
        return cls(train, validation, test)


SPLITS = Shares._fields


@dataclass(frozen=True)
class ImportedPrompts:
    """Prompt lists by split, with counts of the prompts read and left out."""

    lists: dict[str, list[str]]
    num_read: int
    left_out: Counter[str]
    """Number of prompts left out, by reason."""

    def summary(self) -> list[str]:
        """Lines to print: numbers of prompts read, left out by reason, and in each list."""
        reasons = "".join(f", {count:,} {reason}" for reason, count in self.left_out.most_common())
        return [
            f"{self.num_read:,} prompts read{reasons}",
            *(f"{split:10}  {len(prompts):,} prompts" for split, prompts in self.lists.items()),
        ]


def split_of(prompt: str, shares: Shares) -> str:
    """List that a prompt belongs to, by its hash alone.

    With the same shares, a prompt and all prompts with the same ``prompt_key`` (variants in case or white space) go to
    the same list, whatever file they come from, so lists from separate imports are disjoint, too.
    """
    place = _hash("split", prompt_key(prompt)) % 10_000 / 100
    if place < shares.train:
        return "train"
    return "validation" if place < shares.train + shares.validation else "test"


def import_prompts(
    files: Sequence[Path],
    shares: Shares,
    *,
    exclude: Sequence[Path] = (),
    column: str | None = None,
    max_characters: int = MAX_CHARACTERS,
) -> ImportedPrompts:
    """Read, check, deduplicate and split prompts.

    Each list is sorted by a hash, so that the start of a list is a random sample of its sources.

    Args:
        files: files in the formats of ``read_texts``.
        shares: percentage of each list; a list with 0 is not made.
        exclude: files whose prompts must be in no list, such as a benchmark's.
        column: column of the prompt, see ``read_texts``.
        max_characters: longer prompts are left out.

    Raises:
        ConfigError: a file cannot be read or is not in its format, none has columns to name, or a list gets no prompt.
    """
    if column is not None and all(file.suffix.lower() == ".txt" for file in (*files, *exclude)):
        raise ConfigError(f"--column {column}: {files[0]} has a prompt per line and no columns")
    taken = {prompt_key(text) for file in exclude for _, text in read_texts(file, column)}
    lists: dict[str, list[str]] = {split: [] for split, share in shares._asdict().items() if share > 0}
    seen: set[str] = set()
    left_out: Counter[str] = Counter()
    texts = [text for file in files for _, text in read_texts(file, column)]
    for text in texts:
        prompt = normalise(text)
        key = prompt_key(prompt)
        if problem := problem_with(prompt, max_characters):
            left_out[problem.partition(":")[0]] += 1
        elif key in seen or key in taken:
            left_out["repeated" if key in seen else "excluded"] += 1
        else:
            seen.add(key)
            lists[split_of(prompt, shares)].append(prompt)
    for split, prompts in lists.items():
        if not prompts:
            raise ConfigError(f"{split} gets none of {len(seen)} prompts; give more prompts, or it a larger share")
        prompts.sort(key=lambda prompt: _hash("order", prompt))
    return ImportedPrompts(lists, len(texts), left_out)


def write_lists(lists: dict[str, list[str]], folder: Path) -> list[Path]:
    """Write each list to ``folder/<split>.txt``.

    Raises:
        ConfigError: one of the files exists already.
    """
    paths = {split: folder / f"{split}.txt" for split in lists}
    for path in paths.values():
        if path.exists():
            raise ConfigError(f"{path} is there already; choose another folder, since runs depend on it")
    for split, path in paths.items():
        write_atomically(path, "".join(f"{prompt}\n" for prompt in lists[split]))
    return list(paths.values())


def _hash(purpose: str, text: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{purpose}:{text}".encode()).digest()[:8])
