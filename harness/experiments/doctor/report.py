"""What the doctor found, to print and to act on."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Finding:
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
    findings: list[Finding] = field(default_factory=list)

    @property
    def missing(self) -> list[str]:
        """What keeps the profile from running here; empty if nothing does."""
        return [f"{finding.area}: {finding.problem}" for finding in self.findings if finding.problem is not None]

    def lines(self) -> list[str]:
        """What to print."""
        width = max(len(finding.area) for finding in self.findings)
        lines = [f"profile {self.profile}"]
        for finding in self.findings:
            mark = " " if finding.problem is None else "!"
            lines.append(f"{mark} {finding.area:{width}}  {finding.text}")
            lines += [f"  {'':{width}}    {detail}" for detail in finding.details]
        if not self.missing:
            return [*lines, "nothing is missing"]
        return [*lines, "missing:", *(f"- {line}" for line in self.missing)]


def size(count: float) -> str:
    """Bytes for people: ``61.9 GiB``."""
    for unit in ("KiB", "MiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} GiB"
