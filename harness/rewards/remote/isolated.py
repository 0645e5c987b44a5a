"""Rewards that need other versions of packages, computed by a worker in a separate environment (``workers``)."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property, partial
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from harness.config import RewardConfig
from harness.foundation.names import REWARDS
from harness.foundation.places import CODE, IS_CHECKOUT, ROOT
from harness.models.pipelines.truncation import TextReader, all_tokens
from harness.rewards.base import Pending, RewardError, ScoringError, require_device
from harness.rewards.files.checkpoints import locate, read, sha256_of
from harness.rewards.native.open_clip import CONTEXT_LENGTH, encode
from harness.rewards.remote.client import RemoteReward
from harness.rewards.remote.wire import request

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
"""Resolution of the packages' scores, chosen, not measured; all but ImageReward may compute in half precision."""


class Worker:
    """Process that scores with a package.

    Args:
        command: command line; the file descriptor of the process's end of a pipe is added to it.
        timeout: seconds that loading, or one answer, may take.

    Raises:
        ScoringError: as ``ask``, or the process cannot be started or cannot load its model.
    """

    def __init__(self, command: Sequence[str], timeout: float) -> None:
        self._timeout, self.has_ended = timeout, False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - read when the process has died
        self._pipe, theirs = Pipe()
        # Without a launcher's variables, by which the package would join this run's processes.
        kept = {k: v for k, v in os.environ.items() if k not in _OF_LAUNCHER and not k.startswith("TORCHELASTIC_")}
        try:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
                env=kept | {"PYTHONPATH": str(CODE), "PYTHONUNBUFFERED": "1"},
                # So that Ctrl-C reaches only this process, which ends the worker; otherwise it would restart it.
                start_new_session=True,
            )
        except OSError as error:
            raise ScoringError(f"{command[0]} cannot be started ({error.strerror})") from None
        finally:
            theirs.close()
        self.process_id, self.stop = self._process.pid, weakref.finalize(self, _stop, self._process)
        self.ask(None)

    def ask(self, body: bytes | None) -> dict[str, Any]:
        """Get the answer to a request, or to None the one that says whether the model is loaded.

        Raises:
            ScoringError: the answer is an error; or the process has ended, or exceeded the timeout and is ended now.
        """
        answer: dict[str, Any] | None = None
        is_late = False
        with suppress(EOFError, OSError):  # the process has ended
            if body is not None:
                self._pipe.send_bytes(body)
            is_late = not self._pipe.poll(self._timeout)
            answer = None if is_late else json.loads(self._pipe.recv_bytes())
        if answer is None:
            self.has_ended = True
            raise ScoringError(self._end(is_late))
        if "error" in answer:
            raise ScoringError(answer["error"])
        return answer

    def _end(self, is_late: bool) -> str:
        """End the process if it is still running, and describe how it ended with the last line of its errors."""
        how = f"did not answer within {self._timeout:g} s"
        if not is_late:
            with suppress(subprocess.TimeoutExpired):
                how = f"ended with exit code {self._process.wait(timeout=5)}"
        self.stop()
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().rpartition("\n")[2].strip()[:200]
        return f"its worker {how}" + f": {last}" * bool(last)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


class IsolatedReward(RemoteReward):
    """Reward computed by a published package: ``hpsv2``, ``hpsv3`` or ``imagereward``.

    If the worker dies, it is started again and the batch is scored picture by picture; if it dies again, the error
    names that picture.
    """

    def __init__(self, name: str, settings: RewardConfig, num_threads: int = 1) -> None:
        super().__init__(name, settings.batch_size)
        self._settings, self._num_threads = settings, num_threads
        self.resolution = _RESOLUTION[name]
        # The other packages choose their precision themselves.
        self._precision = settings.precision or ("bf16" if name == "hpsv3" else None)
        self._worker: Worker | None = None
        self._lock = threading.Lock()

    def fingerprint(self) -> str:
        """Fingerprint of the checkpoint, the environment's pinned requirements, and the precision."""
        path, base = self._places
        _ = self.command  # raises now, not at the first score, if the environment is missing
        files = [REQUIREMENTS / f"{self.name}.txt", *([path] if path.is_file() else _files_in(path))]
        small = [] if base is None else [f for f in _files_in(base) if f.suffix in (".json", ".txt", ".jinja")]
        return f"{sha256_of([*files, *small])}:package:{self._precision}"

    def check_ready(self) -> None:
        require_device(self.name, self._settings.device)
        super().check_ready()

    def check_prompt(self, prompt: str) -> None:
        if self.name == "hpsv3":
            from harness.rewards.native.hpsv3 import refuse_special_tokens

            refuse_special_tokens(prompt)

    def text_readers(self) -> Sequence[TextReader]:
        """Text encoder of the package, which reads 77 tokens (CLIP) or 35 (BERT); none for hpsv3, which reads all."""
        if self.name == "hpsv2":
            return [TextReader(f"reward {self.name}", CONTEXT_LENGTH, encode)]
        if self.name == "imagereward" and (base := self._places[1]):
            tokenizer = read(self.name, "base", base, AutoTokenizer.from_pretrained)
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
        path = locate(self.name, "path", self._settings.path or published.path, _NEEDS.get(self.name))
        base = self._settings.base or published.base
        # The hpsv3 package loads the base's weights before replacing them; image-reward's base is only a tokenizer.
        return path, None if base is None else locate(self.name, "base", base, (), weights=self.name == "hpsv3")

    def submit(self, images: Tensor, prompts: Sequence[str]) -> Pending:
        """Start scoring in the background, see ``Reward.submit``."""
        _ = self._device  # now, because the thread that scores has the first GPU as its current one
        return super().submit(images, prompts)

    @cached_property
    def _device(self) -> str:
        """Device of the worker; named explicitly, because the worker would take the first GPU, not this process's."""
        wanted = self._settings.device
        is_own = wanted in ("auto", "cuda") and torch.cuda.is_available()
        return f"cuda:{torch.cuda.current_device()}" if is_own else wanted

    def _measure_batch(self, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        with self._lock:
            return super()._measure_batch(levels, prompts)

    def _ask(self, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        worker = self._worker or self._start()
        try:
            return self._read(worker.ask(request(levels, prompts)), len(prompts))
        except ScoringError as error:
            if worker.has_ended:
                self._worker = None
                print(f"reward {self.name!r}: {error}", file=sys.stderr, flush=True)
            raise

    def _start(self) -> Worker:
        path, base = self._places
        settings = {"name": self.name, "path": str(path), "base": base and str(base), "precision": self._precision}
        told = json.dumps({**settings, "device": self._device, "num_threads": self._num_threads})
        try:
            self._worker = Worker([*self.command, told], self._settings.timeout_seconds)
        except ScoringError as error:
            raise RewardError(f"reward {self.name!r}: the package's model did not load: {error}") from None
        return self._worker


def _files_in(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.is_file()]
