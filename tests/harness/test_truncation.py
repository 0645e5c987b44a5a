"""Prompts that a text encoder reads in part only are counted, and said once per list."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from harness.config import OptimizerConfig, RewardConfig, compose
from harness.models.pipelines.registry import build_policy
from harness.models.pipelines.truncation import TextReader, truncations
from harness.rewards import RewardError, build_reward

LONG = "red " * 80
PROMPTS = ["a red fox", f"{LONG}fox", f"{LONG}cat", "red " * 75, "red " * 74 + "owl"]


def words(prompts: Sequence[str]) -> list[list[int]]:
    return [[*(sum(word.encode()) for word in prompt.split()), 0] for prompt in prompts]


@dataclass
class Reads:
    name: str
    limit: int

    def text_readers(self) -> Sequence[TextReader]:
        if not self.limit:
            raise RewardError(f"{self.name} has no tokenizer here")
        return [TextReader(self.name, self.limit, words)]


def test_prompts_that_are_cut_and_those_that_become_one_are_counted() -> None:
    assert truncations([Reads("all", 1000)], PROMPTS, "list") == []
    line, unknown = truncations([Reads("some", 76), Reads("none", 0)], PROMPTS, "prompts.train")
    assert line.startswith("prompts.train: some reads 76 tokens of a prompt: 2 of 5 are cut off, the first is 'red red")
    assert "fox'; 3 of them are the same" in line  # the one that just fits is among them
    assert unknown == "prompts.train: whether prompts are cut off is not known: none has no tokenizer here"
    (line,) = truncations([Reads("apart", 3)], ["a b c d", "e f g h"], "list")
    assert "the same" not in line


@pytest.mark.parametrize(("name", "twin"), [("hpsv2", "hpsv2"), ("clip", "clip"), ("pickscore", "clip")])
def test_clips_77_tokens_are_those_that_its_rewards_read(name: str, twin: str) -> None:
    scorer = build_reward(name, 1, RewardConfig(path=f"twin:{twin}"))
    (line,) = truncations([scorer], PROMPTS[:3], "list")
    assert f"reward {name} reads 77 tokens of a prompt: 2 of 3 are cut off" in line
    scores = scorer.score(torch.zeros(3, 3, 32, 32), PROMPTS[:3])
    assert scores[1] == scores[2] != scores[0]


@pytest.mark.parametrize(("profile", "encoders"), [("flux", ("", "_2")), ("sd3", ("", "_2", "_3"))])
def test_a_pipelines_text_encoders_are_asked(profile: str, encoders: tuple[str, ...]) -> None:
    changes = {"path": f"twin:{profile}", "allow_long_prompts": True, "max_sequence_length": 32}
    model = compose("paper-dry").model.model_copy(update=changes)
    policy = build_policy(model, OptimizerConfig(), torch.device("cpu"), 0)
    lines = truncations([policy], PROMPTS, "list")
    assert [line.split()[1] for line in lines] == [f"text_encoder{suffix}" for suffix in encoders]
    assert "reads 32 tokens" in lines[-1]
    assert truncations([policy], ["a fox"], "list") == []
