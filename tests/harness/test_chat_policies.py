"""What is of one of the newer policies alone; what all share is in test_policies."""

from collections.abc import Callable

import pytest
import torch

from harness.config import ConfigError, compose
from harness.models.pipelines.policy import Policy
from harness.models.pipelines.registry import build_policy
from harness.prompts.lists import generator_for

MakePolicy = Callable[..., Policy]

PROMPTS = ["a red cat on a roof", "two boats, at night"]


def test_a_distilled_klein_takes_no_guidance(make_policy: MakePolicy) -> None:
    policy = make_policy("flux2-klein", guidance=4.0)
    x, text = policy.noise(generator_for(1), 2), policy.encode(PROMPTS)
    with torch.no_grad():
        guided = policy.velocity(x, 0.5, text)
        policy._pipeline.register_to_config(is_distilled=True)
        plain = policy.velocity(x, 0.5, text)
        assert torch.equal(plain, policy._predict(x, torch.full((2,), 0.5), text))
    assert not torch.allclose(plain, guided, atol=1e-3)


def test_a_network_of_lists_is_not_compiled_whole(make_policy: MakePolicy) -> None:
    with pytest.raises(ConfigError, match="compile=auto"):
        make_policy("z-image", execution={"compile": "auto"})


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
