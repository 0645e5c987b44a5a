"""Rewards that another process computes: the HTTP client, and the backend ``url``."""

import http.client
import ipaddress
import json
import math
import os
import socket
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from harness.config import RewardConfig
from harness.models.pipelines.truncation import TextReader
from harness.rewards.base import BatchedReward, ImageError, Pending, Reward, RewardError
from harness.rewards.remote.wire import LONGEST_REPLY, LONGEST_REQUEST, MALFORMED, TOKEN_VARIABLE, read_reply, request


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


class ServedReward(RemoteReward):
    """Reward served by another process, perhaps on another GPU or machine. Raises ValueError without a url.

    ``build_local`` builds the reward of this name in this process, to check prompts and for the default resolution.
    """

    def __init__(self, name: str, settings: RewardConfig, build_local: Callable[[], Reward]) -> None:
        super().__init__(name, settings.batch_size)
        self._build_local = build_local
        if settings.url is None:
            raise ValueError(f"rewards.{name}.url is missing: the address of `adagrpo serve-reward {name}`")
        self._url, self._timeout = settings.url.rstrip("/"), settings.timeout_seconds

    @property
    def _token(self) -> str | None:
        """Token that the server requires, or None."""
        return os.environ.get(TOKEN_VARIABLE)

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
        stated = self._about.get("resolution", self._local.resolution)
        if not isinstance(stated, int | float) or not 0 <= stated < math.inf:
            raise RewardError(f"reward {self.name!r}: {self._url} states {stated!r} as its resolution: no number")
        return stated

    @cached_property
    def _local(self) -> Reward:
        return self._build_local()

    @cached_property
    def _about(self) -> dict[str, Any]:
        about = ask(self.name, f"{self._url}/reward", None, self._timeout, token=self._token)
        if not about.keys() >= {"name", "fingerprint"}:
            raise RewardError(f"reward {self.name!r}: {self._url} is no reward server: it answers {about}")
        if about["name"] != self.name:
            raise RewardError(f"reward {self.name!r}: {self._url} serves {about['name']!r}")
        return about

    def _measure_batch(self, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        try:
            return self._ask(levels, prompts)
        except Refusal as refusal:
            if refusal.image is not None or (len(prompts) == 1 and not refusal.may_pass):
                raise ImageError(refusal.image or 0, str(refusal)) from None
        # Repeated picture by picture, to find the index of the one that causes the error.
        rows = []
        for row in range(len(prompts)):
            try:
                rows.append(self._ask(levels[row : row + 1], prompts[row : row + 1]))
            except Refusal as refusal:
                raise ImageError(row, str(refusal)) from None
        return {metric: torch.cat([row[metric] for row in rows]) for metric in rows[0]}

    def _ask(self, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Get the scores of a batch. Raises Refusal if the model raised an error, RewardError for anything else."""
        measured, fingerprint = self._post(self._url, levels, prompts, patiently=True)
        if fingerprint != self.fingerprint():
            # A restarted server may have other weights, and scores of two models must not be mixed.
            raise RewardError(
                f"reward {self.name!r}: {self._url} scores with another model than it had when it was first asked; "
                "start its server with that one again, or begin a new run"
            )
        return measured

    def _post(self, url: str, levels: Tensor, prompts: Sequence[str], patiently: bool) -> tuple[dict[str, Tensor], Any]:
        """Get the scores of a batch from a server, and the fingerprint of its model if the server states it."""
        body = request(levels, prompts)
        if len(body) > LONGEST_REQUEST:
            raise RewardError(
                f"reward {self.name!r}: {len(prompts)} pictures have {len(body)} bytes, a reward server takes "
                f"{LONGEST_REQUEST} at a time; lower rewards.{self.name}.batch_size"
            )
        said = ask(self.name, f"{url}/score", body, self._timeout, patiently, self._token)
        try:
            return read_reply(said, self.name, len(prompts)), said.get("fingerprint")
        except MALFORMED as error:
            raise RewardError(f"reward {self.name!r}: its server gives no scores ({error})") from None


# --- asking ---------------------------------------------------------------------------------------------------------


class Unreachable(RewardError):
    """A server does not answer, or answers that it cannot at present."""


class Refusal(Exception):
    """A reward server could not score a batch: index of the picture if known, and whether a retry may help."""

    def __init__(self, reason: str, image: int | None = None, may_pass: bool = False) -> None:
        super().__init__(reason)
        self.image, self.may_pass = image, may_pass


def ask(
    reward: str, url: str, body: bytes | None, timeout: float, patiently: bool = False, token: str | None = None
) -> dict[str, Any]:
    """Make a GET request, or a POST of JSON, and return the JSON object of the answer.

    Args:
        reward: name of the reward, for error messages.
        url: address of the request.
        body: JSON to post; None makes a GET request.
        timeout: seconds to wait.
        patiently: retry for that long while the server does not answer, since it may be restarting.
        token: token that the reward server requires, or None.

    Raises:
        Refusal: the reward server could not score the batch.
        Unreachable: the server does not answer.
        RewardError: any other error, in one line that names reward and address.
    """
    began, pause = time.monotonic(), 0.25
    while True:
        try:
            return _ask_once(f"reward {reward!r}: {url}", url, body, timeout, token)
        except Unreachable as error:
            if not patiently or time.monotonic() - began + pause > timeout:
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
        return Refusal(reason, said["image"] if isinstance(said["image"], int) else None)
    # Only these errors may be temporary; after others a retry is of no use.
    may_pass = error.code in (408, 429) or (error.code >= 500 and error.code not in (501, 505))
    return (Unreachable if may_pass else RewardError)(f"{where} answered {error.code}: {reason}")


def _as_object(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def is_loopback(host: str) -> bool:
    """Whether a host is a loopback address of this machine: localhost or an address, also in forms such as 127.1."""
    try:
        addresses = [str(place[4][0]) for place in socket.getaddrinfo(host, None)] if host else []
    except OSError:
        return False
    return bool(addresses) and all(ipaddress.ip_address(address).is_loopback for address in addresses)
