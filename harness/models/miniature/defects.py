"""Defects in the miniature's pretraining pictures: at random, or dependent on the prompt.

Each class is a kind of pretraining pictures: the choice of prompts, and how a prompt is drawn. The pretrained model
reproduces the defects of its pictures, so the class determines what makes a prompt hard.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from harness.models.miniature.prompts import (
    BACKGROUNDS,
    FONTS,
    LETTERS_LENGTHS,
    MAX_LETTERS,
    MIN_LETTERS,
    NAMED_FONT_SHARE,
    TEXT_COLOURS,
    UNNAMED_FONTS,
    MiniaturePrompt,
)
from harness.models.miniature.render import HEIGHT, WIDTH, fitting_font

Kind = Literal["blot", "cut", "fade", "blur"]

DEFECTS: dict[Kind, str] = {"blot": "rpy", "cut": "lmk", "fade": "nbg", "blur": "tfd"}
"""Letters with each kind of defect, from the mildest to the most severe.

A blot covers a letter from below with its own colour, a cut with the background's; a faded letter is nearly of the
background's colour; a blurred one has lost its edges. All other letters are drawn correctly.
"""
_KINDS = {letter: kind for kind, letters in DEFECTS.items() for letter in letters}
_RANKS = {letter: rank for letters in DEFECTS.values() for rank, letter in enumerate(letters)}

_COVERED_PIXELS = 15.0
"""Height of a blot or cut of severity 1 above the baseline: that of the tallest letter without its tip."""
_BLUR_PIXELS = 4.5
"""Radius of a blur of severity 1."""
_FADE_START, _FADE_SLOPE, _FADE_MOST = 0.78, 0.27, 0.99
"""Share of the background's colour in a faded letter: at severity 0, its slope by severity, and its maximum."""


@dataclass(frozen=True)
class Strikes:
    """Words struck out at random: the quality of a picture does not depend on its prompt."""

    share: float = 0.0
    """Share of pictures whose word is struck out by a bar of its colour."""
    pixels: tuple[float, float] = (2.0, 12.0)
    """Range of the bar's thickness. At 2 pixels the recognisers read most words, at 12 none."""

    def prompt(self, rng: np.random.Generator, by_length: dict[int, list[str]]) -> MiniaturePrompt:
        """Draw a prompt: a length, a word of that length, colours, and for a share of prompts a named font."""
        word = str(rng.choice(by_length[int(rng.integers(MIN_LETTERS, MAX_LETTERS + 1))]))
        font = str(rng.choice(list(FONTS))) if rng.random() < NAMED_FONT_SHARE else None
        return MiniaturePrompt(word, str(rng.choice(list(TEXT_COLOURS))), str(rng.choice(list(BACKGROUNDS))), font)

    def draw(self, prompt: MiniaturePrompt, rng: np.random.Generator) -> np.ndarray:
        """Draw the word with a jitter of at most 2 pixels, in its font or in one by ``UNNAMED_FONTS``.

        Returns:
            ``[32, 128, 3]`` uint8.
        """
        unnamed = str(rng.choice(list(UNNAMED_FONTS), p=list(UNNAMED_FONTS.values())))
        font = fitting_font(prompt.font or unnamed, prompt.word)
        image = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUNDS[prompt.background])
        x, y = WIDTH / 2 + rng.uniform(-2, 2), HEIGHT / 2 + rng.uniform(-1, 1)
        ink, canvas = TEXT_COLOURS[prompt.colour], ImageDraw.Draw(image)
        canvas.text((x, y), prompt.word, font=font, fill=ink, anchor="mm")
        if rng.random() < self.share:
            half_width, half_height = font.getlength(prompt.word) / 2 + 2, rng.uniform(*self.pixels) / 2
            canvas.rectangle((x - half_width, y - half_height, x + half_width, y + half_height), fill=ink)
        return np.asarray(image)


@dataclass(frozen=True)
class LetterDefects:
    """Defects of certain letters, each of its kind in ``DEFECTS``: a word is as hard as its letters.

    Drawing such a letter well is a skill that is shared by all words with letters of that kind.
    """

    luck: float
    """Standard deviation of a letter's severity between drawings. The dial of this family of models: if small, the
    prompt determines the quality of a picture, if large, chance does."""
    severities: tuple[float, float, float] = (0.3, 0.42, 0.54)
    """Mean severity of the mild, middle and severe letter of a kind: 0 is a correct letter, 1 an unreadable one."""
    right_share: float = 0.15
    """Probability that such a letter is drawn correctly nevertheless."""

    def prompt(self, rng: np.random.Generator, by_length: dict[int, list[str]]) -> MiniaturePrompt:
        """Draw a prompt: a length, a word of that length, and colours; no font, because fonts would add randomness."""
        word = str(rng.choice(by_length[int(rng.choice(list(LETTERS_LENGTHS)))]))
        return MiniaturePrompt(word, str(rng.choice(list(TEXT_COLOURS))), str(rng.choice(list(BACKGROUNDS))))

    def severity(self, letter: str, rng: np.random.Generator) -> float:
        """Draw the severity of a letter's defect, in [0, 1]; 0 for a letter without a defect."""
        if letter not in _KINDS or rng.random() < self.right_share:
            return 0.0
        return float(np.clip(self.severities[_RANKS[letter]] + rng.normal(0, self.luck), 0, 1))

    def draw(self, prompt: MiniaturePrompt, rng: np.random.Generator) -> np.ndarray:
        """Draw the word letter by letter in the mono font, with a jitter of at most a pixel: ``[32, 128, 3]`` uint8."""
        pitch = fitting_font("mono", prompt.word).getlength("m")
        image = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUNDS[prompt.background])
        left = (WIDTH - pitch * len(prompt.word)) / 2 + rng.uniform(-1, 1)
        baseline = HEIGHT / 2 + 8 + rng.uniform(-0.5, 0.5)
        for letter in prompt.word:
            _draw_letter(image, prompt, letter, self.severity(letter, rng), left, baseline)
            left += pitch
        return np.asarray(image)


def _draw_letter(
    image: Image.Image, prompt: MiniaturePrompt, letter: str, severity: float, left: float, baseline: float
) -> None:
    font = fitting_font("mono", prompt.word)
    right = left + font.getlength("m")
    ink, paper = TEXT_COLOURS[prompt.colour], BACKGROUNDS[prompt.background]
    kind = _KINDS.get(letter) if severity > 0 else None
    share = min(_FADE_START + _FADE_SLOPE * severity, _FADE_MOST) if kind == "fade" else 0.0
    colour = tuple(round(i + share * (p - i)) for i, p in zip(ink, paper, strict=True))
    canvas = ImageDraw.Draw(image)
    canvas.text((left, baseline), letter, font=font, fill=colour, anchor="ls")
    top = baseline - _COVERED_PIXELS * severity
    if kind == "blot":
        canvas.rectangle((left + 1, top, right - 2, baseline + 2), fill=ink)
    elif kind == "cut":
        canvas.rectangle((left, top, right - 1, baseline + 5), fill=paper)  # including descenders
    elif kind == "blur":
        box = (round(left) - 1, 2, round(right) + 1, HEIGHT - 2)
        image.paste(image.crop(box).filter(ImageFilter.GaussianBlur(_BLUR_PIXELS * severity)), box)
