"""Rewards that need other versions of packages, served by a worker in a separate environment (``workers``)."""

import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer

from harness.config import RewardConfig
from harness.foundation.names import REWARDS
from harness.foundation.places import CODE, IS_CHECKOUT, ROOT
from harness.models.pipelines.truncation import TextReader, all_tokens
from harness.rewards.base import Pending, RewardError
from harness.rewards.files.checkpoints import locate, locate_file, readable, sha256_of
from harness.rewards.native.open_clip import CONTEXT_LENGTH, encode
from harness.rewards.remote.client import Refusal, ServedReward, Unreachable
from harness.rewards.remote.wire import TOKEN_VARIABLE

ENVIRONMENTS = ROOT / ".venvs"
"""Folder with one environment per reward, made by ``make reward-env REWARD=name``."""
REQUIREMENTS = Path(__file__).parent / "environments"

_NEEDS = {"imagereward": ("ImageReward.pt", "med_config.json")}
"""Files that a checkpoint folder must have; checkpoints of the other rewards are single files."""
_IMAGEREWARD_TOKENS = 35
"""Tokens to which the image-reward package truncates a prompt."""
_OF_LAUNCHER = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"}
_OF_LAUNCHER |= {"ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
"""Variables by which a launcher tells a process its place among a run's processes; also those of TORCHELASTIC_."""
_RESOLUTION = {"hpsv2": 2e-3, "hpsv3": 2e-2, "imagereward": 1e-4}
"""Resolution of the packages' scores; all but ImageReward may compute in half precision."""


class Worker:
    """Process that serves a package at a loopback address.

    Args:
        command: command line. The process writes JSON with its port, or the reason why it cannot serve, to standard
            output, and ends when its standard input is closed.
        timeout: seconds that loading may take.

    Raises:
        Refusal: the process cannot be started, cannot load its model, ends, or exceeds the timeout.
    """

    def __init__(self, command: Sequence[str], timeout: float) -> None:
        self.token = secrets.token_urlsafe()  # so that no other process on this machine can use the worker
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - read when the process has died
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                cwd=ROOT,
                env=_alone(os.environ) | {TOKEN_VARIABLE: self.token, "PYTHONPATH": str(CODE), "PYTHONUNBUFFERED": "1"},
                # So that Ctrl-C reaches only this process, which ends the worker; otherwise it would restart it.
                start_new_session=True,
            )
        except OSError as error:
            raise Refusal(f"{command[0]} cannot be started ({error.strerror})") from None
        self.process_id, self.stop = self._process.pid, weakref.finalize(self, _stop, self._process)
        assert self._process.stdout is not None
        # Killing the process also ends the read that waits for its output.
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
        """End the process if it is still running, and describe how it ended with the last line of its errors."""
        try:
            how = f"ended with exit code {self._process.wait(timeout=5)}"
        except subprocess.TimeoutExpired:
            self.stop()
            is_late = True
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().rpartition("\n")[2].strip()[:200]
        how = f"did not answer within {timeout:g} s" if is_late else how
        return f"its worker {how}" + f": {last}" * bool(last)


def _alone(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without a launcher's variables, so that the package does not join this run's processes."""
    names = [name for name in environment if name not in _OF_LAUNCHER and not name.startswith("TORCHELASTIC_")]
    return {name: environment[name] for name in names}


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


class IsolatedReward(ServedReward):
    """Reward computed by a published package: ``hpsv2``, ``hpsv3`` or ``imagereward``.

    If the worker dies, it is started again and the batch is scored picture by picture; if it dies again, the error
    names that picture.
    """

    def __init__(self, name: str, settings: RewardConfig, num_threads: int = 1) -> None:
        own = settings.model_copy(update={"url": "http://127.0.0.1"})  # the worker chooses its port
        super().__init__(name, own, lambda: self)
        self._settings, self._num_threads = settings, num_threads
        # The other packages choose their precision themselves.
        self._precision = settings.precision or ("bf16" if name == "hpsv3" else None)
        self._worker: Worker | None = None
        self._lock = threading.Lock()

    @property
    def resolution(self) -> float:  # type: ignore[override]
        """Resolution by package; a chosen value, not measured."""
        return _RESOLUTION[self.name]

    @property
    def _token(self) -> str | None:
        return None if self._worker is None else self._worker.token

    def fingerprint(self) -> str:
        """Fingerprint of the checkpoint, the environment's pinned requirements, and the precision."""
        path, base = self._places
        _ = self.command  # raises now, not at the first score, if the environment is missing
        files = [REQUIREMENTS / f"{self.name}.txt", *([path] if path.is_file() else _files_in(path))]
        small = [] if base is None else [f for f in _files_in(base) if f.suffix in (".json", ".txt", ".jinja")]
        return f"{sha256_of([*files, *small])}:package:{self._precision}"

    def check_prompt(self, prompt: str) -> None:
        """Do nothing: packages accept any prompt."""

    def text_readers(self) -> Sequence[TextReader]:
        """Text encoder of the package, which reads 77 tokens (CLIP) or 35 (BERT); none for hpsv3, which reads all."""
        if self.name == "hpsv2":
            return [TextReader(f"reward {self.name}", CONTEXT_LENGTH, encode)]
        if self.name == "imagereward" and (base := self._places[1]):
            with readable(self.name, "base", base):
                tokenizer = AutoTokenizer.from_pretrained(base)
            return [TextReader(f"reward {self.name}", _IMAGEREWARD_TOKENS, partial(all_tokens, tokenizer))]
        return ()

    def close(self) -> None:
        """End the worker; the next score starts a new one."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    @cached_property
    def command(self) -> list[str]:
        """Command that starts the worker. Raises RewardError if its environment does not exist."""
        if not IS_CHECKOUT:  # PYTHONPATH would expose packages installed beside the code to the environment
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
        # The hpsv3 package loads the base's weights before replacing them; image-reward's base is only a tokenizer.
        return path, None if base is None else locate(self.name, "base", base, weights=self.name == "hpsv3")

    def submit(self, images: Tensor, prompts: Sequence[str]) -> Pending:
        """Start scoring in the background, see ``Reward.submit``."""
        _ = self._device  # now, because the thread that scores has the first GPU as its current one
        return super().submit(images, prompts)

    @cached_property
    def _device(self) -> str:
        """Device of the worker; named explicitly, because the worker would take the first GPU, not this process's."""
        wanted = self._settings.device
        return f"cuda:{torch.cuda.current_device()}" if wanted == "auto" and torch.cuda.is_available() else wanted

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
        settings = {"name": self.name, "path": str(path), "base": base and str(base), "precision": self._precision}
        told = json.dumps({**settings, "device": self._device, "num_threads": self._num_threads})
        try:
            self._worker = Worker([*self.command, told], self._timeout)
        except Refusal as error:
            raise RewardError(f"reward {self.name!r}: the package's model did not load: {error}") from None
        return self._worker


def _files_in(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.is_file()]
