"""Files that a run leaves, and checks that they are complete and unchanged. Nothing heavy is imported.

A run is finished when metrics.jsonl has iterations 1 to N once each, eval.jsonl has all evaluations that the
configuration asks for, and the final weights are saved. Size and sha256 of these files are then written to status.json:
a later look at a run compares the sizes, and whoever reads the files compares the hashes.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from harness.foundation.errors import ConfigError
from harness.foundation.files import file_sha256, read_text

LOGS = ("metrics.jsonl", "eval.jsonl")
FINAL = "checkpoints/final"

STATES = ("waiting", "running", "preempted", "failed", "finished")
"""States in status.json. A run is created waiting, and the process that claims it sets it running. It then becomes
finished, failed (it cannot go on as it is), preempted (a signal asked it to end, and it saved), or waiting again
(``on_validation`` stopped it). From each of these it can be set running again, from finished only if one of its files
is lost. The run of a killed process stays running; it is recognised by its lock, which nobody holds."""

BROKEN = ("damaged", "incomplete")
"""States of runs whose status.json cannot be read, or whose files are no longer what they were when finished."""

Sealed = Mapping[str, tuple[int, str]]
"""Size and sha256 of files, by path in the run's directory."""


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Records of a log; none if the file is missing. An incomplete last line, as a kill leaves it, is skipped.

    Raises:
        ConfigError: any other line is not an object with an integer iteration.
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


def last_logged(folder: Path) -> int:
    """Last iteration in a run's metrics.jsonl; 0 before the first. Raises ConfigError like ``read_lines``."""
    return max((line["iteration"] for line in read_lines(folder / LOGS[0])), default=0)


_AGAIN = "move the run's folder away and train it again"


def due_evaluations(config: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Iteration and split of each evaluation in a resolved configuration; none if it has no evaluation interval."""
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
    """Descriptions of what the logs lack or repeat up to iteration ``until``, each beginning with the name of the log.

    Args:
        config: resolved configuration.
        iterations: iterations of the lines of metrics.jsonl.
        evaluated: iteration and split of the lines of eval.jsonl.
        until: last iteration that is checked.
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
    """``gaps`` of a run's directory. Raises ConfigError like ``read_lines``."""
    metrics, evaluations = (read_lines(folder / name) for name in LOGS)
    evaluated = {(line["iteration"], str(line.get("split"))) for line in evaluations}
    return gaps(config, [line["iteration"] for line in metrics], evaluated, until)


def seal(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and sha256 of a finished run's logs and final weights, by path."""
    files = [folder / name for name in LOGS if (folder / name).is_file()]
    files += sorted(path for path in (folder / FINAL).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.stat().st_size, file_sha256(path)) for path in files}


def damage(folder: Path, sealed: Sealed) -> str | None:
    """Description of the first file of a finished run that is missing or has another size; None if there is none."""
    for name, (size, _) in sealed.items():
        try:
            found = (folder / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found:,} bytes, not the {size:,} that it had when the run finished"
    return None


def require_sealed(path: Path, sealed: Sealed, name: str) -> None:
    """Raise ConfigError if a file of a run differs from its sealed sha256; a file without a seal passes."""
    if name in sealed and file_sha256(path) != sealed[name][1]:
        raise ConfigError(f"{path}: is not what it was when the run finished; put back a copy, or {_AGAIN}")


def checked(status: Mapping[str, Any]) -> dict[str, Any]:
    """A status with a checksum of its content added under ``check``."""
    content = {key: value for key, value in status.items() if key != "check"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {**content, "check": digest[:16]}


def parse_status(text: str) -> dict[str, Any]:
    """Content of a status.json. Raises ValueError, which says what is wrong, if it is damaged."""
    try:
        content = json.loads(text)
        sizes = [size for size, _ in content.get("files", {}).values()]
        numbers = [content.get("iteration", 0), content.get("iterations") or 0, *sizes]
        is_dated = "updated" not in content or datetime.fromisoformat(content["updated"]).tzinfo is not None
    except (AttributeError, RecursionError, TypeError, ValueError):
        raise ValueError("is no status") from None
    if content.get("state") not in STATES or not is_dated or any(type(number) is not int for number in numbers):
        raise ValueError("is no status")
    if "check" in content and checked(content)["check"] != content["check"]:
        raise ValueError("its checksum is wrong")
    return content


def _first(numbers: Iterable[int]) -> str:
    first, *others = numbers
    return f"{first} (and {len(others)} more)" if others else str(first)
