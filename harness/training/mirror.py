"""wandb as a mirror of a run's logs: never read back, never needed, and nothing that it does ends a run."""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from harness.config import LoggingConfig
from harness.runs.directory import RunDirectory

_PATIENCE_SECONDS = 60.0
"""For wandb to begin, and again to end."""


class Mirror:
    """A wandb run, or nothing at all when it is off; a context manager.

    A resumed run continues the same wandb run. Whatever wandb raises is one line, and the end of the mirror.
    """

    def __init__(self, run: RunDirectory, config: LoggingConfig, enabled: bool) -> None:
        self._directory, self._config = run, config
        self._run: Any = None
        if enabled and config.wandb != "off":
            self._try(self._begin)

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, *_: object) -> None:
        self._try(lambda: self._run and self._run.finish())

    def training(self, record: Mapping[str, Any]) -> None:
        """Mirror a line of metrics.jsonl."""
        self._log(record, record["iteration"])

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """Mirror a line of eval.jsonl, without single prompts, and its pictures if it has some."""
        split, iteration = record["split"], record["iteration"]
        self._log({split: record["metrics"]}, iteration)
        picture = self._directory.folder / "images" / f"{split}-{iteration:05d}.png"
        if self._run is not None and picture.exists():
            self._try(lambda: self._run.log({split: self._wandb.Image(str(picture))}, step=iteration))

    def _log(self, metrics: Mapping[str, Any], step: int) -> None:
        if self._run is not None:
            self._try(lambda: self._run.log(dict(_flat(metrics)), step=step))

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - nothing that a mirror does may end a run
            self._run = None
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            print(f"wandb: {problem}; the run goes on, its own logs have everything", file=sys.stderr, flush=True)

    def _begin(self) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        self._wandb, directory = wandb, self._directory
        mode: Literal["online", "offline"] = "online" if self._config.wandb == "online" else "offline"
        # The same run is the same wandb run, wherever it is resumed.
        name = f"{directory.config.experiment}/{directory.run_id}"
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "adagrpo"),
            group=directory.config.experiment,
            name=directory.run_id,
            id=hashlib.sha256(name.encode()).hexdigest()[:16],
            resume="allow",
            mode=mode,
            dir=directory.folder,
            config=directory.config.model_dump(mode="json"),
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=_PATIENCE_SECONDS,
                login_timeout=_PATIENCE_SECONDS,
                finish_timeout=_PATIENCE_SECONDS,
            ),
        )


def _flat(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Numbers of nested mappings, as ``outer/inner``."""
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", value
