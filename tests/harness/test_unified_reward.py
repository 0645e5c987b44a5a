"""Chat models that judge, at an OpenAI-compatible address."""

import base64
import io
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from harness.rewards import RewardError
from harness.rewards.base import ScoringError
from harness.rewards.remote.unified_reward import _content_of, parse_answer
from tests.harness.conftest import Serve
from tests.harness.test_reward_servers import at


class ChatModel(BaseHTTPRequestHandler):
    """An OpenAI-compatible server whose model scores a picture by its first red level: 51 per point."""

    answer = "Alignment Score (1-5): {0}\nCoherence Score (1-5): {1}\nStyle Score (1-5): 2.5"
    asked: ClassVar[list[dict[str, Any]]] = []

    def do_GET(self) -> None:
        assert self.path == "/v1/models"
        self.say(200, {"object": "list", "data": [{"id": name} for name in ("judge", "UnifiedReward")]})

    def do_POST(self) -> None:
        assert self.path == "/v1/chat/completions"
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(message)
        data = message["messages"][0]["content"][0]["image_url"]["url"].partition(";base64,")[2]
        level = int(np.array(Image.open(io.BytesIO(base64.b64decode(data))))[0, 0, 0])
        if level == 255:
            self.say(500, {"error": {"message": "out of memory"}})
        else:
            said = "I cannot see it." if level == 0 else self.answer.format(level / 51, 5 - level / 51)
            self.say(200, completion(said))

    def say(self, code: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


def completion(content: object, **choice: object) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": content}} | choice]}


def plain(*levels: int) -> Tensor:
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 8, 8) / 255


@pytest.fixture
def chat_url(serve: Serve) -> str:
    ChatModel.asked.clear()
    return serve(ThreadingHTTPServer(("127.0.0.1", 0), ChatModel))


