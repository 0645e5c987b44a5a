"""Prompt lists on disk, and the stateless draw of candidates."""

import hashlib
import json
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from harness.config import ROOT, ConfigError, RunConfig

MAX_CHARACTERS = 2000
"""Longest prompt accepted: about what the 512 tokens of a T5 encoder hold. A model may take less."""

_JOINERS = "\u200c\u200d"  # format characters that scripts and emoji need


@dataclass(frozen=True)
class PromptList:
    """Prompts of a file, in its order, and the sha256 of its bytes."""

    prompts: tuple[str, ...]
    sha256: str


def read_prompts(path: str | Path) -> PromptList:
    """Read a prompt list: text with one prompt a line, or one of the formats of ``read_texts``.

    Args:
        path: absolute or relative to the repository.

    Raises:
        ConfigError: the file is missing, has no prompts, or one that is unusable (``problem_with``), or repeats one but
            for white space.
    """
    file = ROOT / path
    facts = file.stat() if file.is_file() else None
    return _read_version(file, (facts.st_size, facts.st_mtime_ns) if facts else None)


@lru_cache(maxsize=32)
def _read_version(file: Path, version: tuple[int, int] | None) -> PromptList:
    """The list in a file that has the size and the time of change ``version``: a plan of many runs reads it once."""
    seen: dict[str, str] = {}
    prompts = []
    for place, text in read_texts(file):
        problem = problem_with(text)
        if problem is not None:
            raise ConfigError(f"prompt list {file}: {place} is {problem.kind}{problem.detail}")
        earlier = seen.setdefault(normalise(text), place)
        if earlier != place:
            raise ConfigError(
                f"prompt list {file}: {place} repeats {earlier}, {text.strip()!r}; remove one, or write a list without "
                f"repetitions with  adagrpo prompts import"
            )
        prompts.append(text.strip())
    if not prompts:
        raise ConfigError(f"prompt list {file}: has no prompts")
    return PromptList(tuple(prompts), hashlib.sha256(file.read_bytes()).hexdigest())


def read_texts(file: Path, key: str = "prompt") -> list[tuple[str, str]]:
    """The prompts of a file as they are, each with its place in it, such as ``line 3``.

    Args:
        file: ``.jsonl``: an object a line, of which ``key`` is taken and other keys are left alone; ``.json``: a list
            of strings or of such objects; any other: text, a prompt a line, blank lines skipped.
        key: of the prompt in an object.

    Raises:
        ConfigError: the file is missing, not UTF-8, or not of its format.
    """
    if not file.is_file():
        raise ConfigError(f"prompt list {file}: no such file; docs/prompts.md says how to make one")
    try:
        content = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"prompt list {file}: is not UTF-8 text (byte {error.start})") from None
    if file.suffix == ".json":
        items = _parse_json(content, f"prompt list {file}")
        if not isinstance(items, list):
            raise ConfigError(f"prompt list {file}: must hold a JSON list of strings or objects")
        return [(f"item {n}", _text_of(item, key, file, f"item {n}")) for n, item in enumerate(items, 1)]
    # Not splitlines(): it also splits at characters that JSON allows inside a string.
    lines = [(f"line {n}", line) for n, line in enumerate(content.split("\n"), 1) if line.strip()]
    if file.suffix != ".jsonl":
        return lines
    parsed = [(place, _parse_json(line, f"prompt list {file}: {place}")) for place, line in lines]
    return [(place, _text_of(item, key, file, place)) for place, item in parsed]


def normalise(prompt: str) -> str:
    """The prompt with every stretch of white space made one space: what repetitions are told by."""
    return " ".join(prompt.split())


class Problem(NamedTuple):
    """Why a prompt is unusable."""

    kind: str
    detail: str = ""


def problem_with(prompt: str, max_characters: int = MAX_CHARACTERS) -> Problem | None:
    """Why a prompt is unusable, or None: empty, too long, or with characters that cannot be seen."""
    text = normalise(prompt)
    if not text:
        return Problem("empty")
    if len(text) > max_characters:
        return Problem("too long", f": {len(text)} characters, at most {max_characters}")
    for character in "" if text.isprintable() else text:
        if unicodedata.category(character).startswith("C") and character not in _JOINERS:
            return Problem("unprintable", f": has the control character U+{ord(character):04X}")
    return None


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: is not valid JSON ({error.msg})") from None


def _text_of(item: Any, key: str, file: Path, place: str) -> str:
    text = item.get(key) if isinstance(item, dict) else item
    # A bare string is an item of a JSON list; on a JSON line it is most likely a mistake.
    if not isinstance(text, str) or (file.suffix == ".jsonl" and not isinstance(item, dict)):
        raise ConfigError(f'prompt list {file}: {place} must be an object with a text, as in {{"{key}": "a red fox"}}')
    return text


def generator_for(*key: int | str) -> torch.Generator:
    """A CPU generator that is a function of its key alone, such as (seed, iteration, slot, "noise").

    Random state is never carried from one iteration to the next: a resumed run, another number of processes, and
    another cell with the same seed all see the same draws.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


def draw_candidates(
    prompts: tuple[str, ...], slots: int, candidates: int, seed: int, iteration: int
) -> list[list[str]]:
    """P disjoint batches of B prompts, drawn without replacement: the same for every cell of a seed.

    Args:
        prompts: the training list.
        slots: P, over all processes.
        candidates: B.
        seed: of the run.
        iteration: 1 and up.

    Raises:
        ConfigError: the list holds fewer than P * B prompts.
    """
    needed = slots * candidates
    if needed > len(prompts):
        raise ConfigError(f"the training list holds {len(prompts)} prompts, but an iteration draws {needed}")
    order = torch.randperm(len(prompts), generator=generator_for(seed, iteration, "prompts"))[:needed].tolist()
    drawn = [prompts[i] for i in order]
    return [drawn[slot * candidates : (slot + 1) * candidates] for slot in range(slots)]


def drawn_prompts(prompts: tuple[str, ...], config: RunConfig) -> list[str]:
    """Every training prompt that a run draws as a candidate, once, in the order of the draws.

    Raises:
        ConfigError: as ``draw_candidates``.
    """
    rollout = config.rollout
    drawn: dict[str, None] = {}
    for iteration in range(1, config.iterations + 1):
        for slot in draw_candidates(prompts, rollout.prompts_per_update, rollout.candidates, config.seed, iteration):
            drawn |= dict.fromkeys(slot)
    return list(drawn)
