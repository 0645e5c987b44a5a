"""Files of a measurement that is done part by part, so that it can be interrupted and goes on where it was."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from harness.foundation.files import write_atomically

Arrays = Mapping[str, np.ndarray]


@dataclass
class Parts:
    """Parts of a measurement, and how far it is.

    Attributes:
        folder: of the files.
        total: the measurement's size.
        unit: what is counted, in the plural.
        say: receives lines of progress.
    """

    folder: Path
    total: int
    unit: str
    say: Callable[[str], object]
    done: int = 0
    computed: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.began = time.monotonic()

    def get(self, name: str, size: int, make: Callable[[], Arrays]) -> Arrays:
        """A part, from its file if it is there, else made and written in one step."""
        path = self.folder / f"{name}.npz"
        self.done += size
        if not path.exists():
            buffer = BytesIO()
            np.savez(buffer, allow_pickle=False, **make())
            write_atomically(path, buffer.getvalue())
            self.computed += size
            if size:
                left = (time.monotonic() - self.began) / self.computed * (self.total - self.done)
                shown = f"{left:.0f} seconds" if left < 120 else f"{left / 60:.0f} minutes"
                self.say(f"{name}: {self.done:,} of {self.total:,} {self.unit}, {shown} left")
        return dict(np.load(path, allow_pickle=False))
