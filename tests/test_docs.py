"""Every command in README and docs is one: it is parsed, and what it would run is composed.

Commands that only look are executed; those whose words name a user's files are parsed alone. No GPU is needed.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from harness.cli import parse
from harness.config import ROOT, compose
from harness.experiments.grid import expand_grid, parse_seeds

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_FILE = re.compile(r"[\w.-]+(/[\w.-]+)+|[\w./-]+\.(yaml|txt|py)")


def is_elsewhere(word: str) -> bool:
    """Whether a word names what is not here: a run of the user's, or a file of theirs."""
    value = word.partition("=")[2].partition(":")[0] or word.partition(":")[0]
    return any(mark in word for mark in ("EXPERIMENT", "RUN", "...")) or (
        bool(_FILE.fullmatch(value)) and not (ROOT / value).exists()
    )


def commands(path: Path) -> Iterator[list[str]]:
    """The words of every line of a page's code blocks that calls ``adagrpo``."""
    for token in MarkdownIt().parse(path.read_text(encoding="utf-8")):
        if token.type in ("code_block", "fence"):
            for line in token.content.replace("\\\n", " ").splitlines():
                if line.strip().startswith("adagrpo "):
                    words = shlex.split(line, comments=True)
                    end = next((i for i, word in enumerate(words) if word in (">", "&&", "|", "&")), len(words))
                    yield words[1:end]


FOUND = {shlex.join(words): words for page in PAGES for words in commands(page)}


def test_the_pages_have_commands() -> None:
    assert len(FOUND) > 40


@pytest.mark.parametrize("command", FOUND)
def test_a_command_in_the_docs_is_one(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = FOUND[command]
    if {"--help", "--version"} & set(words):
        with pytest.raises(SystemExit) as ended:
            parse(words)
        assert ended.value.code == 0
        return
    call = parse(words)
    if any(is_elsewhere(word) for word in words[1:] if not word.startswith("prompts.")):
        return
    told = call.keywords
    if words[0] == "show-config" or told.get("list"):
        assert call() == 0
    elif words[0] == "grid":
        seeds = parse_seeds(told["seeds"]) if told["seeds"] else None
        assert expand_grid(told["grid"], told["overrides"], profile=told["profile"], only=told["only"], seeds=seeds)
    elif words[0] in ("train", "launch"):
        overrides = [word for word in told["overrides"] if not word.startswith("prompts.")]
        compose(told["profile"] or "miniature", told["method"], overrides=overrides)


def test_every_pinned_package_is_listed_with_a_licence() -> None:
    from tests.audit import HEAD, PAGE, pinned

    table = PAGE.read_text(encoding="utf-8").partition(HEAD)[2]
    listed = [name for line in table.splitlines() for name in line.split("|")[2].strip().split(", ")]
    assert sorted(listed) == sorted(pinned())
