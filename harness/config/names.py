"""Names that become names of files and folders."""

import re

from harness.foundation.errors import ConfigError

MAX_LENGTH = 100
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?")


def problem_with_name(name: object) -> str | None:
    """Reason why something cannot safely name a file or folder on every file system; None if it can."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        return "is no name: use letters, digits, '_', '-' and '.', the last two not at the start, no '.' at the end"
    return f"is too long a name: at most {MAX_LENGTH} characters" if len(name) > MAX_LENGTH else None


def check_name(name: object, where: str) -> str:
    """Check a name that may become part of a path, and return it. Raises ConfigError that begins with ``where``."""
    problem = problem_with_name(name)
    if problem is not None:
        shown = repr(name)
        raise ConfigError(f"{where}: {shown if len(shown) < 100 else f'{shown[:60]}...'} {problem}")
    assert isinstance(name, str)
    return name
