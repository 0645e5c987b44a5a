"""Checkpoints of a run: one folder per saved iteration, complete or absent, with a manifest of its files' checksums.

``checkpoints/iteration-0000025/`` holds ``state.pt``, for engines that shard weights also ``shards/``, and
``manifest.json``: the iteration, the trained reward on validation prompts if it was measured there, and size and sha256
of each file.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.foundation.errors import ConfigError, FileError
from harness.foundation.files import PARTIAL, file_sha256, sync, sync_all, write_atomically, writing

STATE, MANIFEST = "state.pt", "manifest.json"
_NAME = "iteration-"


def folder_of(checkpoints: Path, iteration: int) -> Path:
    """Folder of an iteration's checkpoint."""
    return checkpoints / f"{_NAME}{iteration:07d}"


def partial_of(folder: Path) -> Path:
    """Temporary folder that is filled and then renamed to the checkpoint's folder."""
    return folder.with_name(f".{folder.name}{PARTIAL}")


def saved(checkpoints: Path) -> list[Path]:
    """Folders of all checkpoints, damaged ones included, newest first."""
    return sorted(checkpoints.glob(f"{_NAME}*"), reverse=True)


def size_of_newest(checkpoints: Path) -> int:
    """Size of the newest checkpoint in bytes; 0 before the first."""
    return sum(map(_size, saved(checkpoints)[:1]))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def completing(folder: Path, validation: float | None) -> Iterator[Path]:
    """Context manager that yields ``partial_of(folder)`` to be filled, then syncs it and renames it to ``folder``.

    Args:
        folder: see ``folder_of``; an existing one is replaced.
        validation: trained reward on validation prompts at this iteration; None if it was not measured.

    Raises:
        FileError: the checkpoint cannot be written; its partial folder, whose size it has, has been removed.
    """
    partial = partial_of(folder)
    try:
        with writing(folder):
            partial.mkdir(parents=True, exist_ok=True)
            yield partial
            files = sorted(path for path in partial.rglob("*") if path.is_file())
            sums = {path.relative_to(partial).as_posix(): (path.stat().st_size, file_sha256(path)) for path in files}
            manifest = {"iteration": _iteration(folder), "validation": validation, "files": sums}
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
            sync_all(partial)
            shutil.rmtree(folder, ignore_errors=True)  # the same iteration, trained again from an earlier checkpoint
            partial.rename(folder)
            sync(folder.parent)
    except BaseException as error:
        if isinstance(error, FileError):
            error.size = _size(partial)
        shutil.rmtree(partial, ignore_errors=True)
        raise


def note_validation(folder: Path, validation: float) -> None:
    """Write into a checkpoint's manifest what was measured at its iteration only after it had been saved."""
    manifest = _manifest(folder)
    if manifest:
        content = json.dumps({**manifest, "validation": validation}, indent=1) + "\n"
        write_atomically(folder / MANIFEST, content)


def newest_whole(checkpoints: Path, before: int | None = None, logged: int | None = None) -> Path | None:
    """``state.pt`` of the newest usable checkpoint; None before the first. Others are reported on stderr.

    Args:
        checkpoints: folder of the run's checkpoints.
        before: an iteration; only earlier checkpoints are considered. None considers all.
        logged: last iteration in the log, without whose lines a later checkpoint is of no use. None uses all.

    Raises:
        ConfigError: all checkpoints are damaged, or later than the log.
    """
    found = [folder for folder in saved(checkpoints) if before is None or _iteration(folder) < before]
    for folder in found:
        is_later = logged is not None and _iteration(folder) > logged
        problem = f"{folder}: metrics.jsonl ends at iteration {logged}" if is_later else _problem(folder)
        if problem is None:
            return folder / STATE
        then = "the one before is taken" if folder != found[-1] else "none is left"
        print(f"adagrpo: warning: {problem}; {then}", file=sys.stderr, flush=True)
    if found:
        raise ConfigError(f"{problem}; put back a copy, or delete {checkpoints} to begin again without it")
    return None


def forget_after(checkpoints: Path, iteration: int) -> None:
    """Remove checkpoints of later iterations, which are damaged or no longer needed.

    Another process may do the same at the same time.
    """
    for folder in saved(checkpoints):
        if _iteration(folder) > iteration:
            shutil.rmtree(folder, ignore_errors=True)


def prune(checkpoints: Path, keep: int) -> None:
    """Remove all checkpoints except the newest ``keep`` and the one with the best validation reward."""
    folders = saved(checkpoints)
    measured = [(value, folder) for folder in folders if (value := _manifest(folder).get("validation")) is not None]
    kept = {*folders[:keep], *([max(measured)[1]] if measured else [])}
    for folder in set(folders) - kept:
        shutil.rmtree(folder)


def _iteration(folder: Path) -> int:
    digits = folder.name.removeprefix(_NAME)
    return int(digits) if digits.isdecimal() else 0


def _manifest(folder: Path) -> dict[str, Any]:
    """Content of a checkpoint's manifest; empty if it is damaged or missing."""
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
        return content if content["iteration"] == _iteration(folder) and STATE in content["files"] else {}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}


def _problem(folder: Path) -> str | None:
    """Description of a checkpoint's damage, or None."""
    files = _manifest(folder).get("files")
    if files is None:
        return f"{folder / MANIFEST}: is damaged or missing"
    for name, sums in files.items():
        file = folder / name
        try:
            is_whole = [file.stat().st_size, file_sha256(file)] == sums
        except OSError:
            is_whole = False
        if not is_whole:
            return f"{file}: is damaged or missing"
    return None
