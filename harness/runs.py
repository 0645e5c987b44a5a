"""A run's directory: configuration, state, logs and checkpoints. The only writer of results/runs/."""

import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import torch

from harness import config as configuration
from harness.config import ROOT, ConfigError, RunConfig
from harness.models.files import model_fingerprint
from harness.prompts import read_prompts
from harness.rewards import build_reward

RUNS = ROOT / "results" / "runs"
_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "onnxruntime", "numpy")


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run, and the ways its files are written."""

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
    def checkpoint_path(self) -> Path:
        """The one resumable checkpoint."""
        return self.folder / "checkpoints" / "latest.pt"

    def status(self) -> dict[str, Any]:
        """state (waiting, running, finished, failed), iteration, iterations, reason, updated."""
        path = self.folder / "status.json"
        return json.loads(path.read_text()) if path.exists() else {"state": "waiting", "iteration": 0, "reason": None}

    def set_status(self, state: str, iteration: int, iterations: int, reason: str | None = None) -> None:
        """Replace status.json atomically."""
        content = {
            "state": state,
            "iteration": iteration,
            "iterations": iterations,
            "reason": reason,
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_atomically(self.folder / "status.json", json.dumps(content, indent=1) + "\n")

    def write_environment(self, content: Mapping[str, Any]) -> None:
        """Replace environment.json."""
        write_atomically(self.folder / "environment.json", json.dumps(content, indent=1) + "\n")

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Append one JSON line; NaN and infinities are an error, since no JSON reader takes them."""
        with (self.folder / name).open("a") as stream:
            stream.write(json.dumps(record, allow_nan=False) + "\n")

    def forget_after(self, iteration: int) -> None:
        """Drop log lines of iterations after a checkpoint, and a line that was torn, so that they are written once."""
        for name in ("metrics.jsonl", "eval.jsonl"):
            path = self.folder / name
            if path.exists():
                lines = [line for line in path.read_text().splitlines() if _iteration_of(line) <= iteration]
                write_atomically(path, "".join(f"{line}\n" for line in lines))

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint atomically: a kill at any moment leaves the old one or the new one."""
        self.checkpoint_path.parent.mkdir(exist_ok=True)
        partial = self.checkpoint_path.with_suffix(".partial")
        with partial.open("wb") as stream:
            torch.save(dict(state), stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(self.checkpoint_path)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The checkpoint, or None before the first one."""
        if not self.checkpoint_path.exists():
            return None
        return torch.load(self.checkpoint_path, map_location="cpu", weights_only=True)

    def lock(self, wait: bool = False) -> IO[str]:
        """Claim the run for this process as long as the returned file is open.

        Args:
            wait: until another process that is at work on it has ended.

        Raises:
            ConfigError: another process is at work on it, and ``wait`` is false.
        """
        stream = (self.folder / "lock").open("w")
        if wait:
            fcntl.flock(stream, fcntl.LOCK_EX)
            return stream
        # Tried again, since ``is_locked`` holds the lock for a moment to look.
        for patience in (0.05, 0.2, None):
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if patience is None:
                    raise ConfigError(f"{self.folder}: another process is training this run") from None
                time.sleep(patience)
            else:
                break
        return stream

    def is_locked(self) -> bool:
        """Whether a process is at work on the run now."""
        path = self.folder / "lock"
        if not path.exists():
            return False
        with path.open() as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
        return False


def find_run(config: RunConfig, root: Path = RUNS) -> RunDirectory:
    """The directory that a run has or would have; nothing is written.

    Raises:
        ConfigError: model folder or prompt list missing, unknown reward, or a prompt that a reward cannot score.
    """
    model_folder = ROOT / config.model.path
    if not (model_folder / "model_index.json").is_file():
        raise ConfigError(f"model.path: {model_folder} is no pipeline folder (no model_index.json there)")
    fingerprints = {"model": model_fingerprint(model_folder)}
    try:
        rewards = {name: build_reward(name) for name in (*config.reward, *config.evaluation.judges)}
    except ValueError as error:
        raise ConfigError(f"reward or evaluation.judges: {error}") from None
    for split in config.prompt_splits:
        path = getattr(config.prompts, split)
        prompt_list = read_prompts(path)
        fingerprints[split] = prompt_list.sha256
        for reward in rewards.values():
            for prompt in prompt_list.prompts:
                try:
                    reward.check_prompt(prompt)
                except ValueError as error:
                    raise ConfigError(f"prompts.{split} {path}: {error}") from None
    fingerprints |= {f"reward {name}": reward.fingerprint() for name, reward in rewards.items()}
    return RunDirectory(root / config.experiment / configuration.run_id(config, fingerprints))


def prepare_run(config: RunConfig, root: Path = RUNS) -> RunDirectory:
    """The directory of a run, made if it is new; the same run has the same directory, whenever it is prepared.

    Raises:
        ConfigError: as ``find_run``.
    """
    run = find_run(config, root)
    run.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(run.folder / "config.yaml", configuration.dump(config))
    return run


def environment() -> dict[str, Any]:
    """Commit, versions and hardware, for environment.json."""
    git = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "commit": git.stdout.strip() or None,
        "numerics_version": configuration.NUMERICS_VERSION,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file in one step, also when several processes write it at once."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text)
    partial.replace(path)


def _iteration_of(line: str) -> float:
    try:
        return json.loads(line)["iteration"]
    except json.JSONDecodeError:
        return float("inf")
