"""Warnings about long prompts that text encoders and rewards truncate, one per reader and prompt list."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from harness.foundation.errors import HarnessError


@dataclass(frozen=True)
class TextReader:
    """A text encoder that reads only the start of a long prompt."""

    name: str
    limit: int
    """Number of tokens that it reads, including the end token."""
    encode: Callable[[Sequence[str]], Sequence[Sequence[int]]]
    """Function from prompts to their tokens, not truncated."""


class ReadsText(Protocol):
    """Protocol of policies and rewards that read prompts."""

    def text_readers(self) -> Sequence[TextReader]:
        """Text encoders that read only the start of a long prompt."""


def all_tokens(tokenizer: Any, prompts: Sequence[str]) -> Sequence[Sequence[int]]:
    """Tokens by a tokenizer of transformers, not truncated and without its warning about their number."""
    return tokenizer(list(prompts), truncation=False, verbose=False).input_ids if prompts else []


def chat_tokens(tokenizer: Any, prompts: Sequence[str], enable_thinking: bool) -> Sequence[Sequence[int]]:
    """Tokens, not truncated, of prompts as user messages in the tokenizer's chat template."""
    settings = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": enable_thinking}
    said = [tokenizer.apply_chat_template([{"role": "user", "content": text}], **settings) for text in prompts]
    return all_tokens(tokenizer, said)


def truncations(sources: Iterable[ReadsText], prompts: Sequence[str], where: str) -> list[str]:
    """Warnings, one for each reader that truncates prompts: their number, the first, and whether any become equal.

    ``where`` is the name of the prompt list in the warnings.
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
