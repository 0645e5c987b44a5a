"""Pretraining recipes of the committed miniature models: ``adagrpo pretrain-miniature --recipe NAME``.

The models form one family, in which the difficulty ranges from pure chance to the prompt, see docs/testbed.md.
``strikes`` makes ``base/`` and ``weak/``, whose pictures turn out well or badly by chance alone; ``letters`` starts
from that base, ``letters-luck`` from ``letters``.
"""

from dataclasses import dataclass
from types import MappingProxyType

from harness.models.miniature.defects import LetterDefects, Strikes


@dataclass(frozen=True)
class Stage:
    """Stage of pretraining on its own pictures; it starts from the averaged weights of the stage before."""

    name: str
    """Name of the folder that its model is written to."""
    steps: int
    learning_rate: float
    """Peak learning rate; the schedule is a linear warm-up, constant, then linear decay to zero."""
    pictures: Strikes | LetterDefects
    decay_share: float = 0.5
    """Share of the stage's steps, at its end, over which the learning rate decays."""
    kept: tuple[tuple[int, str], ...] = ()
    """Intermediate models to save: number of steps and name."""

    def learning_rate_at(self, step: int, warmup_steps: int) -> float:
        """Learning rate of a step, counted from 0."""
        decay_steps = max(1, round(self.decay_share * self.steps))
        return self.learning_rate * min(1.0, (step + 1) / warmup_steps, (self.steps - step) / decay_steps)


@dataclass(frozen=True)
class Recipe:
    """Settings of a pretraining run."""

    stages: tuple[Stage, ...]
    start: str | None = None
    """Committed model to start from; None starts from random weights."""
    seed: int = 0
    batch_size: int = 128
    warmup_steps: int = 100
    ema_decay: float = 0.998
    pictures: int = 60_000
    """Number of pictures drawn for each stage."""
    save_every: int = 250


def _letters(stage: Stage, start: str, seed: int) -> Recipe:
    return Recipe((stage,), start, seed, batch_size=64, warmup_steps=30, ema_decay=0.99, pictures=30_000)


RECIPES = MappingProxyType(
    {
        # The first stage learns to spell from clean pictures. Later stages learn from pictures of mixed quality, some
        # of them struck out, as web-scale models have seen good and bad pictures: reinforcement learning then has to
        # find the better part of what the model can already do, which is the same part for every prompt.
        "strikes": Recipe(
            (
                Stage("clean", 4200, 2e-3, Strikes()),
                Stage("mixed", 1500, 1e-3, Strikes(0.5)),
                Stage("harsh", 900, 1e-3, Strikes(0.4, (5.0, 13.0)), kept=((200, "weak"),)),
                Stage("base", 300, 5e-4, Strikes(0.33, (5.0, 13.0)), decay_share=0.9),
            )
        ),
        "letters": _letters(Stage("letters", 1200, 1.5e-3, LetterDefects(0.1), decay_share=0.6), "base", seed=22),
        # The same letters, but chance matters more than the letter.
        "letters-luck": _letters(
            Stage("letters-luck", 300, 1e-3, LetterDefects(0.3), decay_share=0.6), "letters", seed=21
        ),
    }
)
