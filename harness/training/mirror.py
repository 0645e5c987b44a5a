"""wandb as a mirror of a run's logs: never read back and never needed."""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from harness.config import LoggingConfig
from harness.runs.directory import RunDirectory

_PATIENCE_SECONDS = 60.0
"""For wandb to begin, and again to end."""


class Mirror:
    """A wandb run, or nothing at all when it is off; a context manager.

    The first thing that wandb raises is one line, and the end of the mirror. A resumed run continues the same wandb
    run: online at the step that it has, offline in a folder of its own, of which ``wandb sync`` makes one.
    """

    def __init__(self, run: RunDirectory, config: LoggingConfig, enabled: bool) -> None:
        self._directory, self._mode = run, config.wandb
        self._run: Any = None
        if enabled and config.wandb != "off":
            self._guarded(self._begin)

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, *_: object) -> None:
        if self._run is not None:
            self._guarded(self._run.finish)

    def training(self, record: Mapping[str, Any]) -> None:
        """Mirror a line of metrics.jsonl."""
        self._log(dict(_flat(record)), record["iteration"])

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """Mirror a line of eval.jsonl, without single prompts, and its pictures if it has some."""
        split, iteration = record["split"], record["iteration"]
        self._log(dict(_flat({split: record["metrics"]})), iteration)
        picture = self._directory.folder / "images" / f"{split}-{iteration:05d}.png"
        if self._run is not None and picture.exists():
            self._guarded(lambda: self._run.log({split: self._wandb.Image(str(picture))}, step=iteration))

    def _log(self, metrics: Mapping[str, float], step: int) -> None:
        if self._run is not None:
            self._guarded(lambda: self._run.log(metrics, step=step))

    def _guarded(self, call: Callable[[], object]) -> None:
        try:
            call()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - nothing that a mirror does may end a run
            self._run = None
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            with suppress(OSError, ValueError):
                print(f"wandb: {problem}; the run goes on, its own logs have everything", file=sys.stderr, flush=True)

    def _begin(self) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        self._wandb, run = wandb, self._directory
        # The same run is the same wandb run, wherever it is resumed.
        digest = hashlib.sha256(f"{run.config.experiment}/{run.run_id}".encode()).hexdigest()[:16]
        patience = dict.fromkeys(("init_timeout", "login_timeout", "finish_timeout"), _PATIENCE_SECONDS)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "adagrpo"),
            group=run.config.experiment,
            name=run.run_id,
            id=digest,
            resume="allow",
            mode="online" if self._mode == "online" else "offline",
            dir=run.folder,
            config=run.config.model_dump(mode="json"),
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", **patience),
        )


def _flat(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Numbers of nested mappings, as ``outer/inner``."""
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", value
