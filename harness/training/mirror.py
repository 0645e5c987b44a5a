"""wandb as a mirror of a run's logs. It is never read back, a run does not need it, and waits for it are bounded."""

import hashlib
import math
import os
import queue
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from harness.config import LoggingConfig
from harness.foundation.records import read_lines
from harness.runs.directory import RunDirectory

_PATIENCE_SECONDS = 60.0
"""Longest wait for wandb to start, and again for it to finish."""


class Mirror:
    """Context manager around a wandb run; does nothing if wandb is off.

    All calls of wandb are made in a separate thread: an exception is reported in one line, and a call that hangs is
    abandoned. A resumed run continues the same wandb run, which receives everything in the run's own logs.
    """

    def __init__(self, run: RunDirectory, config: LoggingConfig, enabled: bool) -> None:
        self._directory, self._config = run, config
        self._run: Any = None
        self._is_on = enabled and config.wandb != "off"
        self._first_step = 0
        """First step that wandb does not have yet."""
        self._has_complained = False
        self._tasks: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        if self._is_on:
            begun = threading.Event()
            self._thread.start()
            self._tasks.put(self._begin)
            self._tasks.put(begun.set)
            self._replay()
            begun.wait(_PATIENCE_SECONDS)

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_on:
            self._with_run(lambda run: run.finish())
            self._tasks.put(None)
            self._thread.join(_PATIENCE_SECONDS)
            if self._thread.is_alive():
                self._complain(f"not done after {_PATIENCE_SECONDS:g} s")

    def training(self, record: Mapping[str, Any]) -> None:
        """Mirror a record of metrics.jsonl."""
        self._log(record, record["iteration"])

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """Mirror a record of eval.jsonl, without the values of single prompts, and its gallery if there is one."""
        split, iteration = record["split"], record["iteration"]
        self._log({split: record["metrics"]}, iteration)
        picture = self._directory.folder / "images" / f"{split}-{iteration:05d}.png"
        if self._is_on and picture.exists():
            self._with_run(lambda run: run.log({split: self._wandb.Image(str(picture))}, step=iteration), iteration)

    def _log(self, metrics: Mapping[str, Any], step: int) -> None:
        if self._is_on:
            flat = dict(_flat(metrics))
            self._with_run(lambda run: run.log(flat, step=step), step)

    def _with_run(self, call: Callable[[Any], object], step: float = math.inf) -> None:
        """Queue a call with the wandb run; skipped if wandb could not start or has this step already."""
        self._tasks.put(lambda: call(self._run) if self._run is not None and step >= self._first_step else None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                task()
            except (Exception, SystemExit) as error:  # noqa: BLE001 - nothing that a mirror does may end a run
                self._complain(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")

    def _complain(self, problem: str) -> None:
        if not self._has_complained:
            self._has_complained = True
            with suppress(OSError, ValueError):
                print(f"wandb: {problem}; the run goes on, its own logs have everything", file=sys.stderr, flush=True)

    def _begin(self) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        self._wandb = wandb
        directory = self._directory
        mode: Literal["online", "offline"] = "online" if self._config.wandb == "online" else "offline"
        name = f"{directory.config.experiment}/{directory.run_id}"
        # A function of the name, so that a resumed run finds its wandb run on any machine.
        run_id = hashlib.sha256(name.encode()).hexdigest()[:16]
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "adagrpo"),
            group=directory.config.experiment,
            name=directory.run_id,
            id=run_id,
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
        self._run = run
        if mode == "offline":
            # The replay contains everything that the earlier files have, and what they lack if the process was killed.
            for earlier in (directory.folder / "wandb").glob(f"offline-run-*-{run_id}"):
                if earlier != Path(run.dir).parent:
                    shutil.rmtree(earlier, ignore_errors=True)
        else:
            self._first_step = run.starting_step

    def _replay(self) -> None:
        """Mirror everything that is already in the run's logs."""
        files = (("metrics.jsonl", self.training), ("eval.jsonl", self.evaluation))
        logged = [(record, mirror) for file, mirror in files for record in read_lines(self._directory.folder / file)]
        for record, mirror in sorted(logged, key=lambda entry: entry[0]["iteration"]):
            mirror(record)


def _flat(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Numbers of nested mappings, named ``outer/inner``."""
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", value