def test_a_judge_is_asked_by_the_protocol_and_its_scores_keep_their_order(chat_url: str) -> None:
    reward = at(chat_url + "/v1", "unifiedreward-v2", model="judge", batch_size=3)
    reward.check_ready()
    levels = [51, 102, 153, 204]
    measured = reward.measure(plain(*levels), ["a cat", "a {dog}", "c", "d"])
    assert measured["unifiedreward-v2/alignment"].tolist() == pytest.approx([level / 51 for level in levels])
    assert measured["unifiedreward-v2/style"].tolist() == [2.5] * 4
    assert measured["unifiedreward-v2"].tolist() == pytest.approx([7.5 / 3] * 4)
    first = next(m for m in ChatModel.asked if "[a {dog}]" in m["messages"][0]["content"][1]["text"])
    assert (first["model"], first["temperature"]) == ("judge", 0)
    assert first["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    with pytest.raises(RewardError, match=r"has no model 'judg' but judge, UnifiedReward; set rewards\.unified"):
        at(chat_url, "unifiedreward-v2", model="judg").check_ready()


@pytest.mark.parametrize(
    ("level", "message"),
    [
        (0, "reward 'unifiedreward-v2': picture 1: its answer has no clear alignment score from 1 to 5: 'I cannot see"),
        (255, r"reward 'unifiedreward-v2': http\S+ answered 500: out of memory"),
    ],
)
def test_a_judge_that_does_not_judge_is_one_line(chat_url: str, level: int, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        at(chat_url, "unifiedreward-v2", timeout_seconds=0.5).score(plain(51, level), ["a", "b"])


def test_a_question_of_ones_own_is_asked(chat_url: str, tmp_path: Path) -> None:
    question = tmp_path / "question.txt"
    question.write_text("How good is {prompt}?")
    own = at(chat_url, "unifiedreward-v2", question=str(question))
    own.score(plain(51), ["a cat"])
    assert ChatModel.asked[0]["messages"][0]["content"][1]["text"] == "How good is a cat?"
    assert own.fingerprint() != at(chat_url, "unifiedreward-v2").fingerprint()
    for content, message in ((b"\xff{prompt}", "is not text in UTF-8"), (b"How good?", r"has no \{prompt\} in it")):
        question.write_bytes(content)
        with pytest.raises(ValueError, match=rf"rewards.unifiedreward-v2.question: .*{message}"):
            at(chat_url, "unifiedreward-v2", question=str(question))


# What follows the label of an answer -> its score; None where it must not be guessed.
FINAL: dict[str, float | None] = {
    **dict.fromkeys((": 4", ": 4 out of 5 stars!", ": **4**", ": [4]", '": 4}', " | 4 |", " is 4", " - 4"), 4),
    **dict.fromkeys((": 4/5", ":\n\n**4**\n", ": 4, since the cat looks good", ": X\nFinal Score: 4", ": ４"), 4),
    ": 4\nBoth cats are there, the 3rd is not.": 4,
    ": 4 <think>Final Score: 2? No, Final Score: 3.</think>": 4,
    ": 4.5.": 4.5,
    " (1-5): 3,5": 3.5,
    " (on a scale of 1 to 5): 3": 3,
    ": 3 (on a scale of 1-5)": 3,
    **dict.fromkeys((": 1-5 scale, I give 4", ": 4 (1 means bad, 5 means good)", " (1 = bad, 5 = good): 4")),
    **dict.fromkeys((": 3 1/2", ": ½", ": 4-5", ": 4/10", ": 80%", ": 1e1", ": four", ": ~4", ": -1", ": 5.1")),
    **dict.fromkeys((": 3,5,4", ": 2 objects are missing", ": 2, but then: Final Score: 4", ": nan", ":")),
    ": 4 (Final Score: 1 means bad, Final Score: 5 means good)": None,
    ": 4\nWait, the Final Score should be 3": None,
    ": 4\nOn reflection I make it 3.": None,
    "<think>: 4": None,
}


@pytest.mark.parametrize("said", FINAL)
def test_a_score_is_read_to_the_answers_end_or_not_at_all(said: str) -> None:
    for thought in ("", "<think>Final Score: 2? No, Final Score: 3.</think>", "2, or 3?</think>"):
        answer = f"{thought}cat (animal): 1\nhat (object): 0\nFinal Score{said}"
        if (score := FINAL[said]) is not None:
            assert parse_answer("unifiedreward-v1", answer) == {"": score}
        else:
            with pytest.raises(ScoringError, match=r"\Aits answer [^\n]*\Z"):
                parse_answer("unifiedreward-v1", answer)


@pytest.mark.parametrize(
    ("answer", "is_whole"),
    [
        ("Alignment Score: 1, Coherence Score: 2, Style Score: 3", True),
        ("**Alignment Score (1-5)**: 1\nCoherence Score: 2\nstyle score ( 1 - 5 ): 3", True),
        ('{"Alignment Score": 1, "Coherence Score": 2, "Style Score": 3}', True),
        ("Alignment Score | Coherence Score | Style Score\n1 | 2 | 3", False),
        ("Alignment Score: 1\nCoherence Score: 2", False),
        ("Alignment Score: 1-5 scale, I give 4\nCoherence Score: 2\nStyle Score: 3", False),
    ],
)
def test_every_axis_needs_its_own_score(answer: str, is_whole: bool) -> None:
    if is_whole:
        assert parse_answer("unifiedreward-v2", answer) == {"": 2, "alignment": 1, "coherence": 2, "style": 3}
    else:
        with pytest.raises(ScoringError):
            parse_answer("unifiedreward-v2", answer)


def test_completions_that_were_cut_off_or_are_none_say_so() -> None:
    cut_off = completion("Final Score: 4", finish_reason="length")
    for answer, error, said in (
        (cut_off, ScoringError, r"cut off \(length\): 'Final Score: 4'"),
        (completion(None), ScoringError, "is empty"),
        ({"choices": []}, RewardError, "judge gave no chat completion"),
        ({"choices": [{"text": "x"}]}, RewardError, "judge gave no chat completion"),
    ):
        with pytest.raises(error, match=said):
            _content_of(answer, "judge")
