"""Prompt lists on disk, and stateless drawing of candidates."""

import csv
import hashlib
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from harness.config import ROOT, ConfigError, RunConfig
from harness.foundation.files import read_text
from harness.foundation.plugins import find, is_reference

MAX_CHARACTERS = 2000
"""Longest prompt accepted, about as long as the 512 tokens of a T5 encoder. Models may take less."""


@dataclass(frozen=True)
class PromptList:
    """Prompts of a file, in its order, and the sha256 of its bytes (for a plug-in, of its prompts)."""

    prompts: tuple[str, ...]
    sha256: str


def read_prompts(path: str | Path) -> PromptList:
    """Read a prompt list in any of the formats of ``read_texts``, with each prompt normalised (``normalise``).

    Args:
        path: absolute, or of a list that comes with the code, such as experiments/prompts/train.txt; or a plug-in's
            reference, see docs/extend.md.

    Raises:
        ConfigError: the file is missing, has no prompts or an unusable one (``problem_with``), or repeats a prompt,
            also in another case or white space (``prompt_key``).
    """
    if is_reference(str(path)):
        return _read_plugin(str(path))
    file = ROOT / path
    if not file.is_file() and not Path(path).is_absolute():
        raise ConfigError(f"prompt list {path}: no such file in {Path.cwd()}, nor in {ROOT}")
    facts = file.stat() if file.is_file() else None
    return _read_version(file, (facts.st_size, facts.st_mtime_ns) if facts else None)


@lru_cache(maxsize=32)
def _read_version(file: Path, version: tuple[int, int] | None) -> PromptList:
    """Read a file, cached by its size and modification time ``version``, because a plan of many runs reads it often."""
    return PromptList(checked(read_texts(file), f"prompt list {file}"), hashlib.sha256(file.read_bytes()).hexdigest())


def _read_plugin(source: str) -> PromptList:
    """The list that a plug-in's function without arguments returns; its sha256 is that of the prompts."""
    plugin = find(source)
    made, again = plugin.found(), plugin.found()
    if not (isinstance(made, list | tuple) and all(isinstance(prompt, str) for prompt in made)):
        plugin.refuse(f"must return a list of prompts, and returned {repr(made)[:100]}")
    if list(made) != list(again):
        plugin.refuse("returned other prompts when called again")
    prompts = checked([(f"prompt {n}", text) for n, text in enumerate(made, 1)], f"plug-in {source}")
    return PromptList(prompts, hashlib.sha256("\n".join(prompts).encode()).hexdigest())


def checked(texts: Iterable[tuple[str, str]], where: str) -> tuple[str, ...]:
    """Normalised prompts from pairs of place and text. Raises ConfigError for unusable texts, as ``read_prompts``."""
    seen: dict[str, str] = {}
    prompts = []
    for place, text in texts:
        if problem := problem_with(text):
            raise ConfigError(f"{where}: {place} is {problem}")
        prompt = normalise(text)
        earlier = seen.setdefault(prompt_key(prompt), place)
        if earlier != place:
            raise ConfigError(
                f"{where}: {place} repeats {earlier}, {prompt!r}; remove one, or write a list without "
                f"repetitions with  adagrpo prompts import"
            )
        prompts.append(prompt)
    if not prompts:
        raise ConfigError(f"{where}: has no prompts")
    return tuple(prompts)


# --- characters -----------------------------------------------------------------------------------------------------

_BLANKS = re.compile(r"[\t\n\r \u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
_JOINERS = "\u200c\u200d"  # format characters that scripts and emoji need
_AFTER_NOTHING_TO_JOIN = re.compile("(?:^|[\x00-\x7f])[\u200c\u200d\ufe00-\ufe0e]|(?:^|[^\\d#*\x80-\U0010ffff])\ufe0f")
_UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\uffa0]")
"""Fillers that Unicode counts as letters or marks but that are invisible."""
_LOOK_ALIKES = str.maketrans(
    "\u2018\u2019\u201a\u02bc\u2032\u201c\u201d\u201e\u2033\u2010\u2012\u2013\u2014\u2212", "'''''\"\"\"\"-----"
)


def normalise(prompt: str) -> str:
    """Normalise a prompt: Unicode's composed form (NFC), with each run of white space and line ends as one space."""
    return _BLANKS.sub(" ", unicodedata.normalize("NFC", prompt)).strip(" ")


