"""What text encoders and rewards leave unread of long prompts: counted, and said once per list."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from harness.foundation.errors import HarnessError


@dataclass(frozen=True)
class TextReader:
    """A text encoder that reads the start of a prompt only."""

    name: str
    limit: int
    """Tokens it reads, the one that ends the text among them."""
    encode: Callable[[Sequence[str]], Sequence[Sequence[int]]]
    """Prompts -> their tokens, all of them."""


class ReadsText(Protocol):
    """A policy or a reward."""

    def text_readers(self) -> Sequence[TextReader]:
        """Its text encoders that read the start of a prompt only."""


def all_tokens(tokenizer: Any, prompts: Sequence[str]) -> Sequence[Sequence[int]]:
    """Tokens by a tokenizer of transformers, uncut and without its warning that they are many."""
    return tokenizer(list(prompts), truncation=False, verbose=False).input_ids if prompts else []


def truncations(sources: Iterable[ReadsText], prompts: Sequence[str], where: str) -> list[str]:
    """A line for each reader that cuts prompts of a list off: how many, the first, and whether two become the same.

    ``where`` is how the lines call the list.
    """
    lines = []
    for source in sources:
        try:
            lines += [line for reader in source.text_readers() if (line := _line(reader, prompts))]
        except HarnessError as error:
            lines.append(f"whether prompts are cut off is not known: {error}")
    return [f"{where}: {line}" for line in lines]


def _line(reader: TextReader, prompts: Sequence[str]) -> str | None:
    alike: dict[tuple[int, ...], list[str]] = defaultdict(list)
    cut = []
    for prompt, tokens in zip(prompts, reader.encode(prompts), strict=True):
        alike[tuple(tokens[: reader.limit - 1])].append(prompt)
        if len(tokens) > reader.limit:
            cut.append(prompt)
    if not cut:
        return None
    line = f"{reader.name} reads {reader.limit} tokens of a prompt: {len(cut)} of {len(prompts)} are cut off"
    line += f", the first is {_short(cut[0])}"
    if shared := [group for group in alike.values() if len(group) > 1 and not set(group).isdisjoint(cut)]:
        same = f"{_short(shared[0][0])} and {_short(shared[0][1])}"
        line += f"; {sum(map(len, shared))} of them are the same to it as another one, such as {same}"
    return line


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 60 else f"{prompt[:40]}...{prompt[-17:]}")
