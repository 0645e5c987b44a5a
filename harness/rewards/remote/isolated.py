"""Rewards that need other versions of packages: scored by a process of their own, in an environment of their own."""

import os
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor
from transformers import AutoTokenizer

from harness.config import ROOT, RewardConfig
from harness.models.pipelines.truncation import TextReader, all_tokens
from harness.rewards.base import RewardError
from harness.rewards.files.checkpoints import PUBLISHED, locate, locate_file, readable, sha256_of
from harness.rewards.native.batched import ImageError, RemoteReward
from harness.rewards.native.open_clip import CONTEXT_LENGTH, ClipTokenizer
from harness.rewards.remote.frames import FrameError, read_frame, read_reply, request, write_frame

ENVIRONMENTS = ROOT / ".venvs"
"""One folder a reward, made by ``make reward-env REWARD=name``."""
REQUIREMENTS = Path(__file__).parent / "environments"

_NEEDS = {"imagereward": ("ImageReward.pt", "med_config.json")}
"""Files that a checkpoint folder must have; the other checkpoints are one file."""
_IMAGEREWARD_TOKENS = 35
"""To which the image-reward package cuts a prompt."""


_RESOLUTION = {"hpsv2": 2e-3, "hpsv3": 2e-2, "imagereward": 1e-4}
"""Of scores: the packages choose half precision, but for ImageReward's."""


class WorkerDied(Exception):
    """The worker's process ended, or did not answer in time and was ended."""


class WorkerRefused(Exception):
    """The worker is well, but its package raised an error."""


