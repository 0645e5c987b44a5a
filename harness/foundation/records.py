"""What a run leaves on record, and whether all of it is there as it was written. Imports nothing heavy.

A run is finished when metrics.jsonl has iterations 1 to N once each, eval.jsonl all evaluations that the configuration
asks for, and the final weights are saved. At that moment size and sha256 of these files go into status.json: later, a
look at the sizes tells whether they are still whole, and whoever reads them compares the bytes.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.foundation.errors import ConfigError
from harness.foundation.files import file_sha256, read_text

LOGS = ("metrics.jsonl", "eval.jsonl")
FINAL = "checkpoints/final"

STATES = ("waiting", "running", "preempted", "failed", "finished")
"""What status.json can say. A run is made waiting; whoever claims it sets it running; from there it comes to finished,
failed (it cannot go on as it is), preempted (a signal asked it to end, and it saved), or waiting again (whoever watched
it stopped it). From each of these it can be set running again; a finished one only if a file of it is lost. A killed
process leaves it running: that nobody holds its lock says so."""

BROKEN = ("damaged", "incomplete")
"""States of runs whose status.json cannot be read, or that were finished and are not whole any more."""

Sealed = Mapping[str, tuple[int, str]]
"""Size and sha256 of files, by their paths in the run's directory."""


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a log; none if it is not there. Half a line at its end, as a kill leaves one, is left out.

    Raises:
        ConfigError: any other line is no object, or has no iteration.
    """
    lines = read_text(path).split("\n") if path.exists() else []
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or type(record.get("iteration")) is not int:
            if number == len(lines):  # what follows the last line break: nothing, or half a line
                break
            raise ConfigError(f"{path}: line {number} is damaged; put back a copy of the file, or {_AGAIN}")
        records.append(record)
    return records


_AGAIN = "move the run's folder away and train it again"


def due_evaluations(config: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Iteration and split of each evaluation that a resolved configuration asks for; none if it does not say."""
    last, settings = config["iterations"], config.get("evaluation") or {}
    if "interval" not in settings:
        return []
    due = [(iteration, "validation") for iteration in range(0, last, settings["interval"])] + [(last, "validation")]
    due += [(0, "test")] if settings.get("base_test") else []
    due += [(last, "test")] if settings.get("test") else []
    return sorted(due)


def gaps(
    config: Mapping[str, Any], iterations: Sequence[int], evaluated: Collection[tuple[int, str]], until: int
) -> list[str]:
    """What the logs lack, or have twice, of iterations up to ``until``, in words, each with the name of the log.

    Args:
        config: resolved.
        iterations: of the lines of metrics.jsonl.
        evaluated: iteration and split of the lines of eval.jsonl.
        until: last iteration that is looked at.
    """
    counts = Counter(iterations)
    missing = [iteration for iteration in range(1, until + 1) if not counts[iteration]]
    twice = [iteration for iteration in range(1, until + 1) if counts[iteration] > 1]
    absent = [(i, split) for i, split in due_evaluations(config) if i <= until and (i, split) not in evaluated]
    found = [f"metrics.jsonl: iteration {_first(missing)} is missing"] if missing else []
    found += [f"metrics.jsonl: iteration {_first(twice)} stands twice"] if twice else []
    found += [f"eval.jsonl: the {absent[0][1]} of iteration {absent[0][0]} is missing"] if absent else []
    return found


def gaps_of(folder: Path, config: Mapping[str, Any], until: int) -> list[str]:
    """``gaps`` of a run's directory. Raises ConfigError as ``read_lines``."""
    metrics, evaluations = (read_lines(folder / name) for name in LOGS)
    evaluated = {(line["iteration"], str(line.get("split"))) for line in evaluations}
    return gaps(config, [line["iteration"] for line in metrics], evaluated, until)


def seal(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and sha256 of what a finished run leaves, by path."""
    files = [folder / name for name in LOGS if (folder / name).is_file()]
    files += sorted(path for path in (folder / FINAL).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.stat().st_size, file_sha256(path)) for path in files}


def damage(folder: Path, sealed: Sealed) -> str | None:
    """Which file of a finished run is gone or has another size now; None if none has."""
    for name, (size, _) in sealed.items():
        try:
            found = (folder / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found:,} bytes, not the {size:,} that it had when the run finished"
    return None


def require_sealed(path: Path, sealed: Sealed, name: str) -> None:
    """Raise ConfigError unless a file of a run is as it was sealed; one without a seal is not asked."""
    if name in sealed and file_sha256(path) != sealed[name][1]:
        raise ConfigError(f"{path}: is not what it was when the run finished; put back a copy, or {_AGAIN}")


def checked(status: Mapping[str, Any]) -> dict[str, Any]:
    """A status with a checksum of itself."""
    content = {key: value for key, value in status.items() if key != "check"}
    return {**content, "check": _digest(content)}


def parse_status(text: str) -> dict[str, Any]:
    """The content of a status.json. Raises ValueError, which says what is wrong, if it is damaged."""
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("is no status") from None
    if not isinstance(content, dict) or content.get("state") not in STATES:
        raise ValueError("is no status")
    if "check" in content and checked(content)["check"] != content["check"]:
        raise ValueError("its checksum is wrong")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _first(numbers: Iterable[int]) -> str:
    first, *others = numbers
    return f"{first} (and {len(others)} more)" if others else str(first)
