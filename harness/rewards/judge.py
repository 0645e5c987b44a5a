"""UnifiedReward: a vision-language model that is asked for scores, behind any OpenAI-compatible server."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from harness.config import ROOT, RewardConfig
from harness.rewards.base import RewardError
from harness.rewards.batched import ImageError, RemoteReward
from harness.rewards.served import as_json, fetch, fetch_patiently

LONGEST_ANSWER = 4096  # tokens
_NUMBER = r"(?:\s*\(\s*1\s*-\s*5\s*\))?[\s:*]*([0-9]+(?:\.[0-9]+)?)"


@dataclass(frozen=True)
class Protocol:
    """How one version of UnifiedReward is asked and how it answers."""

    labels: dict[str, str]
    """Metric -> what stands before its number in an answer, as a regular expression."""
    question: str
    """The project's own wording, ``{prompt}`` for the prompt."""
    picture_format: str
    """Of the picture that is sent: as the release sends it."""


PROTOCOLS: dict[str, Protocol] = {
    "unifiedreward-v1": Protocol(
        labels={"": r"Final Score"},
        question=(
            "Here is a picture that was made from a caption. List the caption's key elements, one a line, as "
            "'element (type): value', where value is 1 if the picture shows it and 0 if not. Then rate from 1 to 5 how "
            "well the picture fits the caption and how good it looks, as one number after 'Final Score:'.\n"
            "Caption: [{prompt}]"
        ),
        picture_format="PNG",
    ),
    "unifiedreward-v2": Protocol(
        labels={kind: f"{kind.capitalize()} Score" for kind in ("alignment", "coherence", "style")},
        question=(
            "Here is a picture that was made from a caption. Rate it from 1 to 5 on three axes: alignment, how well it "
            "shows what the caption says; coherence, how free it is of glitches and distortions; style, how good it "
            "looks whatever the caption says. Answer in three lines:\n"
            "Alignment Score (1-5): X\nCoherence Score (1-5): Y\nStyle Score (1-5): Z\nCaption: [{prompt}]"
        ),
        picture_format="JPEG",
    ),
}


class AnswerError(Exception):
    """An answer without the scores that were asked for."""


def parse_answer(version: str, answer: str) -> dict[str, float]:
    """The numbers of an answer: of v1 the final score, of v2 alignment, coherence, style and, under "", their mean.

    The last number after a label counts, since an answer may reason before it concludes.

    Raises:
        AnswerError: a score is missing or outside [1, 5].
    """
    scores = {}
    for metric, label in PROTOCOLS[version].labels.items():
        found = re.findall(label + _NUMBER, answer, re.IGNORECASE)
        if not found or not 1 <= float(found[-1]) <= 5:
            said = " ".join(answer.split())
            problem = "has no" if not found else f"has {found[-1]} as"
            raise AnswerError(f"its answer {problem} {metric or 'final'} score from 1 to 5: {said[-160:]!r}")
        scores[metric] = float(found[-1])
    return scores if "" in scores else {"": sum(scores.values()) / len(scores)} | scores


class UnifiedReward(RemoteReward):
    """UnifiedReward v1 (one score) or v2 (alignment, coherence, style, and their mean as the score), each 1 to 5."""

    low, high = 1.0, 5.0

    def __init__(self, name: str, settings: RewardConfig) -> None:
        """Choose a server; nothing is sent yet.

        Raises:
            ValueError: no url, or the file with the question is missing or has no {prompt}.
        """
        super().__init__(name, settings.batch_size)
        if settings.url is None:
            raise ValueError(f"rewards.{name}.url is missing: an OpenAI-compatible server that has the model")
        self._url, self._timeout = settings.url.rstrip("/").removesuffix("/v1"), settings.timeout_seconds
        self._model = settings.model or "UnifiedReward"
        self._question = PROTOCOLS[name].question
        if settings.question is not None:
            path = ROOT / Path(settings.question).expanduser()
            try:
                self._question = path.read_text(encoding="utf-8")
            except OSError as error:
                raise ValueError(f"rewards.{name}.question: {path} cannot be read ({error.strerror})") from None
            except UnicodeDecodeError:
                raise ValueError(f"rewards.{name}.question: {path} is no text in UTF-8") from None
            if "{prompt}" not in self._question:
                raise ValueError(f"rewards.{name}.question: {path} has no {{prompt}} in it")

    def fingerprint(self) -> str:
        """The model's name at its server, and the question; which weights serve is not known here."""
        question = hashlib.sha256(self._question.encode()).hexdigest()[:16]
        return f"{self._model}:{question}:{PROTOCOLS[self.name].picture_format}"

    def check_ready(self) -> None:
        """Ask the server which models it has.

        Raises:
            RewardError: it cannot be reached, is no OpenAI-compatible server, or does not have the model.
        """
        url = f"{self._url}/v1/models"
        listed = as_json(self.name, url, fetch(self.name, url, None, self._timeout)).get("data")
        models = [str(entry.get("id")) for entry in listed or () if isinstance(entry, dict)]
        if self._model not in models:
            raise RewardError(
                f"reward {self.name!r}: {url} has no model {self._model!r} but {', '.join(models) or 'none'}; "
                f"set rewards.{self.name}.model"
            )

    @cached_property
    def _requests(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=self.batch_size, thread_name_prefix=self.name)

    def _measure_batch(self, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        # All at once: the server batches what arrives together.
        asked = [self._requests.submit(self._ask, image, prompt) for image, prompt in zip(levels, prompts, strict=True)]
        answers = []
        for row, future in enumerate(asked):
            try:
                answers.append(parse_answer(self.name, future.result()))
            except AnswerError as error:
                raise ImageError(row, str(error)) from None
        return {
            f"{self.name}/{metric}" if metric else self.name: torch.tensor([answer[metric] for answer in answers])
            for metric in answers[0]
        }

    def _ask(self, image: Tensor, prompt: str) -> str:
        form = PROTOCOLS[self.name].picture_format
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, form, quality=95)
        picture = f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
        content = [
            {"type": "image_url", "image_url": {"url": picture}},
            {"type": "text", "text": self._question.replace("{prompt}", prompt)},
        ]
        message = {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": LONGEST_ANSWER,
        }
        url = f"{self._url}/v1/chat/completions"
        answer = fetch_patiently(self.name, url, json.dumps(message).encode(), self._timeout, "application/json")
        try:
            return str(json.loads(answer)["choices"][0]["message"]["content"])
        except (ValueError, LookupError, TypeError):
            raise RewardError(f"reward {self.name!r}: {url} gave no chat completion: {answer[:120]!r}") from None
