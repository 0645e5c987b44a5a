"""Names that become names of files and folders."""

import re

from harness.foundation.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?")


def require_name(name: str) -> str:
    """Return a text that can safely name a file or folder on every file system. Raises ValueError for any other."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise ValueError(
            "is no name: use at most 100 letters, digits, '_', '-' and '.', the last two not at the start, no '.' at "
            "the end"
        )
    return name


def check_name(name: str, where: str) -> str:
    """``require_name`` with a ConfigError that begins with ``where``."""
    try:
        return require_name(name)
    except ValueError as error:
        raise ConfigError(f"{where}: {name!r:.100} {error}") from None
