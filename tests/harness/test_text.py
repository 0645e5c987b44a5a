"""Text conditioning of policies: encoders that are freed leave their embeddings on disk, and memory is bounded."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness.config import ConfigError, ModelConfig
from harness.models.pipelines.embedding import PromptEmbedding
from harness.models.pipelines.embedding_store import EmbeddingStore, embeddings_folder
from harness.models.pipelines.locate import TWIN_NAMES, find_pipeline
from harness.models.pipelines.policy import Policy

MakePolicy = Callable[..., Policy]

FREED = {"text_encoders": "free"}
PLUG_IN = """
from harness.models.pipelines.embedding import PromptEmbedding
from harness.models.pipelines.flux import FluxPolicy

class Doubled(FluxPolicy):
    def _encode_text(self, prompts):
        text = super()._encode_text(prompts)
        return PromptEmbedding(2 * text.states, text.pooled)
"""
PROMPTS = ["a red cat on a roof", "two boats, at night"]


@pytest.mark.parametrize("name", TWIN_NAMES)
def test_freed_encoders_leave_the_same_embeddings_on_disk(
    make_policy: MakePolicy, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, policy, again = make_policy(name), *(make_policy(name, execution=FREED) for _ in range(2))
    prompts = [*PROMPTS, f"only {name} reads this"]
    with pytest.raises(RuntimeError, match="not among those given to prepare_prompts"):
        policy.encode(prompts[2:])
    # Two processes share the work; the empty prompt of classifier-free guidance comes along.
    for process in range(2):
        policy.prepare_prompts(prompts, process, 2)
    assert all(getattr(policy._pipeline, encoder) is None for encoder in policy._encoders)
    for prompt in (*prompts, ""):
        ours, theirs = policy.encode([prompt]), kept.encode([prompt])
        torch.testing.assert_close(ours.states, theirs.states, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.pooled, theirs.pooled, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(again, "_encode_text", None)
    again.prepare_prompts(prompts)  # all on disk: no encoder is loaded
    assert len(again.encode(prompts)) == 3


def test_a_plug_in_s_embeddings_are_not_those_of_the_built_in_policy(make_policy: MakePolicy, tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(PLUG_IN)
    built_in, own = (make_policy("flux", execution=FREED, adapter=a) for a in (None, f"{tmp_path / 'my.py'}:Doubled"))
    for policy in (built_in, own):
        policy.prepare_prompts(PROMPTS)
    torch.testing.assert_close(own.encode(PROMPTS).states, 2 * built_in.encode(PROMPTS).states)


def test_a_damaged_embedding_is_one_clear_line(make_policy: MakePolicy) -> None:
    policy = make_policy("flux", execution=FREED)
    policy.prepare_prompts(["a prompt to be damaged"])
    file = policy._store._file("a prompt to be damaged")
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(ConfigError, match="a cached embedding is damaged") as error:
        policy.encode(["a prompt to be damaged"])
    assert "\n" not in str(error.value)


def test_a_summary_does_not_depend_on_padding() -> None:
    states = torch.randn(3, 4)
    long, short = (PromptEmbedding.padded([states], length).summary for length in (100, 3))
    torch.testing.assert_close(long, short)
    torch.testing.assert_close(short[0], states.mean(0))


def test_embeddings_of_other_code_are_not_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, twin = ModelConfig(path="twin:flux"), find_pipeline("twin:flux")
    folders = {embeddings_folder(twin, model, policy) for policy in ("FluxPolicy", "Flux2Policy")}
    monkeypatch.setattr("harness.models.pipelines.embedding_store.version", lambda package: "of tomorrow")
    assert len({*folders, embeddings_folder(twin, model, "FluxPolicy")}) == 3


def test_memory_of_embeddings_is_bounded_and_the_least_used_leaves_first() -> None:
    computed: list[str] = []

    def compute(prompts: list[str]) -> PromptEmbedding:
        computed.extend(prompts)
        return PromptEmbedding(torch.ones(len(prompts), 2, 4), torch.ones(len(prompts), 4))  # 48 bytes per prompt

    store = EmbeddingStore(torch.device("cpu"), memory_bytes=100)
    for prompts in (["a", "b"], ["a"], ["c"], ["a", "c"], ["b"]):
        assert len(store.get(prompts, compute)) == len(prompts)
    assert computed == ["a", "b", "c", "b"]


def test_prompts_the_encoder_does_not_know_are_refused_unless_allowed(make_policy: MakePolicy) -> None:
    policy = make_policy("flux")
    with pytest.raises(ConfigError, match="cannot draw"):
        policy.check_prompts(["ein Kätzchen"])
    make_policy("flux", allow_unknown_tokens=True).check_prompts(["ein Kätzchen"])
    with pytest.raises(ConfigError, match="tokens, but"):
        policy.check_prompts(["x" * 40])
    # The start of a long prompt is read, and nothing behind it.
    reads_the_start = make_policy("flux", allow_long_prompts=True)
    long, longer = "x" * 40, "x" * 40 + "y"
    reads_the_start.check_prompts([long, longer])
    states = reads_the_start.encode([long, longer, "x"]).states
    assert torch.equal(states[0], states[1])
    assert not torch.allclose(states[0], states[2], atol=1e-3)
