"""Rewards over HTTP: the client that is the backend ``url``; the ``server`` is ``adagrpo serve-reward``.

``GET /reward`` describes it in JSON. ``POST /score`` takes a frame of pictures and prompts and answers with a frame of
metrics, see ``frames``, whose header also has the reward's ``fingerprint``; an error is JSON with ``error`` and, where
it is one image that cannot be scored, ``image``.
"""

import http.client
import io
import ipaddress
import math
import socket
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from harness.config import RewardConfig
from harness.models.pipelines.truncation import TextReader
from harness.rewards.base import Reward, RewardError
from harness.rewards.native.batched import ImageError, RemoteReward
from harness.rewards.remote.frames import LONGEST_REQUEST, FrameError, pack, parse_json, read_frame, read_reply, request

_LONGEST_ANSWER = 2**26


class ServedReward(RemoteReward):
    """A reward that another process holds, perhaps on another GPU. Its bounds are not asked."""

    low, high = -math.inf, math.inf

    def __init__(self, name: str, settings: RewardConfig) -> None:
        """Choose a server; nothing is sent yet.

        Raises:
            ValueError: no url.
        """
        super().__init__(name, settings.batch_size)
        if settings.url is None:
            raise ValueError(f"rewards.{name}.url is missing: the address of `adagrpo serve-reward {name}`")
        self._url, self._timeout = settings.url.rstrip("/"), settings.timeout_seconds

    def fingerprint(self) -> str:
        """That of the server's reward: a run is the same wherever its reward is computed.

        Raises:
            RewardError: the server cannot be reached, or holds another reward.
        """
        return str(self._description["fingerprint"])

    def check_prompt(self, prompt: str) -> None:
        """Raise ValueError if a reward of this name, here, could not score the prompt."""
        self._local.check_prompt(prompt)

    def text_readers(self) -> Sequence[TextReader]:
        """Those of a reward of this name, here; raises RewardError if its tokenizer is not on this machine."""
        return self._local.text_readers()

    @cached_property
    def resolution(self) -> float:  # type: ignore[override]
        """That of the server's reward; of one that does not say, what a reward of this name has here."""
        stated = self._description.get("resolution")
        if stated is None:
            return self._local.resolution
        if not isinstance(stated, int | float) or not 0 <= stated < math.inf:
            raise RewardError(
                f"reward {self.name!r}: {self._url} states {stated!r} as its resolution, which is no number"
            )
        return stated

    @cached_property
    def _local(self) -> Reward:
        from harness.rewards import build_reward

        return build_reward(self.name)

    @cached_property
    def _description(self) -> dict[str, Any]:
        description = as_json(self.name, self._url, fetch(self.name, f"{self._url}/reward", None, self._timeout))
        if "name" not in description or "fingerprint" not in description:
            raise RewardError(f"reward {self.name!r}: {self._url} is no reward server: it answers {description}")
        if description["name"] != self.name:
            raise RewardError(f"reward {self.name!r}: {self._url} serves {description['name']!r}")
        return description

    def _measure_batch(self, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        frame = pack(*request(levels, prompts))
        if len(frame) > LONGEST_REQUEST:
            raise RewardError(
                f"reward {self.name!r}: {len(prompts)} pictures have {len(frame)} bytes, a reward server takes "
                f"{LONGEST_REQUEST} at a time; lower rewards.{self.name}.batch_size"
            )
        answer = fetch_patiently(self.name, f"{self._url}/score", frame, self._timeout)
        try:
            header, body = read_frame(io.BytesIO(answer))
            measured = read_reply(header, body, len(prompts))
            if self.name not in measured:
                raise FrameError(f"an answer about {self.name!r} has metrics {list(measured)}")
        except FrameError as error:
            raise RewardError(f"reward {self.name!r}: {self._url} is no reward server: {error}") from None
        if header.get("fingerprint") != self.fingerprint():
            # A server that was restarted may hold other weights: scores of two models must not be mixed.
            raise RewardError(
                f"reward {self.name!r}: {self._url} scores with another model than it had when it was first asked; "
                "start its server with that one again, or begin a new run"
            )
        return measured


class Unreachable(RewardError):
    """Nobody answers at an address, or says that it cannot now."""


def _may_pass(code: int) -> bool:
    """Whether an HTTP error is of a server that cannot answer now; after a refusal, asking again is no use."""
    return code in (408, 429) or (code >= 500 and code not in (501, 505))


def fetch_patiently(
    reward: str, url: str, data: bytes, timeout: float, content_type: str = "application/octet-stream"
) -> bytes:
    """``fetch``, asked again for ``timeout`` seconds while nobody answers: a server may be restarted."""
    began, pause, said = time.monotonic(), 0.25, False
    while True:
        try:
            return fetch(reward, url, data, timeout, content_type)
        except Unreachable as error:
            if time.monotonic() - began + pause > timeout:
                raise
            if not said:
                print(f"{error}; asked again for {timeout:g} s", file=sys.stderr, flush=True)
                said = True
        time.sleep(pause)
        pause = min(2 * pause, 10.0)


def fetch(
    reward: str, url: str, data: bytes | None, timeout: float, content_type: str = "application/octet-stream"
) -> bytes:
    """GET, or POST with data.

    Raises:
        ImageError: the server could not score one image.
        Unreachable: no answer.
        RewardError: any other error, in one line that names reward and address.
    """
    through = ""
    try:
        proxies = _proxies(url)
        through = f"; asked through the proxy {', '.join(map(_without_password, proxies.values()))}" if proxies else ""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
        asked = urllib.request.Request(url, data, {"Content-Type": content_type})
        with opener.open(asked, timeout=timeout) as answer:
            content: bytes = answer.read(_LONGEST_ANSWER + 1)
            if len(content) > _LONGEST_ANSWER:
                raise RewardError(f"reward {reward!r}: {url} answers with more than {_LONGEST_ANSWER} bytes")
            if answer.length:  # ``read`` with a number does not tell that some are missing
                raise http.client.IncompleteRead(content, answer.length)
            return content
    except urllib.error.HTTPError as error:
        reason, image = _explain(error.read(2**16))
        if image is not None:
            raise ImageError(image, reason) from None
        kind = Unreachable if _may_pass(error.code) else RewardError
        raise kind(f"reward {reward!r}: {url} answered {error.code}: {reason or error.reason}{through}") from None
    except (ValueError, http.client.InvalidURL) as error:
        raise RewardError(f"reward {reward!r}: {url} cannot be asked ({error}){through}") from None
    except (OSError, http.client.HTTPException) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else f"{type(error).__name__} {error}".strip()
        raise Unreachable(
            f"reward {reward!r}: {url} cannot be reached ({cause}): is its server running?{through}"
        ) from None


def _proxies(url: str) -> dict[str, str]:
    """The environment's proxy for an address, ``{scheme: proxy}``; none for this machine, which no proxy can see."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    named = urllib.request.getproxies()
    proxy = named.get(parts.scheme) or named.get("all")
    is_here = is_loopback(host) or host in ("0.0.0.0", "::")
    if not proxy or is_here or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return {}
    return {parts.scheme: proxy}


def is_loopback(host: str) -> bool:
    """Whether a host is this machine as only itself can reach it: localhost, or an address, also written as 127.1."""
    if host.rstrip(".") == "localhost" or host.rstrip(".").endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            address = ipaddress.ip_address(socket.inet_aton(host))
        except OSError:
            return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback


def _without_password(proxy: str) -> str:
    scheme, found, rest = proxy.rpartition("://")
    return f"{scheme}{found}{rest.rpartition('@')[2]}"


def as_json(reward: str, url: str, answer: bytes) -> dict[str, Any]:
    """An answer's JSON object. Raises RewardError if it is none: the address is of something else."""
    try:
        content = parse_json(answer)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise RewardError(
            f"reward {reward!r}: {url} answers no JSON object but {answer[:80]!r}: is it the right address?"
        )
    return content


def _explain(body: bytes) -> tuple[str, int | None]:
    try:
        content = parse_json(body)
    except ValueError:
        return " ".join(body.decode(errors="replace").split())[:200], None
    error = content.get("error") if isinstance(content, dict) else None
    if isinstance(error, dict):  # as OpenAI-compatible servers say it
        return " ".join(str(error.get("message")).split())[:200], None
    if error is None:  # as other servers say it
        return " ".join(body.decode(errors="replace").split())[:200], None
    image = content.get("image")
    return str(error), image if isinstance(image, int) else None
