"""Requirements of the rules that choose prompts."""

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Needs:
    """Samples and records that a rule of ``harness.rules.selection.RULES`` needs for its choice."""

    samples: int = 1
    """Number of deterministic samples of each candidate."""
    step_share: float = 1.0
    """Share of the schedule's steps that each of these samples takes."""
    reads_capability: bool = False
    reads_ledger: bool = False
    """Whether the rule reads outcomes of trained prompts, and the candidates' text embeddings."""
    explores: bool = False
    """Whether a share ``choice.explore`` of its choices is made at random."""
    level: tuple[float, float] | None = None
    """Range of the rule's parameter, ``choice.level``; None for a rule without one."""


PREDICTING = ("predicted", "predicted_hardest", "predicted_spread", "thompson")
"""Rules that predict, from the ledger, outcomes of prompts that were never trained on."""
NEEDS: dict[str, Needs] = {
    "random": Needs(samples=0),
    "curriculum": Needs(reads_capability=True),
    "quantile": Needs(level=(0.0, 1.0)),
    "fixed": Needs(level=(-inf, inf)),
    "anchored": Needs(reads_capability=True, level=(-inf, inf)),
    "preview": Needs(reads_capability=True, step_share=0.25),
    "screened": Needs(samples=2),
    **dict.fromkeys(
        (*PREDICTING, "beta", "belief", "variance"),
        Needs(samples=0, reads_ledger=True, explores=True),
    ),
    "skipping": Needs(samples=0, reads_ledger=True),
    "replay": Needs(samples=0, reads_ledger=True, level=(0.0, 1.0)),
    "bandit": Needs(reads_capability=True, reads_ledger=True, explores=True),
}
"""Requirements by value of ``selection``; rules that are not listed need only one sample per candidate."""


def needs_of(selection: str) -> Needs:
    """Requirements of a rule."""
    return NEEDS.get(selection, Needs())
