"""What a rule that chooses prompts asks for, before it can choose."""

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Needs:
    """What is sampled, and what is remembered, for a rule of ``harness.rules.selection.RULES``."""

    samples: int = 1
    """Deterministic samples of each candidate."""
    step_share: float = 1.0
    """Share of the schedule's steps that such a sample takes."""
    reads_capability: bool = False
    reads_ledger: bool = False
    """Outcomes of trained prompts, and the candidates' text embeddings."""
    explores: bool = False
    """Whether ``choice.explore`` of its choices are left to chance."""
    level: tuple[float, float] | None = None
    """Least and greatest value of the one number that it needs, if any: ``choice.level``."""


PREDICTING = ("predicted", "predicted_hardest", "predicted_spread", "thompson")
"""Rules that ask the ledger what becomes of prompts that it has never seen."""
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
"""By ``selection``; those that are not named need one sample per candidate, and nothing else."""


def needs_of(selection: str) -> Needs:
    """What a rule asks for."""
    return NEEDS.get(selection, Needs())
