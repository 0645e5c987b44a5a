"""Rewards that another process computes: how it is asked over HTTP, and the backend ``url``."""

import http.client
import ipaddress
import json
import math
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
from harness.rewards.remote.wire import LONGEST_REQUEST, WireError, read_reply, request


class RemoteReward(BatchedReward):
    """A reward computed by another process: scoring runs in a thread that waits, so that this process can go on."""

    elsewhere = True
    _failures = 0
    """How many submitted parts could not be scored."""

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        # One thread: requests are answered in the order they were made.
        return ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"reward-{self.name}")

    def submit(self, images: Tensor, prompts: Sequence[str]) -> Pending:
        """Start scoring in the background, see ``Reward.submit``.

        When a part cannot be scored, parts that wait behind it are not tried: each might take its whole timeout, and
        this process could not end before.
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
    """A reward that another process holds, perhaps on another GPU. Its bounds are not asked."""

    low, high = -math.inf, math.inf

    def __init__(self, name: str, settings: RewardConfig, build_local: Callable[[], Reward]) -> None:
        """Choose a server; nothing is sent yet. Raises ValueError without a url.

        Args:
            name: of the reward.
            settings: of the reward.
            build_local: makes a reward of this name, here; it is asked about prompts alone.
        """
        super().__init__(name, settings.batch_size)
        self._build_local = build_local
        if settings.url is None:
            raise ValueError(f"rewards.{name}.url is missing: the address of `adagrpo serve-reward {name}`")
        self._url, self._timeout = settings.url.rstrip("/"), settings.timeout_seconds

    def fingerprint(self) -> str:
        """That of the server's reward: a run is the same wherever its reward is computed."""
        return str(self._about["fingerprint"])

    def check_prompt(self, prompt: str) -> None:
        """Raise ValueError if a reward of this name, here, could not score the prompt."""
        self._local.check_prompt(prompt)

    def text_readers(self) -> Sequence[TextReader]:
        """Those of a reward of this name, here; raises RewardError if its tokenizer is not on this machine."""
        return self._local.text_readers()

    @cached_property
    def resolution(self) -> float:  # type: ignore[override]
        """That of the server's reward; of one that does not say, what a reward of this name has here."""
        stated = self._about.get("resolution", self._local.resolution)
        if not isinstance(stated, int | float) or not 0 <= stated < math.inf:
            raise RewardError(
                f"reward {self.name!r}: {self._url} states {stated!r} as its resolution, which is no number"
            )
        return stated

    @cached_property
    def _local(self) -> Reward:
        return self._build_local()

    @cached_property
    def _about(self) -> dict[str, Any]:
        about = ask(self.name, f"{self._url}/reward", None, self._timeout)
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
        # Again, an image at a time: so the one that is to blame has a number.
        rows = [self._ask_alone(row, levels, prompts) for row in range(len(prompts))]
        return {metric: torch.cat([row[metric] for row in rows]) for metric in rows[0]}

    def _ask_alone(self, row: int, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        try:
            return self._ask(levels[row : row + 1], prompts[row : row + 1])
        except Refusal as refusal:
            raise ImageError(row, str(refusal)) from None

    def _ask(self, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Scores of a batch. Raises Refusal if the model raised an error, and RewardError."""
        said = ask(self.name, f"{self._url}/score", self._request(levels, prompts), self._timeout, patiently=True)
        measured = self._read(said, len(prompts))
        if said.get("fingerprint") != self.fingerprint():
            # A server that was restarted may hold other weights: scores of two models must not be mixed.
            raise RewardError(
                f"reward {self.name!r}: {self._url} scores with another model than it had when it was first asked; "
                "start its server with that one again, or begin a new run"
            )
        return measured

    def _request(self, levels: Tensor, prompts: Sequence[str]) -> bytes:
        body = request(levels, prompts)
        if len(body) > LONGEST_REQUEST:
            raise RewardError(
                f"reward {self.name!r}: {len(prompts)} pictures have {len(body)} bytes, a reward server takes "
                f"{LONGEST_REQUEST} at a time; lower rewards.{self.name}.batch_size"
            )
        return body

    def _read(self, said: dict[str, Any], count: int) -> dict[str, Tensor]:
        try:
            measured = read_reply(said, count)
            if self.name not in measured:
                raise WireError(f"an answer about {self.name!r} has metrics {list(measured)}")
        except WireError as error:
            raise RewardError(f"reward {self.name!r}: its server gives no scores: {error}") from None
        return measured


# --- asking ---------------------------------------------------------------------------------------------------------


class Unreachable(RewardError):
    """Nobody answers at an address, or says that it cannot now."""


class Refusal(Exception):
    """A reward server is well, but could not score: which image, if it says so, and whether another try may help."""

    def __init__(self, reason: str, image: int | None = None, may_pass: bool = False) -> None:
        super().__init__(reason)
        self.image, self.may_pass = image, may_pass


def ask(reward: str, url: str, body: bytes | None, timeout: float, patiently: bool = False) -> dict[str, Any]:
    """The JSON object that an address answers to a GET, or to a POST of JSON.

    Args:
        reward: whose server it is, for the errors.
        url: the address.
        body: what to post.
        timeout: seconds to wait.
        patiently: ask again for that long while nobody answers: a server may be restarted.

    Raises:
        Refusal: a reward server could not score what it was sent.
        Unreachable: no answer.
        RewardError: any other error, in one line that names reward and address.
    """
    began, pause = time.monotonic(), 0.25
    while True:
        try:
            return _ask_once(reward, url, body, timeout)
        except Unreachable as error:
            if not patiently or time.monotonic() - began + pause > timeout:
                raise
            if pause == 0.25:
                print(f"{error}; asked again for {timeout:g} s", file=sys.stderr, flush=True)
        time.sleep(pause)
        pause = min(2 * pause, 10.0)


def _ask_once(reward: str, url: str, body: bytes | None, timeout: float) -> dict[str, Any]:
    where = f"reward {reward!r}: {url}"
    try:
        host = urllib.parse.urlsplit(url).hostname or ""
        # No proxy can see what only this machine reaches.
        is_here = is_loopback(host) or host in ("0.0.0.0", "::")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({} if is_here else None))
        asked = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with opener.open(asked, timeout=timeout) as answer:
            content = answer.read()
    except urllib.error.HTTPError as error:
        said = error.read(2**16)
        reason, explained = _explain(said) or str(error.reason), _as_object(said)
        if error.code == 422 and "image" in explained:
            image = explained["image"]
            raise Refusal(reason, image if isinstance(image, int) else None) from None
        # After any other refusal, asking again is no use.
        may_pass = error.code in (408, 429) or (error.code >= 500 and error.code not in (501, 505))
        raise (Unreachable if may_pass else RewardError)(f"{where} answered {error.code}: {reason}") from None
    except (ValueError, http.client.InvalidURL) as error:
        raise RewardError(f"{where} cannot be asked ({error})") from None
    except (OSError, http.client.HTTPException) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else f"{type(error).__name__} {error}".strip()
        through = "" if is_here or not urllib.request.getproxies() else "; the environment has a proxy"
        raise Unreachable(f"{where} cannot be reached ({cause}): is its server running?{through}") from None
    if not (found := _as_object(content)):
        raise RewardError(f"{where} answers no JSON object but {content[:80]!r}: is it the right address?")
    return found


def _as_object(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _explain(body: bytes) -> str:
    """The reason in an error's body: a reward server's, an OpenAI-compatible server's, or all of it."""
    error = _as_object(body).get("error")
    if isinstance(error, dict):
        error = error.get("message")
    return " ".join(str(error or body.decode(errors="replace")).split())[:300]


def is_loopback(host: str) -> bool:
    """Whether a host is this machine as only itself can reach it: localhost, or an address, also written as 127.1."""
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    addresses = [ipaddress.ip_address(place[0].partition("%")[0]) for *_, place in found if isinstance(place[0], str)]
    return all((getattr(address, "ipv4_mapped", None) or address).is_loopback for address in addresses)