def prompt_key(prompt: str) -> str:
    """Key by which prompts are compared: ignores case, width, runs of white space and invisible characters.

    Typographic quotation marks and dashes count as the plain ones.
    """
    text = "".join(c for c in prompt if unicodedata.category(c) != "Cf" and not "\ufe00" <= c <= "\ufe0f")
    text = unicodedata.normalize("NFD", _UNSEEN.sub("", text))
    for _ in range(2):  # twice, as Unicode defines it: folding may undo the normal form, which may need folding again
        text = unicodedata.normalize("NFKC", text.casefold())
    return normalise(text.translate(_LOOK_ALIKES))


def problem_with(prompt: str, max_characters: int = MAX_CHARACTERS) -> str | None:
    """Reason why a prompt is unusable, or None: empty, too long, a JSON object, or with invisible characters.

    What stands before its colon, if it has one, is the kind of problem.
    """
    text = normalise(prompt)
    if not text:
        return "empty"
    if len(text) > max_characters:
        return f"too long: {len(text)} characters, at most {max_characters}"
    for character in "" if text.isprintable() else text:
        category = unicodedata.category(character)
        if (category.startswith("C") and character not in _JOINERS) or category in ("Zl", "Zp"):
            return f"unprintable: has the control character U+{ord(character):04X}"
    if unseen := _UNSEEN.search(text) or _AFTER_NOTHING_TO_JOIN.search(text):
        return f"unprintable: has the invisible character U+{ord(unseen[0][-1]):04X}"
    if text.startswith("{") and _is_json(text):
        return "not a prompt: it is a JSON object; a file of such lines is called .jsonl"
    return None


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return False


# --- files ----------------------------------------------------------------------------------------------------------

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_NAMES, _OTHER_NAMES = ("prompt", "prompts"), ("caption", "text")
"""Names of the prompt's column, and alternatives if no column has one of them."""


def read_texts(file: Path, column: str | None = None) -> list[tuple[str, str]]:
    """Read the unchanged prompts of a file as pairs of place, such as ``line 3``, and text.

    Args:
        file: UTF-8; its suffix, in any case, is the format: ``.txt``, a prompt per line; ``.csv`` and ``.tsv``, a table
            with a header; ``.jsonl`` and ``.ndjson``, an object per line; ``.json``, a list of strings or of objects.
        column: column of a table, or key of an object, that has the prompt; None for ``prompt`` or ``prompts`` in any
            case or, if there is neither, ``caption`` or ``text``.

    Raises:
        ConfigError: the file is missing, not UTF-8 or not in its format, or the column is missing or ambiguous.
    """
    where = f"prompt list {file}"
    content = read_text(file).removeprefix("\ufeff")
    match file.suffix.lower():
        case ".txt":
            return _read_lines(content, where)
        case ".csv" | ".tsv" as kind:
            return _texts_of(_read_rows(content, _SEPARATORS[kind], where), column, where)
        case ".json":
            items = _parse_json(content, where)
            if not isinstance(items, list):
                raise ConfigError(f"{where}: must hold a JSON list of strings or objects")
            numbered = [(f"item {n}", item) for n, item in enumerate(items, 1)]
            # Bare strings are allowed in a list; on a line of .jsonl one is most likely a mistake.
            bare = [(place, item) for place, item in numbered if isinstance(item, str)]
            return bare if len(bare) == len(numbered) else _texts_of(numbered, column, where)
        case ".jsonl" | ".ndjson":
            parsed = [(place, _parse_json(line, f"{where}: {place}")) for place, line in _numbered(content)]
            return _texts_of(parsed, column, where)
    raise ConfigError(f"{where}: its suffix must say what it holds: .txt, .csv, .tsv, .json, .jsonl or .ndjson")


def _numbered(content: str) -> list[tuple[str, str]]:
    # Not splitlines(), which also splits at characters that JSON allows in a string and that are errors in a .txt line.
    return [(f"line {n}", line) for n, line in enumerate(content.split("\n"), 1) if line.strip()]


def _read_lines(content: str, where: str) -> list[tuple[str, str]]:
    """Lines of a text file. Raises ConfigError if it is a table or JSON with the wrong suffix."""
    lines = _numbered(content)
    if lines and "prompt" in [cell.strip(' "\r').lower() for cell in re.split("[\t,]", lines[0][1])]:
        raise ConfigError(f"{where}: line 1 is the header of a table, not a prompt; call the file .csv or .tsv")
    if _is_json(content):
        raise ConfigError(f"{where}: is JSON, not a prompt per line; call the file .json")
    return lines