class Worker:
    """A process that scores, and the conversation with it.

    Args:
        command: how to start it; it reads frames from standard input and writes frames to standard output.
        settings: the first frame it gets.
        timeout: seconds it may take to load, and for each answer.

    Raises:
        WorkerDied: it cannot be started, or ended or fell silent while it loaded.
        WorkerRefused: it could not load its model.
    """

    def __init__(self, command: Sequence[str], settings: dict[str, Any], timeout: float) -> None:
        self._timeout = timeout
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - read when the process has died
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                cwd=ROOT,
                env=environment,
                # Ctrl-C is for this process, which ends the worker; a worker that died of it would be started again.
                start_new_session=True,
            )
        except OSError as error:
            raise WorkerDied(f"{command[0]} cannot be started ({error.strerror})") from None
        self.stop = weakref.finalize(self, _stop, self._process)
        self.ask(settings)

    def ask(self, header: dict[str, Any], body: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Send a frame and wait for the answer. Raises WorkerDied or WorkerRefused."""
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._process.kill()

        # Ending the process also ends a read or write that waits for it.
        watchdog = threading.Timer(self._timeout, give_up)
        watchdog.start()
        try:
            write_frame(cast(BinaryIO, self._process.stdin), header, body)
            answer, data = read_frame(cast(BinaryIO, self._process.stdout))
        except (FrameError, OSError):
            self._process.kill()
            code = self._process.wait()
            reason = f"did not answer within {self._timeout:g} s" if late.is_set() else f"ended with exit code {code}"
            raise WorkerDied(f"its worker {reason}{self._last_words()}") from None
        finally:
            watchdog.cancel()
        if "error" in answer:
            raise WorkerRefused(answer["error"])
        return answer, data

    @property
    def process_id(self) -> int:
        """Of the process."""
        return self._process.pid

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = [line for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return f": {lines[-1].strip()[:200]}" if lines else ""


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


class IsolatedReward(RemoteReward):
    """A published package as the backend: ``hpsv2``, ``hpsv3`` or ``imagereward``.

    A worker that dies is started again and the batch is scored anew, an image at a time; if it dies once more, the
    error names that image.
    """

    def __init__(self, name: str, settings: RewardConfig, num_threads: int = 1) -> None:
        super().__init__(name, settings.batch_size)
        self.low, self.high = (-1.0, 1.0) if name == "hpsv2" else (-float("inf"), float("inf"))
        self.resolution = _RESOLUTION[name]
        self._settings, self._num_threads = settings, num_threads
        # The other packages choose theirs themselves.
        self._precision = settings.precision or ("bf16" if name == "hpsv3" else None)
        self._worker: Worker | None = None
        self._lock = threading.Lock()

    def fingerprint(self) -> str:
        """sha256 of the checkpoint and of the environment's pins, and the precision that was chosen for it.

        Raises:
            RewardError: checkpoint or environment are not on this machine.
        """
        path, base = self._places
        _ = self.command  # an environment that is missing is an error now, not at the first score
        files = [REQUIREMENTS / f"{self.name}.txt", *_files_of(path), *([] if base is None else _small_files_of(base))]
        return f"{sha256_of(files)}:package:{self._precision}"

    def text_readers(self) -> Sequence[TextReader]:
        """What the package's text encoder is given: CLIP's 77 tokens, or BERT's 35; hpsv3 is given all.

        Raises:
            RewardError: the tokenizer is not on this machine.
        """
        if self.name == "hpsv2":
            return [TextReader(f"reward {self.name}", CONTEXT_LENGTH, ClipTokenizer().encode)]
        if self.name == "imagereward":
            base = self._places[1]
            assert base is not None
            with readable(self.name, "base", base):
                tokenizer = AutoTokenizer.from_pretrained(base)
            return [TextReader(f"reward {self.name}", _IMAGEREWARD_TOKENS, partial(all_tokens, tokenizer))]
        return ()

    def close(self) -> None:
        """End the worker; the next score starts another."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    @cached_property
    def command(self) -> list[str]:
        """How the worker is started. Raises RewardError if its environment is not there."""
        python = ROOT / Path(self._settings.python or ENVIRONMENTS / self.name / "bin" / "python").expanduser()
        if not python.is_file():
            raise RewardError(
                f"reward {self.name!r}: no environment at {python}; make it with `make reward-env REWARD={self.name}`"
            )
        return [str(python), "-m", "harness.rewards.remote.workers", self.name]

    @cached_property
    def _places(self) -> tuple[Path, Path | None]:
        published = PUBLISHED[self.name]
        place, needs = self._settings.path or published.path, _NEEDS.get(self.name)
        path = locate_file(self.name, "path", place) if needs is None else locate(self.name, "path", place, needs)
        base = self._settings.base or published.base
        # The hpsv3 package loads the base's weights before it replaces them; the image-reward package has none to load.
        return path, None if base is None else locate(self.name, "base", base, weights=self.name == "hpsv3")

    def _measure_batch(self, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        with self._lock:
            try:
                return self._ask(levels, prompts)
            except WorkerDied as death:
                print(f"reward {self.name!r}: {death}; it is started again", file=sys.stderr, flush=True)
            except WorkerRefused as refusal:
                if len(prompts) == 1:
                    raise ImageError(0, str(refusal)) from None
            # Again, an image at a time: so the one that is to blame has a number.
            rows = [self._ask_for_one(row, levels, prompts) for row in range(len(prompts))]
            return {metric: torch.cat([row[metric] for row in rows]) for metric in rows[0]}

    def _ask_for_one(self, row: int, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        try:
            return self._ask(levels[row : row + 1], prompts[row : row + 1])
        except (WorkerDied, WorkerRefused) as error:
            raise ImageError(row, str(error)) from None

    def _ask(self, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        worker = self._worker or self._start()
        try:
            answer, body = worker.ask(*request(levels, prompts))
        except WorkerDied:
            self._worker = None
            raise
        try:
            return read_reply(answer, body, len(prompts))
        except FrameError as error:
            raise WorkerRefused(str(error)) from None

    def _start(self) -> Worker:
        path, base = self._places
        settings = {
            "path": str(path),
            "base": None if base is None else str(base),
            "precision": self._precision,
            "device": _device_of_worker(self._settings.device),
            "num_threads": self._num_threads,
        }
        try:
            self._worker = Worker(self.command, settings, self._settings.timeout_seconds)
        except (WorkerDied, WorkerRefused) as error:
            raise RewardError(f"reward {self.name!r}: the package's model did not load: {error}") from None
        return self._worker


def _device_of_worker(device: str) -> str:
    """The worker's process would take the first GPU for ``auto``, whichever is this one's."""
    if device == "auto" and torch.cuda.is_available():
        return f"cuda:{torch.cuda.current_device()}"
    return device


def _files_of(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())


def _small_files_of(folder: Path) -> list[Path]:
    return [file for file in _files_of(folder) if file.suffix in (".json", ".txt", ".jinja")]
