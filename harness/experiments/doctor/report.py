"""What the doctor found, to print and to act on."""

from dataclasses import dataclass
from typing import NamedTuple


class Finding(NamedTuple):
    """One fact about the machine, or an estimate."""

    area: str
    text: str
    problem: str | None = None
    """What is missing and what to do about it; None if nothing is."""
    details: tuple[str, ...] = ()


@dataclass
class Report:
    """All that was looked at for a profile."""

    profile: str
    findings: list[Finding]

    @property
    def missing(self) -> list[str]:
        """What keeps the profile from running here; empty if nothing does."""
        return [f"{finding.area}: {finding.problem}" for finding in self.findings if finding.problem is not None]

    def lines(self) -> list[str]:
        """What to print."""
        lines = [f"profile {self.profile}"]
        for area, text, problem, details in self.findings:
            lines.append(f"{' ' if problem is None else '!'} {area:9}{text}")
            lines += [f"{'':15}{detail}" for detail in details]
        return (
            [*lines, "missing:", *(f"- {line}" for line in self.missing)]
            if self.missing
            else [*lines, "nothing is missing"]
        )


def size(count: float) -> str:
    """Bytes for people: ``61.9 GiB``."""
    for unit in ("KiB", "MiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} GiB"
