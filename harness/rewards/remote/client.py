"""Rewards that another process computes: what they share, the HTTP client, and the backend ``url``."""

import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from harness.config import RewardConfig
from harness.models.pipelines.truncation import TextReader
from harness.rewards.base import BatchedReward, Pending, Reward, RewardError, ScoringError
from harness.rewards.remote.wire import (
    LONGEST_REPLY,
    LONGEST_REQUEST,
    MALFORMED,
    TOKEN_VARIABLE,
    is_loopback,
    read_reply,
    request,
)


class RemoteReward(BatchedReward):
    """Reward computed by another process; a thread waits for the scores, so that this process can continue."""

    is_remote = True
    _failures = 0
    """Number of submitted parts that could not be scored."""

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        # One thread, so that requests are made in the order of submission.
        return ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"reward-{self.name}")

    def submit(self, images: Tensor, prompts: Sequence[str]) -> Pending:
        """Start scoring in the background, see ``Reward.submit``.

        If a part fails, parts that wait behind it fail without being tried: each might take its whole timeout, and this
        process could not end before that.
        """
        before = self._failures

        def work() -> dict[str, Tensor]:
            if self._failures != before:
                raise RewardError(f"reward {self.name!r}: not asked, since what was to be scored before failed")
            try:
                return {self.name: self.score(images, prompts)}
            except Exception:
                self._failures += 1
                raise

        return self._thread.submit(work).result

    @abstractmethod
    def _ask(self, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Have a batch measured, see ``_measure_batch``."""

    def _measure_batch(self, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        try:
            return self._ask(levels, prompts)
        except ScoringError as error:
            if error.image is not None:
                raise
        # Asked again picture by picture, to find the one that causes the error.
        rows = []
        for row in range(len(prompts)):
            try:
                rows.append(self._ask(levels[row : row + 1], prompts[row : row + 1]))
            except ScoringError as error:
                raise ScoringError(str(error), row) from None
        return {metric: torch.cat([row[metric] for row in rows]) for metric in rows[0]}

    def _read(self, said: Mapping[str, Any], count: int) -> dict[str, Tensor]:
        """Metrics ``{name: [count]}`` in a reply. Raises RewardError if it has none."""
        try:
            return read_reply(said, self.name, count)
        except MALFORMED as error:
            raise RewardError(f"reward {self.name!r}: its server gives no scores ({error})") from None


class ServedReward(RemoteReward):
    """Reward served by another process, perhaps on another GPU or machine.

    ``build_local`` builds the reward of this name in this process, to check prompts and for the default resolution.
    """

    def __init__(self, name: str, settings: RewardConfig, build_local: Callable[[], Reward]) -> None:
        super().__init__(name, settings.batch_size)
        self._build_local = build_local
        self._url, self._timeout = str(settings.url).rstrip("/"), settings.timeout_seconds

    def fingerprint(self) -> str:
        """Fingerprint of the reward at the server, so that a run is the same wherever its reward is computed."""
        return str(self._about["fingerprint"])

    def check_prompt(self, prompt: str) -> None:
        """Raise ValueError if the local reward of this name could not score the prompt."""
        self._local.check_prompt(prompt)

    def text_readers(self) -> Sequence[TextReader]:
        """Text encoders of the local reward of this name. Raises RewardError if its tokenizer is missing here."""
        return self._local.text_readers()

    @cached_property
    def resolution(self) -> float:  # type: ignore[override]
        """Resolution that the server states, or else that of the local reward of this name."""
        return float(self._about.get("resolution", self._local.resolution))

    @cached_property
    def _local(self) -> Reward:
        return self._build_local()

    @cached_property
    def _about(self) -> dict[str, Any]:
        about = self._exchange("reward")
        if not about.keys() >= {"name", "fingerprint"}:
            raise RewardError(f"reward {self.name!r}: {self._url} is no reward server: it answers {about}")
        if about["name"] != self.name:
            raise RewardError(f"reward {self.name!r}: {self._url} serves {about['name']!r}")
        return about

    def _ask(self, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        body = request(levels, prompts)
        if len(body) > LONGEST_REQUEST:
            raise RewardError(
                f"reward {self.name!r}: {len(prompts)} pictures have {len(body)} bytes, a reward server takes "
                f"{LONGEST_REQUEST} at a time; lower rewards.{self.name}.batch_size"
            )
        said = self._exchange("score", body)
        measured = self._read(said, len(prompts))
        if said.get("fingerprint") != self.fingerprint():
            # A restarted server may have other weights, and scores of two models must not be mixed.
            raise RewardError(
                f"reward {self.name!r}: {self._url} scores with another model than it had when it was first asked; "
                "start its server with that one again, or begin a new run"
            )
        return measured

    def _exchange(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        token = os.environ.get(TOKEN_VARIABLE)
        return ask(self.name, f"{self._url}/{path}", body, self._timeout, token)


# --- asking ---------------------------------------------------------------------------------------------------------


class Unreachable(RewardError):
    """A server does not answer, or answers that it cannot at present."""


def ask(reward: str, url: str, body: bytes | None, timeout: float, token: str | None = None) -> dict[str, Any]:
    """Make a GET request, or a POST of JSON, and return the JSON object of the answer.

    A POST is repeated for ``timeout`` seconds while the server does not answer, since it may be restarting.

    Args:
        reward: name of the reward, for error messages.
        url: address of the request.
        body: JSON to post; None makes a GET request.
        timeout: seconds to wait.
        token: token that the reward server requires, or None.

    Raises:
        ScoringError: the reward server could not score the batch.
        Unreachable: the server does not answer.
        RewardError: any other error, in one line that names reward and address.
    """
    began, pause = time.monotonic(), 0.25
    while True:
        try:
            return _ask_once(f"reward {reward!r}: {url}", url, body, timeout, token)
        except Unreachable as error:
            if body is None or time.monotonic() - began + pause > timeout:
                raise
            if pause == 0.25:
                print(f"{error}; asked again for {timeout:g} s", file=sys.stderr, flush=True)
        time.sleep(pause)
        pause = min(2 * pause, 10.0)


def _ask_once(where: str, url: str, body: bytes | None, timeout: float, token: str | None) -> dict[str, Any]:
    try:
        # A proxy cannot reach loopback addresses of this machine.
        proxies: dict[str, str] | None = {} if is_loopback(urllib.parse.urlsplit(url).hostname or "") else None
        opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
        asked = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        if token is not None:
            asked.add_unredirected_header("Authorization", f"Bearer {token}")
        with opener.open(asked, timeout=timeout) as answer:
            content = answer.read(LONGEST_REPLY)
    except urllib.error.HTTPError as error:
        raise _refused(error, where) from None
    except (ValueError, http.client.InvalidURL) as error:
        raise RewardError(f"{where} cannot be asked ({error})") from None
    except (OSError, http.client.HTTPException) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else f"{type(error).__name__} {error}".strip()
        raise Unreachable(f"{where} cannot be reached ({cause}): is its server running?") from None
    if not (found := _as_object(content)):
        raise RewardError(f"{where} answers no JSON object but {content[:80]!r}: is it the right address?")
    return found


def _refused(error: urllib.error.HTTPError, where: str) -> Exception:
    """Convert an HTTP error of a reward server, an OpenAI-compatible server or any other to an exception."""
    body = error.read(2**16)
    said = _as_object(body)
    reason = said.get("error")
    if isinstance(reason, dict):
        reason = reason.get("message")
    reason = " ".join(str(reason or body.decode(errors="replace")).split())[:300] or str(error.reason)
    if error.code == 422 and "image" in said:
        return ScoringError(reason, said["image"] if isinstance(said["image"], int) else None)
    # Only these errors may be temporary; after others a retry is of no use.
    may_pass = error.code in (408, 429) or (error.code >= 500 and error.code not in (501, 505))
    return (Unreachable if may_pass else RewardError)(f"{where} answered {error.code}: {reason}")


def _as_object(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
