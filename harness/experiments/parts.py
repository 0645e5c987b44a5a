"""Files of a measurement that is made in parts, so that it can be interrupted and resumed."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from analysis.runs.sources import numbers_sha256
from harness.foundation.files import write_atomically

Arrays = Mapping[str, np.ndarray]


@dataclass
class Parts:
    """Parts of a measurement, and its progress.

    Attributes:
        folder: folder of the files, with a subfolder per code: the present one is recorded beside the numbers.
        total: size of the whole measurement.
        unit: unit of sizes, in the plural.
        say: called with lines of progress.
    """

    folder: Path
    total: int
    unit: str
    say: Callable[[str], object]
    done: int = 0
    computed: int = 0

    def __post_init__(self) -> None:
        self.folder /= numbers_sha256()[:10]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.began = time.monotonic()

    def get(self, name: str, size: int, make: Callable[[], Arrays]) -> Arrays:
        """Arrays of a part, read from its file if that exists, else made by ``make`` and written atomically."""
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
