"""Reward for drawing the prompt's word so that an external text recogniser can read it.

The two recognisers were trained by PaddleOCR on real photographs and documents: ``ocr`` (PP-OCRv6) is the reward,
``ocr-v4`` (PP-OCRv4) an unseen judge. Neither was trained on pictures of the miniature.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby, pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.foundation.errors import ConfigError
from harness.rewards.base import BatchedReward
from harness.rewards.files.assets import ASSETS, asset_path
from harness.rewards.native.recogniser import Precision, Read, open_recogniser, require_bf16

RECOGNISERS: dict[str, str] = {"ocr": "PP-OCRv6-rec", "ocr-v4": "PP-OCRv4-rec"}
"""Asset name by reward name."""

LETTERS = "abcdefghijklmnopqrstuvwxyz"
INPUT_HEIGHT, INPUT_WIDTH = 48, 128
# The height is that of the recognisers. Wider inputs keep the pictures' 4:1 shape, but noisy pictures are read worse.

_FORMULA_VERSION = "ctc-letters-per-letter-1"
_TINY = 1e-12
_WORD = re.compile(r'"([a-z]+)"')


def target_word(prompt: str) -> str:
    """The quoted word in a prompt. Raises ValueError if it has no word of letters a-z in double quotes."""
    match = _WORD.search(prompt)
    if match is None:
        raise ValueError(
            f'prompt {prompt!r} has no word to read: it needs letters a-z in double quotes, as in "harbor"'
        )
    return match.group(1)


def letter_probabilities(probabilities: np.ndarray, letter_columns: np.ndarray) -> Tensor:
    """Reduce a recogniser's distribution over its whole dictionary to blank and a-z.

    P'(letter) = P(lower case) + P(upper case) and P'(blank) = 1 - sum of P'(letter). Everything that is no letter
    counts as blank, because with the whole dictionary training learns faint textures that are read as dots.

    Args:
        probabilities: ``[B, T, V]``, each row a distribution.
        letter_columns: ``[26, 2]``, columns of each letter in lower and upper case.

    Returns:
        ``[B, T, 27]`` float64, blank first, every entry >= 1e-12.
    """
    letters = torch.from_numpy(probabilities[..., letter_columns]).double().sum(-1)
    blank = 1 - letters.sum(-1, keepdim=True)
    return torch.cat([blank, letters], dim=-1).clamp_min(_TINY)


def ctc_word_score(probabilities: Tensor, words: Sequence[str]) -> Tensor:
    """Probability of each word by a recogniser, as the geometric mean over the word's letters.

    score = P(word)^(1 / L) = exp(-nll / L), where P(word) is summed over all alignments of the word's L letters with
    the T time steps (connectionist temporal classification, Graves et al. 2006). It is smooth where word accuracy
    would tie, and the root makes long words comparable with short ones.

    Args:
        probabilities: ``[B, T, 27]``, of blank and a-z, each entry > 0.
        words: B words of letters a-z.

    Returns:
        ``[B]`` float32 in [0, 1].

    Raises:
        ValueError: a word needs more time steps than T (one per letter, and a blank between two equal letters).
    """
    num_steps = probabilities.shape[1]
    for word in words:
        num_symbols = len(word) + sum(a == b for a, b in pairwise(word))
        if num_symbols > num_steps:
            raise ValueError(f"the word {word!r} needs {num_symbols} time steps, but the recogniser reads {num_steps}")
    lengths = torch.tensor([len(word) for word in words])
    targets = torch.tensor([LETTERS.index(letter) + 1 for word in words for letter in word])
    negative_log_likelihood = F.ctc_loss(
        probabilities.double().log().transpose(0, 1),
        targets,
        torch.full_like(lengths, num_steps),
        lengths,
        blank=0,
        reduction="none",
    )
    # Rounding in a recogniser's float32 output can make the sum over alignments exceed 1 by 1e-7.
    return torch.exp(-negative_log_likelihood / lengths).clamp_max(1).float()


def greedy_words(probabilities: Tensor) -> list[str]:
    """Decode ``[B, T, 27]`` to B strings: most probable symbol of each time step, repeats merged and blanks dropped."""
    best = probabilities.argmax(-1).tolist()
    return ["".join(LETTERS[symbol - 1] for symbol, _ in groupby(symbols) if symbol) for symbols in best]


def edit_distance(first: str, second: str) -> int:
    """Levenshtein distance: fewest letters to insert, delete or replace between two strings."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        previous, row = row, [i]
        for j, b in enumerate(second, 1):
            row.append(min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (a != b)))
    return row[-1]


