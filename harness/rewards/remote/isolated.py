"""Rewards that need other versions of packages: a server of their own, in an environment of its own (``workers``)."""

import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer

from harness.config import RewardConfig
from harness.foundation.names import REWARDS
from harness.foundation.places import CODE, IS_CHECKOUT, ROOT
from harness.models.pipelines.truncation import TextReader, all_tokens
from harness.rewards.base import RewardError
from harness.rewards.files.checkpoints import locate, locate_file, readable, sha256_of
from harness.rewards.native.open_clip import CONTEXT_LENGTH, encode
from harness.rewards.remote.client import Refusal, ServedReward, Unreachable
from harness.rewards.remote.wire import TOKEN_VARIABLE

ENVIRONMENTS = ROOT / ".venvs"
"""One folder a reward, made by ``make reward-env REWARD=name``."""
REQUIREMENTS = Path(__file__).parent / "environments"

_NEEDS = {"imagereward": ("ImageReward.pt", "med_config.json")}
"""Files that a checkpoint folder must have; the other checkpoints are one file."""
_IMAGEREWARD_TOKENS = 35
"""Tokens to which the image-reward package cuts a prompt."""
_RESOLUTION = {"hpsv2": 2e-3, "hpsv3": 2e-2, "imagereward": 1e-4}
"""Resolution of the packages' scores: they choose half precision, but for ImageReward's."""


class Worker:
    """A process that serves a package at an address of this machine.

    Args:
        command: how to start it; it writes its port, or why it cannot serve, to standard output, in JSON, and ends when
            its standard input does.
        timeout: seconds it may take to load.

    Raises:
        Refusal: it cannot be started, could not load its model, or ended or fell silent meanwhile.
    """

    def __init__(self, command: Sequence[str], timeout: float) -> None:
        self.token = secrets.token_urlsafe()  # nobody else on this machine is to ask
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - read when the process has died
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                cwd=ROOT,
                env=os.environ | {TOKEN_VARIABLE: self.token, "PYTHONPATH": str(CODE), "PYTHONUNBUFFERED": "1"},
                # Ctrl-C is for this process, which ends the worker; a worker that died of it would be started again.
                start_new_session=True,
            )
        except OSError as error:
            raise Refusal(f"{command[0]} cannot be started ({error.strerror})") from None
        self.process_id, self.stop = self._process.pid, weakref.finalize(self, _stop, self._process)
        assert self._process.stdout is not None
        # Ending the process also ends a read that waits for it.
        began, watchdog = time.monotonic(), threading.Timer(timeout, self._process.kill)
        watchdog.start()
        said = self._process.stdout.readline()
        watchdog.cancel()
        if not said:
            raise Refusal(self.end(timeout, is_late=time.monotonic() - began >= timeout))
        answer = json.loads(said)
        if "error" in answer:
            raise Refusal(answer["error"])
        self.url = f"http://127.0.0.1:{answer['port']}"

    def end(self, timeout: float, is_late: bool = False) -> str:
        """End the process, if it has not ended; says how it did, and its last words."""
        try:
            how = f"ended with exit code {self._process.wait(timeout=5)}"
        except subprocess.TimeoutExpired:
            self.stop()
            is_late = True
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().rpartition("\n")[2].strip()[:200]
        how = f"did not answer within {timeout:g} s" if is_late else how
        return f"its worker {how}" + f": {last}" * bool(last)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


class IsolatedReward(ServedReward):
    """A published package as the backend: ``hpsv2``, ``hpsv3`` or ``imagereward``.

    A worker that dies is started again and the batch is scored anew, a picture at a time; if it dies once more, the
    error names that picture.
    """

    def __init__(self, name: str, settings: RewardConfig, num_threads: int = 1) -> None:
        own = settings.model_copy(update={"url": "http://127.0.0.1"})  # the worker chooses its port
        super().__init__(name, own, lambda: self)
        self._settings, self._num_threads = settings, num_threads
        # The other packages choose theirs themselves.
        self._precision = settings.precision or ("bf16" if name == "hpsv3" else None)
        self._worker: Worker | None = None
        self._lock = threading.Lock()

    @property
    def resolution(self) -> float:  # type: ignore[override]
        """Chosen, not measured."""
        return _RESOLUTION[self.name]

    @property
    def _token(self) -> str | None:
        return None if self._worker is None else self._worker.token

    def fingerprint(self) -> str:
        """Made of the checkpoint, the environment's pins, and the precision that was chosen for it."""
        path, base = self._places
        _ = self.command  # an environment that is missing is an error now, not at the first score
        files = [REQUIREMENTS / f"{self.name}.txt", *([path] if path.is_file() else _files_in(path))]
        small = [] if base is None else [f for f in _files_in(base) if f.suffix in (".json", ".txt", ".jinja")]
        return f"{sha256_of([*files, *small])}:package:{self._precision}"

    def check_prompt(self, prompt: str) -> None:
        """Nothing: a package takes any prompt."""

    def text_readers(self) -> Sequence[TextReader]:
        """What the package's text encoder is given: CLIP's 77 tokens, or BERT's 35; hpsv3 is given all."""
        if self.name == "hpsv2":
            return [TextReader(f"reward {self.name}", CONTEXT_LENGTH, encode)]
        if self.name == "imagereward" and (base := self._places[1]):
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
        if not IS_CHECKOUT:  # beside the installed code lie packages that the environment must not see
            raise RewardError(f"reward {self.name!r}: the backend package needs a checkout of the repository")
        python = ROOT / Path(self._settings.python or ENVIRONMENTS / self.name / "bin" / "python").expanduser()
        if not python.is_file():
            raise RewardError(
                f"reward {self.name!r}: no environment at {python}; make it with `make reward-env REWARD={self.name}`"
            )
        return [str(python), "-m", "harness.rewards.remote.workers"]

    @cached_property
    def _places(self) -> tuple[Path, Path | None]:
        published = REWARDS[self.name]
        place, needs = self._settings.path or published.path, _NEEDS.get(self.name)
        path = locate_file(self.name, "path", place) if needs is None else locate(self.name, "path", place, needs)
        base = self._settings.base or published.base
        # The hpsv3 package loads the base's weights before it replaces them; the image-reward package has none to load.
        return path, None if base is None else locate(self.name, "base", base, weights=self.name == "hpsv3")

    def _measure_batch(self, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        with self._lock:
            return super()._measure_batch(levels, prompts)

    def _ask(self, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        worker = self._worker or self._start()
        try:
            return self._post(worker.url, levels, prompts, patiently=False)[0]
        except Unreachable:
            self._worker, reason = None, worker.end(self._timeout)
            print(f"reward {self.name!r}: {reason}", file=sys.stderr, flush=True)
            raise Refusal(reason, may_pass=True) from None

    def _start(self) -> Worker:
        path, base = self._places
        device = self._settings.device
        if device == "auto" and torch.cuda.is_available():
            # The worker's process would take the first GPU, whichever is this one's.
            device = f"cuda:{torch.cuda.current_device()}"
        settings = {"name": self.name, "path": str(path), "base": base and str(base), "precision": self._precision}
        told = json.dumps({**settings, "device": device, "num_threads": self._num_threads})
        try:
            self._worker = Worker([*self.command, told], self._timeout)
        except Refusal as error:
            raise RewardError(f"reward {self.name!r}: the package's model did not load: {error}") from None
        return self._worker


def _files_in(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.is_file()]
