"""wandb as a mirror of a run's logs: never read back, never needed."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.config import LoggingConfig
from harness.runs import RunDirectory


class Mirror:
    """A wandb run, or nothing at all when it is off; a context manager."""

    def __init__(self, run: RunDirectory, config: LoggingConfig, enabled: bool) -> None:
        self._run: Any = None
        if enabled and config.wandb != "off":
            os.environ.setdefault("WANDB_SILENT", "true")
            import wandb

            self._wandb = wandb
            self._run = wandb.init(
                project=config.wandb_project,
                group=run.config.experiment,
                name=run.run_id,
                mode=config.wandb,
                dir=run.folder,
                config=run.config.model_dump(mode="json"),
            )

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, *_: object) -> None:
        if self._run is not None:
            self._run.finish()

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Mirror numbers; nested mappings become ``outer/inner``."""
        if self._run is not None:
            flat: dict[str, Any] = {}
            for key, value in metrics.items():
                flat |= {f"{key}/{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {key: value}
            self._run.log({k: v for k, v in flat.items() if isinstance(v, int | float)}, step=step)

    def image(self, name: str, path: Path, step: int) -> None:
        """Mirror a picture."""
        if self._run is not None:
            self._run.log({name: self._wandb.Image(str(path))}, step=step)
