"""UnifiedReward: a vision-language model that is asked for scores, served by any OpenAI-compatible server."""

import base64
import hashlib
import io
import json
import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from harness.config import ROOT, ConfigError, RewardConfig
from harness.foundation.files import read_text
from harness.rewards.base import RewardError, ScoringError
from harness.rewards.remote.client import RemoteReward, ask

LONGEST_ANSWER = 4096  # tokens
_THOUGHT = r"(?:think|thinking|thought|reasoning)>"
_MARKUP = re.compile(r"[*_`\"'#|\[\]{}]")
_SCALE = r"\(?\s*(?:on a )?(?:scale |range |rating )?(?:of |from )?1\s*(?:-|–|to)\s*5\s*\)?"
_SCORE = re.compile(
    rf"(?:{_SCALE}\s*)?(?:[:=]|[-–]\s|is\b)?\s*(\d+(?:[.,]\d+)?)\s*"
    rf"(?:/\s*5|out of 5|{_SCALE})?\s*(?:points?|stars?)?(?=\s*(?:$|[.,;:!?()<]))",
    re.I,
)
_SECOND_THOUGHT = re.compile(
    r"\b(?:corrected|correction|actually|wait|instead|rather|revis\w+|reconsider\w*|reflection)\b.*\d", re.I | re.S
)


@dataclass(frozen=True)
class Protocol:
    """Question and answer format of one version of UnifiedReward."""

    labels: dict[str, str]
    """Label that precedes a metric's number in an answer, by metric."""
    question: str
    """Question in the project's own wording, with ``{prompt}`` for the prompt."""
    picture_format: str
    """Format in which pictures are sent, as in the release."""


PROTOCOLS: dict[str, Protocol] = {
    "unifiedreward-v1": Protocol(
        labels={"": "Final Score"},
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


def parse_answer(version: str, answer: str) -> dict[str, float]:
    """Scores in an answer: for v1 the final score, for v2 alignment, coherence, style and, under "", their mean.

    The whole answer is read, except thoughts in it. A score counts if it follows its label and no other number could be
    meant.

    Raises:
        ScoringError: a score is missing, ambiguous or outside [1, 5], or the answer ends within a thought.
    """
    said = re.sub(rf"<{_THOUGHT}.*?</{_THOUGHT}", " ", answer, flags=re.I | re.S)
    # If the chat template opens the thought, the answer contains only its end.
    said = re.sub(rf".*</{_THOUGHT}", "", said, flags=re.I | re.S)
    if re.search(f"<{_THOUGHT}", said, re.I):
        raise ScoringError(f"its answer ends within its thought: {_excerpt(answer)}")
    labels = PROTOCOLS[version].labels
    pieces = re.split(f"({'|'.join(labels.values())})", _MARKUP.sub("", said), flags=re.I)
    scores = {}
    for metric, label in labels.items():
        texts = [text for of, text in zip(pieces[1::2], pieces[2::2], strict=True) if of.lower() == label.lower()]
        values = {value for text in texts if (value := _value_after(text)) is not None}
        if len(values) != 1 or not 1 <= min(values) <= 5:
            raise ScoringError(f"its answer has no clear {metric or 'final'} score from 1 to 5: {_excerpt(answer)}")
        scores[metric] = values.pop()
    return scores if "" in scores else {"": sum(scores.values()) / len(scores)} | scores


def _value_after(text: str) -> float | None:
    """Score in the text between a label and the next one: nan if it is ambiguous, None if there is no number."""
    line, _, rest = text.lstrip(" \t\r\n:=").partition("\n")
    value = _SCORE.match(line)
    others = line[value.end() :] if value else line
    if any(character.isnumeric() for character in others) or _SECOND_THOUGHT.search(f"{others}\n{rest}"):
        return math.nan
    return float(value[1].replace(",", ".")) if value else None


def _excerpt(answer: str) -> str:
    return repr(" ".join(answer.split())[-160:])


class UnifiedReward(RemoteReward):
    """UnifiedReward v1 (one score) or v2 (alignment, coherence, style, and their mean as the score), each 1 to 5.

    Raises:
        ValueError: the question's file is missing or does not contain {prompt}.
    """

    def __init__(self, name: str, settings: RewardConfig) -> None:
        super().__init__(name, settings.batch_size)
        self._url, self._timeout = str(settings.url).rstrip("/").removesuffix("/v1"), settings.timeout_seconds
        self._model = settings.model or "UnifiedReward"
        self._requests = ThreadPoolExecutor(max_workers=self.batch_size, thread_name_prefix=self.name)
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
        """Fingerprint of the model's name, the question and the picture format; the weights are not known here."""
        question = hashlib.sha256(self._question.encode()).hexdigest()[:16]
        return f"{self._model}:{question}:{PROTOCOLS[self.name].picture_format}"

    def check_ready(self) -> None:
        """Check that the server has the model.

        Raises:
            RewardError: the server cannot be reached, is not OpenAI-compatible, or does not have the model.
        """
        url = f"{self._url}/v1/models"
        listed = ask(self.name, url, None, self._timeout).get("data")
        models = [str(entry.get("id")) for entry in listed or () if isinstance(entry, dict)]
        if self._model not in models:
            raise RewardError(
                f"reward {self.name!r}: {url} has no model {self._model!r} but {', '.join(models) or 'none'}; "
                f"set rewards.{self.name}.model"
            )

    def _ask(self, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        # All requests at once, because the server batches those that arrive together.
        asked = [self._requests.submit(self._answer, *pair) for pair in zip(levels, prompts, strict=True)]
        answers = []
        for row, future in enumerate(asked):
            try:
                answers.append(parse_answer(self.name, future.result()))
            except ScoringError as error:
                raise ScoringError(str(error), row) from None
        return {
            f"{self.name}/{metric}" if metric else self.name: torch.tensor([answer[metric] for answer in answers])
            for metric in answers[0]
        }

    def _answer(self, image: Tensor, prompt: str) -> str:
        form = PROTOCOLS[self.name].picture_format
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, form, quality=95)
        picture = f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
        question = self._question.replace("{prompt}", prompt)
        content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": question}]
        message: dict[str, Any] = {"model": self._model, "messages": [{"role": "user", "content": content}]}
        message |= {"temperature": 0, "max_tokens": LONGEST_ANSWER}
        url = f"{self._url}/v1/chat/completions"
        answer = ask(self.name, url, json.dumps(message).encode(), self._timeout)
        return _content_of(answer, f"reward {self.name!r}: {url}")


def _content_of(completion: dict[str, Any], where: str) -> str:
    """Text of a chat completion.

    Raises:
        RewardError: the answer is not a chat completion.
        ScoringError: the text was cut off or is empty.
    """
    try:
        choice = completion["choices"][0]
        content = choice["message"]["content"]
    except (LookupError, TypeError):
        reason = " ".join(str(completion.get("error") or completion).split())
        raise RewardError(f"{where} gave no chat completion: {reason[:200]}") from None
    said = content if isinstance(content, str) else ""
    if (ended := choice.get("finish_reason")) in ("length", "content_filter", "abort"):
        raise ScoringError(f"its answer was cut off ({ended}): {_excerpt(said)}")
    if not said.strip():
        raise ScoringError(f"its answer is empty; it says {' '.join(str(choice).split())[:200]}")
    return said
