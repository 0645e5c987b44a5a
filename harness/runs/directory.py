"""Directory of a run: configuration, status, logs and checkpoints. The only module that writes to results/runs/.

Launching and inspecting runs needs neither torch nor rewards; functions that need them import them locally.
"""

import json
import os
import pickle
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from harness import config as configuration
from harness.config import ConfigError, RunConfig
from harness.foundation import files, records
from harness.foundation.errors import CollectiveError, FileError, HarnessError, StopRun
from harness.foundation.files import append, read_text, write_atomically
from harness.foundation.places import WORK
from harness.foundation.plugins import explaining
from harness.runs import checkpoints, identity
from harness.runs.identity import fingerprints_of

RUNS = WORK / "results" / "runs"
_LONGEST_REASON = 500


@dataclass(frozen=True)
class RunDirectory:
    """Directory of one run, with methods to read and write its files."""

    folder: Path

    @property
    def run_id(self) -> str:
        """Name of the run."""
        return self.folder.name

    @property
    def config(self) -> RunConfig:
        """The resolved configuration."""
        return configuration.load(self.folder / "config.yaml")

    @property
    def checkpoints(self) -> Path:
        """Folder of the resumable checkpoints and the final weights."""
        return self.folder / "checkpoints"

    def status(self) -> dict[str, Any]:
        """State, iteration, iterations, reason and updated; for a finished run also files, see ``records.seal``.

        The state is one of ``records.STATES``, or damaged if status.json cannot be read, or incomplete if a finished
        run has lost or damaged files; the reason then says what to do. A run that has not been prepared is waiting, at
        iteration 0 of an unknown number (None).
        """
        path = self.folder / "status.json"
        unknown: dict[str, Any] = {"state": "waiting", "iteration": 0, "iterations": None, "reason": None}
        if not path.exists() and not (self.folder / records.FINAL).exists():
            return unknown
        try:
            status, state = unknown | records.parse_status(read_text(path)), "incomplete"
            lost = records.damage(self.folder, status.get("files", {})) if status["state"] == "finished" else None
        except ValueError as error:  # of read_text, too: a ConfigError is one
            lost = str(error) if isinstance(error, ConfigError) else f"{path}: is damaged: {error}"
            status, state = unknown, "damaged"
        if lost is None:
            return status
        remedy = f"put back a copy of it, or run  adagrpo train --resume {self.folder}"
        if self._is_lost(state):
            remedy = f"put the file back, or move {self.folder} away; no checkpoint is left to make it again from"
        return status | {"state": state, "reason": f"{lost}; {remedy}"}

    def _is_lost(self, state: str) -> bool:
        """Whether a run of this state has ended, as far as can be told, and has no checkpoint.

        Resumed, it would begin again and empty the logs that are left.
        """
        if state not in records.BROKEN or checkpoints.saved(self.checkpoints):
            return False
        if state == "incomplete" or (self.folder / records.FINAL).exists():
            return True
        try:
            return not records.gaps_of(self.folder, self.config.model_dump(), self.config.iterations)
        except ConfigError:
            return True

    def loss(self) -> str | None:
        """Why nothing may be written: the run is broken, and has no checkpoint to resume from; else None."""
        status = self.status()
        return status["reason"] if self._is_lost(status["state"]) else None

    def require_resumable(self) -> None:
        """Raise ConfigError if the run has a ``loss``."""
        if (loss := self.loss()) is not None:
            raise ConfigError(f"{self.folder}: {loss}")

    def set_status(
        self, state: str, iteration: int, iterations: int, reason: str | None = None, keep_failure: bool = False
    ) -> None:
        """Replace status.json atomically.

        Args:
            state: one of ``records.STATES``.
            iteration: iteration of the latest checkpoint.
            iterations: number of iterations of the whole run.
            reason: reason for the state, such as a failure, or None.
            keep_failure: keep the present state and reason if there is a reason, as when another process has failed.
        """
        with self._sole_writer():
            before = self.status()
            if keep_failure and before["reason"] is not None:
                state, reason = before["state"], before["reason"]
            sealed = {"files": records.seal(self.folder)} if state == "finished" else {}
            self._write_status(
                {"state": state, "iteration": iteration, "iterations": iterations, "reason": reason} | sealed
            )

    def note_unsaved(self, heard: str) -> str:
        """Set the state to preempted by a signal that left no time to save, unless the run has saved or finished.

        Returns the recorded state.
        """
        with self._sole_writer():
            status = self.status()
            if status["state"] not in ("finished", "preempted"):
                reason = f"{heard} received; no time to save, so that training goes on at {status['iteration']}"
                status |= {"state": "preempted", "reason": reason}
                self._write_status(status)
            return str(status["state"])

    def _sole_writer(self) -> AbstractContextManager[Any]:
        """Context manager in which no other process changes the status; several may fail at the same moment."""
        return files.lock(self.folder / "status.lock", wait=True) or nullcontext()

    @contextmanager
    def failure_noted(self) -> Iterator[None]:
        """Context manager that records exceptions by ``note_failure``; an echo is raised with its cause's message."""
        try:
            with explaining():
                yield
        except StopRun:  # no failure
            raise
        except Exception as error:
            try:
                cause, own = self.note_failure(error)
            except FileError:
                raise error from None  # the disk is full; the free lock shows that the run is not at work any more
            if cause != own and isinstance(error, CollectiveError):
                raise CollectiveError(f"{cause} (here: {error})") from error
            raise

    def note_failure(self, error: Exception) -> tuple[str, str]:
        """Set the run's state to failed, unless it is already, with an exception's type and message as the reason.

        If several processes execute the run, a failure of one makes the others fail with a CollectiveError. Such an
        echo is recorded only until its cause is, and it leaves the state unchanged, as does an exception that is no
        HarnessError: both may come from a killed process, after which the run can be tried again.

        Returns:
            The recorded reason, and this exception's own.
        """
        own = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        if several:
            own = f"rank {os.environ['RANK']}: {own}"
        is_echo = several and isinstance(error, CollectiveError)
        is_final = not several or (isinstance(error, HarnessError) and not is_echo)
        with self._sole_writer():
            status = self.status()
            known = status["reason"]
            if several and status["state"] == "failed":
                return known, own
            is_known = known is not None and (is_echo or f" {CollectiveError.__name__}: " not in known)
            if is_known and not is_final:
                return known, own
            state = "failed" if is_final else status["state"]
            self._write_status(status | {"state": state, "reason": own})
        return own, own

    def _write_status(self, content: Mapping[str, Any]) -> None:
        content = {**content, "updated": datetime.now(UTC).isoformat(timespec="seconds")}
        write_atomically(self.folder / "status.json", json.dumps(records.checked(content), indent=1) + "\n")

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Append one record as a JSON line. NaN and infinities raise ValueError, because JSON does not allow them."""
        append(self.folder / name, json.dumps(record, allow_nan=False) + "\n")

    def forget_after(self, iteration: int) -> None:
        """Remove log lines and checkpoints of iterations after ``iteration``, torn last lines, and partial files.

        Raises:
            ConfigError: a log line up to the iteration is damaged or missing, except evaluations of the iteration
                itself, which can be made again.
        """
        found = records.gaps_of(self.folder, self.config.model_dump(), iteration) if iteration >= 0 else []
        own = f"of iteration {iteration} is missing"
        lost = [gap for gap in found if not (gap.startswith("eval.jsonl") and own in gap)]
        if lost:
            raise ConfigError(f"{self.folder}: {lost[0]}; put back a copy of the file, or move the folder away")
        for path in [*self.folder.glob(f".*{files.PARTIAL}"), *self.checkpoints.glob(f".*{files.PARTIAL}")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        checkpoints.forget_after(self.checkpoints, iteration)
        for name in records.LOGS:
            path = self.folder / name
            lines = records.read_lines(path) if iteration >= 0 else []
            lines = [line for line in lines if line["iteration"] <= iteration]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            if path.exists() and read_text(path) != text:
                write_atomically(path, text)

    def remove_unneeded(self) -> None:
        """Remove the checkpoints of a finished run, unless ``runtime.checkpoints_of_finished`` keeps them."""
        if self.config.runtime.checkpoints_of_finished == "remove" and checkpoints.saved(self.checkpoints):
            with files.writing(self.folder):  # else a crash could leave neither them nor what was made of them
                files.sync_all(self.checkpoints)
                self._sync()
            checkpoints.forget_after(self.checkpoints, -1)

    def _sync(self) -> None:
        """Flush logs and status to the disk, so that a crash leaves no checkpoint without the lines before it."""
        paths = [self.folder / name for name in (*records.LOGS, "status.json")]
        for path in [*filter(Path.exists, paths), self.folder]:
            files.sync(path)

    def save_checkpoint(self, state: Mapping[str, Any], validation: float | None = None) -> None:
        """Add a checkpoint, complete or not at all, and remove old ones, see ``harness.runs.checkpoints``.

        Args:
            state: state of the trainer; shards of it are in the partial folder already.
            validation: trained reward on validation prompts, if it was measured at this iteration.
        """
        import torch

        new = checkpoints.folder_of(self.checkpoints, state["iteration"])
        # Through a Python stream, whose error says that the disk is full; torch's own says "unexpected pos".
        with checkpoints.completing(new, validation) as folder:
            with (folder / checkpoints.STATE).open("wb") as stream:
                torch.save(dict(state), stream)
            self._sync()
        checkpoints.prune(self.checkpoints, self.config.runtime.checkpoints_kept)

    def load_checkpoint(self, path: Path | None = None) -> dict[str, Any] | None:
        """State in a checkpoint, by default the newest undamaged one; None before the first.

        Raises:
            ConfigError: the checkpoint, or by default every one, is damaged.
        """
        path = path or checkpoints.newest_whole(self.checkpoints)
        if path is None:
            return None
        import torch

        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
            reason = " ".join(str(error).split())[:_LONGEST_REASON]
            raise ConfigError(f"{path}: cannot be read: {reason}") from None
        return state

    def lock(self, wait: bool = False) -> IO[bytes]:
        """Lock the run for this process as long as the returned file is open.

        Raises:
            ConfigError: another process is at work on the run; with ``wait`` its end is waited for.
        """
        # Several attempts, because ``is_locked`` takes the lock for a moment.
        for patience in (0.05, 0.2, 0):
            held = files.lock(self.folder / "lock", wait)
            if held is not None:
                return held
            time.sleep(patience)
        raise ConfigError(f"{self.folder}: another process is training this run")

    def is_locked(self) -> bool:
        """Whether a process is at work on the run now."""
        path = self.folder / "lock"
        if not path.exists():
            return False
        held = files.lock(path, shared=True)
        if held is not None:
            held.close()
        return held is None


def find_run(config: RunConfig, root: Path = RUNS) -> RunDirectory:
    """Directory that a run has or would have; nothing is written.

    Raises:
        ConfigError: see ``fingerprints_of``.
    """
    return _of(config, fingerprints_of(config), root)


def _of(config: RunConfig, fingerprints: Mapping[str, str], root: Path) -> RunDirectory:
    return RunDirectory(root / config.experiment / configuration.run_id(config, fingerprints))


def _require_library(config: RunConfig) -> None:
    """Raise ConfigError if a run needs bitsandbytes and it is not installed."""
    needs = {"model.quantise": config.model.quantise, "optimizer.moments": config.optimizer.moments}
    for key, value in needs.items():
        if value not in ("none", "fp32") and find_spec("bitsandbytes") is None:
            raise ConfigError(f"{key}={value}: needs bitsandbytes, which is not installed: pip install 'adagrpo[gpu]'")


def prepare_run(config: RunConfig, root: Path = RUNS, rerun_changed: bool = False) -> RunDirectory:
    """Return the directory of a run, created if it is new; the same run always has the same directory.

    Nothing is written into a finished run. An unfinished one adopts new settings of its execution, such as ``runtime``.

    Args:
        config: configuration of the run.
        root: folder of run directories.
        rerun_changed: set aside a run that was executed by other code or packages, and begin it again.

    Raises:
        ConfigError: as ``find_run``, an optional package is missing, or the directory does not match the run any more.
    """
    _require_library(config)
    fingerprints = fingerprints_of(config)
    run = _of(config, fingerprints, root)
    if rerun_changed and not run.is_locked() and identity.changes_of(run.folder):
        identity.set_aside(run.folder)
    path = run.folder / "config.yaml"
    if not path.exists():
        run.folder.mkdir(parents=True, exist_ok=True)
        identity.write_identity(run.folder, config, fingerprints)
        write_atomically(path, configuration.dump(config))
    elif run.status()["state"] == "finished":
        run.remove_unneeded()  # again, since the run may have been killed before it did
    elif (saved := run.config) != config:
        identity.require_unchanged(run.folder, saved, fingerprints)
        write_atomically(path, configuration.dump(config))
    if not (run.folder / "status.json").exists() and run.loss() is None:
        run.set_status("waiting", 0, config.iterations)
    return run
