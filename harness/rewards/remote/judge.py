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
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from harness.config import ROOT, ConfigError, RewardConfig
from harness.foundation.files import read_text
from harness.rewards.base import ImageError, RewardError
from harness.rewards.remote.client import RemoteReward, ask

LONGEST_ANSWER = 4096  # tokens
_MARKUP = re.compile(r"[*_`\"'#|]|[\[(](?=\s*[+-]?\d+(?:[.,]\d+)?\s*[\])])")
_SCALE = r"(?:1(?:\.0)?\s*(?:-|–|—|to)\s*5(?:\.0)?|out of 5|of 5|/\s*5(?:\.0)?)(?![\d.,]*\d)"
_SCALE_IN_BRACKETS = re.compile(
    rf"\s*[(\[]\s*(?:on a |in )?(?:scale |range |rating )?(?:of |from )?{_SCALE}(?: scale| points)?\s*[)\]]", re.I
)
_VALUE = re.compile(rf"\s*(?:[:=]|\s[-–—]\s|is\b)?\s*([+-]?\d+(?:[.,]\d+)?)(?:\s*{_SCALE})?(?![\w%])", re.I)
_MORE_NUMBERS = re.compile(r"\d|\b(?:two|three|four|five|half|quarter|zero)\b", re.I)
_SECOND_THOUGHT = re.compile(
    r"\b(?:correct(?:ion|ed)|actually|wait|instead|rather|revis\w+|sorry|mistake|reconsider\w*|reflection|thoughts?)\b",
    re.I,
)
_AFTER_A_VALUE = re.compile(
    r"\s*(?:$|[.,;:!?()\[\]{}<–—-]|(?:points?|stars?)\s*(?:$|[.,;!])|(?:because|since|as|for|and)\b)", re.I
)
_THOUGHT = re.compile(r"<(think|thinking|thought|reasoning)>.*?</\1>", re.I | re.S)
_THOUGHT_BEGINS = re.compile(r"<(?:think|thinking|thought|reasoning)>", re.I)
_THOUGHT_ENDS = re.compile(r".*</(?:think|thinking|thought|reasoning)>", re.I | re.S)


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

    An answer is read to its end, without the thoughts in it: a score counts if it follows its label, and if no other
    number after the label could be meant.

    Raises:
        AnswerError: a score is missing, unclear or outside [1, 5], or the answer ends within a thought.
    """
    said = _THOUGHT.sub(" ", answer)
    if _THOUGHT_BEGINS.search(said):
        raise AnswerError(f"its answer ends within its thought: {_excerpt(answer)}")
    # Where the question opens the thought, the answer has its end only.
    said = _MARKUP.sub("", _THOUGHT_ENDS.sub("", said))
    labels = PROTOCOLS[version].labels
    begins = sorted(match.start() for label in labels.values() for match in re.finditer(label, said, re.I))
    scores = {}
    for metric, label in labels.items():
        name = metric or "final"
        values = set()
        for match in re.finditer(label, said, re.I):
            end = next((start for start in begins if start > match.start()), len(said))
            if (value := _value_after(said[match.end() : end], name, answer)) is not None:
                values.add(value)
        if len(values) != 1:
            problem = "several different" if values else "no"
            raise AnswerError(f"its answer has {problem} {name} scores from 1 to 5: {_excerpt(answer)}")
        scores[metric] = values.pop()
        if not 1 <= scores[metric] <= 5:
            raise AnswerError(f"its answer has {scores[metric]:g} as {name} score from 1 to 5: {_excerpt(answer)}")
    return scores if "" in scores else {"": sum(scores.values()) / len(scores)} | scores


def _value_after(text: str, name: str, answer: str) -> float | None:
    """The score between a label and the next one; None where the label stands for itself, without a number.

    Raises:
        AnswerError: there are numbers, but it is not clear which is the score.
    """
    lines = [line for line in _SCALE_IN_BRACKETS.sub("", text, count=1).split("\n") if line.strip(" \t\r:=")]
    if not lines:
        return None
    value = _VALUE.match(lines[0] if text.lstrip(" \t:=")[:1] != "\n" else f": {lines[0].strip()}")
    rest = re.sub(_SCALE_IN_BRACKETS, "", lines[0][value.end() :] if value else lines[0])
    is_clear = not (value and not _AFTER_A_VALUE.match(rest)) and not (
        _MORE_NUMBERS.search(rest) or any(character.isnumeric() for character in rest)
    )
    if is_clear and _SECOND_THOUGHT.search(" ".join([rest, *lines[1:]])):
        is_clear = not any(_MORE_NUMBERS.search(line) for line in lines[1:])
    if not is_clear:
        raise AnswerError(f"its answer has no clear {name} score from 1 to 5: {_excerpt(answer)}")
    return float(value[1].replace(",", ".")) if value else None


def _excerpt(answer: str) -> str:
    return repr(" ".join(answer.split())[-160:])


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
                self._question = read_text(path)
            except ConfigError as error:
                raise ValueError(f"rewards.{name}.question: {error}") from None
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
        listed = ask(self.name, url, None, self._timeout).get("data")
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
        answer = ask(self.name, url, json.dumps(message).encode(), self._timeout, patiently=True)
        return _content_of(answer, f"reward {self.name!r}: {url}")


def _content_of(completion: dict[str, Any], where: str) -> str:
    """What a chat completion says.

    Raises:
        RewardError: it is none.
        AnswerError: it was cut off, or says nothing.
    """
    try:
        choice = completion["choices"][0]
        message, content = choice["message"], choice["message"]["content"]
    except (LookupError, TypeError):
        reason = " ".join(str(completion.get("error") or completion).split())
        raise RewardError(f"{where} gave no chat completion: {reason[:200]}") from None
    if isinstance(content, list):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    said = content if isinstance(content, str) else ""
    if (ended := choice.get("finish_reason")) in ("length", "content_filter", "abort"):
        raise AnswerError(f"its answer was cut off ({ended}): {_excerpt(said)}")
    if not said.strip():
        raise AnswerError(f"its answer is empty{': ' * bool(message.get('refusal'))}{message.get('refusal') or ''}")
    return said