class OcrReward(BatchedReward):
    """Probability per letter, by a text recogniser, of the word quoted in the prompt (``ctc_word_score``).

    ``measure`` also returns, for the greedy reading, ``NAME/word_accuracy``, 0 or 1, and ``NAME/edit_similarity`` in
    [0, 1], 1 - edit distance / length of the longer string. Prompts without a suitable quoted word raise ValueError.

    Args:
        name: a key of ``RECOGNISERS``.
        num_threads: CPU threads of one forward pass, >= 1.
        precision: precision of the recogniser's arithmetic. bfloat16 gives other scores, see docs/speed.md.
    """

    resolution = 2e-6

    def __init__(self, name: str = "ocr", num_threads: int = 1, precision: Precision = "fp32") -> None:
        super().__init__(name, batch_size=16)
        self._asset, self._num_threads, self._precision = RECOGNISERS[name], num_threads, precision

    def _measure_batch(self, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        words = [target_word(prompt) for prompt in prompts]
        probabilities = self._recognise(levels)
        read = list(zip(greedy_words(probabilities), words, strict=True))
        similarity = [1 - edit_distance(found, word) / max(len(found), len(word)) for found, word in read]
        return {
            self.name: ctc_word_score(probabilities, words),
            f"{self.name}/word_accuracy": torch.tensor([float(found == word) for found, word in read]),
            f"{self.name}/edit_similarity": torch.tensor(similarity),
        }

    def check_prompt(self, prompt: str) -> None:
        target_word(prompt)

    def check_ready(self) -> None:
        asset_path(self._asset)
        if self._precision == "bf16":
            require_bf16(self.name)

    def fingerprint(self) -> str:
        """Expected sha256 of the weights, which need not be present, version of the formula, and precision if bf16."""
        precision = "" if self._precision == "fp32" else f":{self._precision}"
        return f"{ASSETS[self._asset].sha256}:{_FORMULA_VERSION}{precision}"

    def _recognise(self, levels: Tensor) -> Tensor:
        """Probabilities of blank and a-z, ``[B, T, 27]``, in pictures ``[B, 3, H, W]`` uint8."""
        height, width = levels.shape[-2:]
        if width < 2 * height:
            raise ConfigError(f"reward {self.name!r} reads one line of text: {width} x {height} pictures are too high")
        read, letter_columns = self._recogniser
        resized = F.interpolate(levels.float() / 255, (INPUT_HEIGHT, INPUT_WIDTH), mode="bilinear", align_corners=False)
        # The recognisers expect OpenCV's channel order, blue first, and values in [-1, 1].
        pixels = ((resized.flip(1) - 0.5) / 0.5).numpy()
        return letter_probabilities(read(pixels), letter_columns)

    @cached_property
    def _recogniser(self) -> tuple[Read, np.ndarray]:
        """Recogniser function, and the columns ``[26, 2]`` of a-z and A-Z in its output."""
        self.check_ready()
        read, characters = open_recogniser(asset_path(self._asset), self._num_threads, self._precision)
        # Column 0 is the blank, so a character's column is its index in the dictionary plus one.
        columns = [[characters.index(case) + 1 for case in (letter, letter.upper())] for letter in LETTERS]
        return read, np.array(columns)
