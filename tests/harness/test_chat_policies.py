"""What is of one of the newer policies alone; what all share is in test_policies."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from harness.config import compose
from harness.experiments.doctor.sizes import find_architecture, memory
from harness.experiments.doctor.speed import operations
from harness.models.pipelines.locate import find_pipeline
from harness.models.pipelines.policy import Policy
from harness.models.pipelines.registry import build_policy
from harness.prompts.lists import generator_for

MakePolicy = Callable[..., Policy]

PROMPTS = ["a red cat on a roof", "two boats, at night"]


def test_a_distilled_klein_takes_no_guidance(make_policy: MakePolicy, tmp_path: Path) -> None:
    policy = make_policy("flux2-klein", guidance=4.0)
    x, text = policy.noise(generator_for(1), 2), policy.encode(PROMPTS)
    with torch.no_grad():
        guided = policy.velocity(x, 0.5, text)
    folder = tmp_path / "distilled"
    shutil.copytree(policy._folder, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"is_distilled": True}))
    distilled = make_policy("flux2-klein", guidance=4.0, path=str(folder))
    with torch.no_grad():
        plain = distilled.velocity(x, 0.5, text)
        assert torch.equal(plain, distilled._predict(x, torch.full((2,), 0.5), text))
    assert not torch.allclose(plain, guided, atol=1e-3)


def test_prompts_of_other_lengths_change_no_velocity(make_policy: MakePolicy) -> None:
    for name in ("qwen-image", "z-image"):
        policy = make_policy(name, guidance=4.0)
        x, text = policy.noise(generator_for(1), 2), policy.encode(["a cat", PROMPTS[0]])
        with torch.no_grad():
            alone = torch.cat([policy.velocity(x[i : i + 1], 0.5, text[i : i + 1]) for i in range(2)])
            torch.testing.assert_close(policy.velocity(x, 0.5, text), alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model", ["flux2-klein", "qwen-image", "z-image"])
def test_a_model_s_file_fits_its_twin(make_policy: MakePolicy, model: str) -> None:
    config = compose("paper-lora", model=model, overrides=[f"model.path=twin:{model}", "model.precision=fp32"])
    small = {"height": 32, "width": 64}
    policy = build_policy(config.model.model_copy(update=small), config.optimizer, torch.device("cpu"), seed=0)
    adapted = {name.partition(".lora")[0] for name in policy.trainable()}
    assert all(
        any(f".{name}".endswith(f".{target}") for name in adapted) for target in config.optimizer.lora.target_modules
    )
    assert len(policy.sigmas(config.model.num_steps)) == config.model.num_steps + 1


# --- the doctor's sizes of them, and its operations of all


@pytest.mark.parametrize(
    ("model", "billions", "blocks", "width", "channels"),
    [
        ("qwen-image", 20.43, 60, 3072, 3584),
        ("flux2-klein", 9.08, 32, 4096, 12288),
        ("z-image", 6.15, 34, 3840, 2560),
    ],
)
def test_newer_models_are_counted_by_their_configurations(
    model: str, billions: float, blocks: int, width: int, channels: int
) -> None:
    config = compose("paper-lora", model=model)
    found = find_architecture(config.model.path, None)
    assert found is not None
    assert found.parameters == pytest.approx(billions * 1e9, rel=1e-3)
    assert (found.num_blocks, found.width, found.text_channels) == (blocks, width, channels)
    limit = 0.0 if model == "z-image" else 1.0
    at, above = (config.model.model_copy(update={"guidance": guidance}) for guidance in (limit, limit + 0.1))
    assert [found.forwards_per_velocity(one) for one in (at, above)] == [1, 2]
    assert found.trained(config) > 0
    parts = memory(config, found, [])
    assert parts["weights"] == 2 * found.parameters + 4 * found.trained(config)


def test_text_encoders_of_newer_models_have_the_parameters_that_are_written_down() -> None:
    shared = {"vocab_size": 151936, "num_hidden_layers": 36, "num_key_value_heads": 8, "head_dim": 128}
    seen = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    read = {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
    read |= {"num_attention_heads": 28, "num_key_value_heads": 4}
    with torch.device("meta"):
        made = {
            "Qwen/Qwen-Image": Qwen2_5_VLForConditionalGeneration(
                Qwen2_5_VLConfig(text_config=read, vision_config=seen, tie_word_embeddings=False)
            ),
            "black-forest-labs/FLUX.2-klein-base-9B": Qwen3ForCausalLM(
                Qwen3Config(hidden_size=4096, intermediate_size=12288, tie_word_embeddings=False, **shared)
            ),
            "Tongyi-MAI/Z-Image-Turbo": Qwen3Model(Qwen3Config(hidden_size=2560, intermediate_size=9728, **shared)),
        }
    for path, encoder in made.items():
        assert (found := find_architecture(path, None)) is not None
        assert found.text_encoders == sum(p.numel() for p in encoder.parameters())


@pytest.mark.parametrize("name", ["flux", "sd3", "flux2-klein", "qwen-image", "z-image"])
def test_operations_are_those_that_torch_counts(name: str, make_policy: MakePolicy) -> None:
    size = {"height": 128, "width": 256, "guidance": 0.0} if name == "z-image" else {"guidance": 1.0}  # 32 tokens or 64
    policy = make_policy(name, tuning="full", **size)
    inputs = policy.noise(generator_for(1)), 0.5, policy.encode(["a cat"])
    # torch does not count the attention that it has for CPUs.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        policy.velocity(*inputs)
    architecture = find_architecture(f"twin:{name}", find_pipeline(f"twin:{name}"))
    assert architecture is not None
    read = {"qwen-image": max(inputs[2].lengths), "z-image": -(-max(inputs[2].lengths) // 32) * 32}
    model = policy.config.model_copy(update={"max_sequence_length": read.get(name, policy.config.max_sequence_length)})
    assert architecture.forwards_per_velocity(model) == 1
    assert operations(architecture, model) == pytest.approx(counter.get_total_flops(), rel=0.02)
