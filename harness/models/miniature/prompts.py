"""Prompts of the miniature: their grammar, and the fixed train / validation / test lists.

A prompt is ``the word "harbor" in red on yellow``, optionally followed by `` in mono font``. Difficulty varies by
construction: 2 to 10 letters, rare letters, colour pairs of low and high contrast, and a named font in some prompts
(``serif`` is drawn only if it is named).

Words are assigned to a split by hash, so that no word of one split occurs in another, whatever list it is in.
``python -m harness.models.miniature.prompts`` writes the lists again; a test checks that they have not changed.
"""

import gzip
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from harness.foundation.files import write_atomically

Split = Literal["train", "validation", "test"]

TEXT_COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (20, 20, 20),
    "red": (200, 30, 30),
    "blue": (30, 60, 200),
    "green": (20, 130, 60),
    "purple": (120, 40, 150),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "yellow": (250, 220, 80),
    "pink": (250, 180, 200),
    "cyan": (130, 220, 230),
    "orange": (245, 160, 60),
}
COLOURS: dict[str, tuple[int, int, int]] = TEXT_COLOURS | BACKGROUNDS
FONTS: dict[str, str] = {
    "sans": "DejaVuSans.ttf",
    "bold": "DejaVuSans-Bold.ttf",
    "mono": "DejaVuSansMono-Bold.ttf",
    "serif": "DejaVuSerif-Bold.ttf",
}
UNNAMED_FONTS: dict[str, float] = {"mono": 0.6, "sans": 0.2, "bold": 0.2}
"""Probabilities of the fonts for a prompt that names none."""
NAMED_FONT_SHARE = 0.2
"""Share of prompts that name a font."""

MIN_LETTERS, MAX_LETTERS = 2, 10
LETTERS_LENGTHS = range(4, 9)
"""Word lengths of the letter-defect models: long enough for several such letters, short enough for one font size."""
RARE_LETTERS = frozenset("jqxz")

_FOLDER = Path(__file__).parent
_PATTERN = re.compile(
    r'the word "(?P<word>[a-z]+)" in (?P<colour>\w+) on (?P<background>\w+)(?: in (?P<font>\w+) font)?'
)


@dataclass(frozen=True)
class MiniaturePrompt:
    """Parsed prompt; ``str()`` gives the prompt itself."""

    word: str
    colour: str
    background: str
    font: str | None = None

    def __str__(self) -> str:
        font = f" in {self.font} font" if self.font else ""
        return f'the word "{self.word}" in {self.colour} on {self.background}{font}'


def parse_prompt(text: str) -> MiniaturePrompt:
    """Parse a prompt string. Raises ValueError, naming the part that is wrong, if it is not of the grammar."""
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(
            f"prompt {text!r} is not one the miniature can draw: "
            'write  the word "harbor" in red on yellow  with letters a-z only'
        )
    prompt = MiniaturePrompt(**match.groupdict())
    if not MIN_LETTERS <= len(prompt.word) <= MAX_LETTERS:
        raise ValueError(f"prompt {text!r}: the miniature draws words of {MIN_LETTERS} to {MAX_LETTERS} letters")
    for kind, value, valid in (
        ("text colour", prompt.colour, TEXT_COLOURS),
        ("background", prompt.background, BACKGROUNDS),
        ("font", prompt.font, FONTS),
    ):
        if value is not None and value not in valid:
            raise ValueError(f"prompt {text!r}: unknown {kind} {value!r}; the miniature knows {', '.join(valid)}")
    return prompt


def is_miniature(prompts: Iterable[str]) -> bool:
    """Whether all prompts of a list are of the grammar."""
    try:
        for prompt in prompts:
            parse_prompt(prompt)
    except ValueError:
        return False
    return True


def _hash(purpose: str, word: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{purpose}:{word}".encode()).digest()[:8])


def split_of(word: str) -> Split:
    """Split of a word, fixed by its hash: 8 % test, 8 % validation, the rest train."""
    bucket = _hash("split", word) % 100
    return "test" if bucket < 8 else "validation" if bucket < 16 else "train"


@cache
def words(split: Split) -> tuple[str, ...]:
    """All words of a split, in alphabetical order."""
    lines = gzip.decompress((_FOLDER / "data" / "words.txt.gz").read_bytes()).decode().split()
    return tuple(word for word in lines if split_of(word) == split)


def styled_prompt(word: str) -> MiniaturePrompt:
    """Prompt for a word, with colours, and for one word in five a named font, fixed by the word's hash."""
    style = _hash("style", word)
    colour = list(TEXT_COLOURS)[style % 5]
    background = list(BACKGROUNDS)[style // 5 % 5]
    font = list(FONTS)[style // 25 % 4] if style // 100 % 100 < 100 * NAMED_FONT_SHARE else None
    return MiniaturePrompt(word, colour, background, font)


@dataclass(frozen=True)
class ListDesign:
    """Composition of the three prompt lists of a testbed."""

    folder: Path
    shares: Mapping[int, float]
    """Share of each word length in each list."""
    sizes: Mapping[Split, int]
    rare_share: float
    """Share of words with a rare letter (j q x z) among those of each length."""
    fonts: bool
    """Whether some prompts name a font."""


WORDS = ListDesign(
    _FOLDER / "data",
    # Less of two-letter words, which are few, so that no word repeats within a test list.
    {2: 0.03, 3: 0.09, 4: 0.12, 5: 0.13, 6: 0.13, 7: 0.13, 8: 0.13, 9: 0.12, 10: 0.12},
    {"train": 6000, "validation": 240, "test": 240},
    rare_share=0.2,
    fonts=True,
)
"""Lists for the models of recipe ``strikes``: difficulty by length, rare letters, contrast and font."""
LETTERS = ListDesign(
    _FOLDER.parents[2] / "experiments" / "prompts" / "letters",
    dict.fromkeys(LETTERS_LENGTHS, 1 / len(LETTERS_LENGTHS)),
    {"train": 6000, "validation": 240, "test": 480},
    rare_share=0.0,
    fonts=False,
)
"""Lists for the letter-defect models: difficulty depends on the letters alone."""
DESIGNS = (WORDS, LETTERS)


def make_list(split: Split, design: ListDesign = WORDS) -> list[str]:
    """Make the prompt list of a split, stratified by word length and by whether a word has a rare letter."""
    chosen: list[str] = []
    for length, share in design.shares.items():
        candidates = sorted((w for w in words(split) if len(w) == length), key=lambda w: _hash("order", w))
        quota = min(round(share * design.sizes[split]), len(candidates))
        rare = [w for w in candidates if RARE_LETTERS & set(w)][: round(design.rare_share * quota)]
        common = [w for w in candidates if not RARE_LETTERS & set(w)][: quota - len(rare)]
        chosen += rare + common
    chosen.sort(key=lambda w: _hash("shuffle", w))
    prompts = [styled_prompt(word) for word in chosen]
    return [str(prompt if design.fonts else replace(prompt, font=None)) for prompt in prompts]


def list_path(split: Split, design: ListDesign = WORDS) -> Path:
    """Path of the committed list of a split."""
    return design.folder / f"{split}.txt"


if __name__ == "__main__":
    for each in DESIGNS:
        for name in get_args(Split):
            made = make_list(name, each)
            write_atomically(list_path(name, each), "\n".join(made) + "\n")
            print(f"{list_path(name, each)}: {len(made)} prompts")