def _read_rows(
    content: str, separator: str, where: str, quoting: Literal[0, 3] = csv.QUOTE_MINIMAL
) -> list[tuple[str, dict[str, str]]]:
    """Rows of a table with a header, by the line in which they end; quoted cells may contain line ends.

    In a .tsv with quotation marks that do not enclose whole cells, as in PartiPrompts, they are read as plain text.
    """
    reader = csv.DictReader(io.StringIO(content), delimiter=separator, strict=True, quoting=quoting)
    rows = []
    try:
        _once([(name, None) for name in reader.fieldnames or () if name], f"{where}: line 1")
        for row in reader:
            if None in row or None in row.values():
                raise ConfigError(
                    f"{where}: line {reader.line_num} has not as many cells as the header; a cell with {separator!r} "
                    "or quotation marks in it must be quoted"
                )
            rows.append((f"line {reader.line_num}", row))
    except csv.Error as error:
        if separator == "\t" and quoting != csv.QUOTE_NONE:
            return _read_rows(content, separator, where, csv.QUOTE_NONE)
        raise ConfigError(f"{where}: line {reader.reader.line_num} is no row of a table ({error})") from None
    return rows


def _choose_column(names: Sequence[str], wanted: str | None, where: str) -> str:
    for choices in ([wanted.strip().lower()],) if wanted is not None else (_NAMES, _OTHER_NAMES):
        found = [name for name in names if name.strip().lower() in choices]
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigError(f"{where}: has columns {', '.join(map(repr, found))}; name one by  --column")
    raise ConfigError(
        f"{where}: has no column {wanted or 'prompt'!r} but {', '.join(map(repr, names)) or 'none'}; name the prompt's "
        "by  prompts import --column"
    )


def _texts_of(items: Sequence[tuple[str, Any]], column: str | None, where: str) -> list[tuple[str, str]]:
    """Texts of objects. The prompt's key is found in the first object and must be in all of them."""
    first = next((list(item) for _, item in items if isinstance(item, dict)), None)
    key = None if first is None else _choose_column(first, column, where)
    texts = []
    for place, item in items:
        text = item.get(key) if isinstance(item, dict) else None
        if not isinstance(text, str):
            example = json.dumps({key or column or "prompt": "a red fox"})
            raise ConfigError(f"{where}: {place} must be an object with a text, as in {example}")
        texts.append((place, text))
    return texts


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, where))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: is not valid JSON ({error.msg})") from None


def _once(pairs: Sequence[tuple[str, Any]], where: str) -> dict[str, Any]:
    """Values by name. Raises ConfigError if a name is there twice, since one of its values would be lost."""
    for name, count in Counter(name for name, _ in pairs).most_common(1):
        if count > 1:
            raise ConfigError(f"{where}: has {name!r} {count} times; rename or remove all but one")
    return dict(pairs)


def generator_for(*key: int | str) -> torch.Generator:
    """CPU generator seeded by a hash of its key alone, such as (seed, iteration, slot, "noise").

    No random state is carried from one iteration to the next: a resumed run, a run with another number of processes,
    and another cell with the same seed all make the same draws.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


def draw_candidates(
    prompts: tuple[str, ...], slots: int, candidates: int, seed: int, iteration: int
) -> list[list[str]]:
    """Draw P disjoint batches of B prompts without replacement; the draw is the same for all cells with one seed.

    Args:
        prompts: training prompts.
        slots: P, over all processes.
        candidates: B.
        seed: seed of the run.
        iteration: number of the iteration, from 1.

    Raises:
        ConfigError: the list has fewer than P * B prompts.
    """
    needed = slots * candidates
    if needed > len(prompts):
        raise ConfigError(f"the training list holds {len(prompts)} prompts, but an iteration draws {needed}")
    order = torch.randperm(len(prompts), generator=generator_for(seed, iteration, "prompts"))[:needed].tolist()
    drawn = [prompts[i] for i in order]
    return [drawn[slot * candidates : (slot + 1) * candidates] for slot in range(slots)]


def drawn_prompts(prompts: tuple[str, ...], config: RunConfig) -> list[str]:
    """All training prompts that a run draws as candidates, without repetitions, in the order of the draws.

    Raises:
        ConfigError: see ``draw_candidates``.
    """
    shape = config.rollout.prompts_per_iteration, config.rollout.candidates
    iterations = range(1, config.iterations + 1)
    drawn = (draw_candidates(prompts, *shape, config.seed, iteration) for iteration in iterations)
    return list(dict.fromkeys(prompt for slots in drawn for slot in slots for prompt in slot))
