"""Benchmarks of text-to-image models: their prompt lists, their rewards, and the input of GenEval's evaluator."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.config import ConfigError
from harness.foundation.files import file_sha256, read_text, write_atomically
from harness.prompts.lists import PromptList, checked, normalise, prompt_key, read_texts
from harness.trained.pictures import as_png


@dataclass(frozen=True)
class Suite:
    """Defaults of a benchmark."""

    file: str | None
    """Name of its list, as its authors call it; None for the checkpoint's own test list."""
    rewards: tuple[str, ...] | None = None
    """Rewards that score it; None for every reward that can."""
    num_noises: int | None = None
    """Number of pictures per prompt; None for the configuration's."""


SUITES = {
    "drawbench": Suite("DrawBench's .csv"),
    "partiprompts": Suite("PartiPrompts.tsv of google-research/parti"),
    "geneval": Suite("prompts/evaluation_metadata.jsonl of djghosh13/geneval", rewards=(), num_noises=4),
    "ocr": Suite(None, rewards=("ocr",)),
}

_ASKED = {"tag": str, "include": list, "prompt": str}
"""Keys that GenEval's evaluator reads in each line, with their types."""


def read_suite(file: Path) -> tuple[PromptList, int]:
    """Prompts of a benchmark, and the number of those left out because they repeat one up to case and white space.

    Raises:
        ConfigError: as in ``read_prompts``, except for repetitions.
    """
    texts, first = read_texts(file), dict[str, tuple[str, str]]()
    for place, text in texts:
        first.setdefault(prompt_key(text), (place, text))
    prompts = checked(first.values(), f"prompt list {file}")
    return PromptList(prompts, file_sha256(file)), len(texts) - len(first)


def geneval_metadata(file: Path, prompts: Sequence[str]) -> list[dict[str, Any]]:
    """GenEval's metadata of each prompt, in the order of the prompts.

    Raises:
        ConfigError: the file is not ``evaluation_metadata.jsonl``, or one like it.
    """
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(read_text(file).removeprefix("\ufeff").split("\n"), 1):
        if not line.strip():
            continue
        try:
            one = json.loads(line)
            is_known = all(isinstance(one[key], kind) for key, kind in _ASKED.items())
        except (ValueError, LookupError, TypeError, RecursionError):
            is_known = False
        if not is_known:
            raise ConfigError(f"--suite geneval: {file}: line {number} must be an object with {', '.join(_ASKED)}")
        found.setdefault(normalise(one["prompt"]), one)
    return [found[prompt] for prompt in prompts]


def write_geneval(folder: Path, metadata: Sequence[Mapping[str, Any]], first: int, pictures: Sequence[Tensor]) -> None:
    """Write pictures where GenEval's ``evaluate_images.py`` expects them, such as ``00007/samples/0000.png``.

    Args:
        folder: folder of a checkpoint, which the evaluator is given.
        metadata: metadata of all prompts.
        first: number of the first prompt in ``pictures``.
        pictures: for each noise ``[n, 3, H, W]`` in [0, 1], of n consecutive prompts.
    """
    for place in range(first, first + len(pictures[0])):
        own = folder / f"{place:05}"
        write_atomically(own / "metadata.jsonl", json.dumps(metadata[place], ensure_ascii=False) + "\n")
        for number, images in enumerate(pictures):
            write_atomically(own / "samples" / f"{number:04}.png", as_png(images[place - first]))
