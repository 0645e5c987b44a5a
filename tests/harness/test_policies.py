"""The policies on twins of what they are for: they do what the pipelines do, and train what they should."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from harness.config import ConfigError, OptimizerConfig
from harness.models.pipelines.files import model_fingerprint
from harness.models.pipelines.flux2 import Flux2KleinPolicy
from harness.models.pipelines.locate import TWIN_NAMES, find_pipeline
from harness.models.pipelines.policy import Policy
from harness.models.pipelines.qwen_image import QwenImagePolicy
from harness.models.pipelines.sd3 import StableDiffusion3Policy
from harness.models.pipelines.weights import put_lora
from harness.prompts.lists import generator_for
from harness.rollout import ode_trajectory
from harness.trained.checkpoints import LORA_FILE
from harness.training.engine import Engine
from harness.training.processes import Processes

MakePolicy = Callable[..., Policy]

PROMPTS = ["a red cat on a roof", "two boats, at night"]
GUIDANCE = {"flux": 3.5, "sd3": 4.5, "flux2-klein": 4.0, "qwen-image": 4.0, "z-image": 5.0}
SHIFT = dict.fromkeys(TWIN_NAMES, "dynamic") | {"sd3": 3.0, "z-image": 3.0}


@pytest.fixture(scope="module", params=TWIN_NAMES)
def policy(request: pytest.FixtureRequest, make_policy: MakePolicy) -> Policy:
    """As published: FLUX's dynamic shift and distilled guidance, SD3.5's static shift and classifier-free guidance."""
    name = request.param
    return make_policy(name, guidance=GUIDANCE[name], shift=SHIFT[name])


@pytest.mark.parametrize("name", ["flux", "sd3", "z-image"])
def test_every_static_shift_begins_at_one(make_policy: MakePolicy, name: str) -> None:
    """Some of these begin a few 1e-7 above or below 1 in the pipeline's own float32."""
    own = make_policy(name, shift=3.0)
    for shift in (0.35, 0.4, 1.0, 1.18, 1.32, 1.43, 1.57, 2.14, 2.57, 3.0):
        own.config = own.config.model_copy(update={"shift": shift})
        for steps in (1, 8, 16):
            sigmas = own.sigmas(steps)
            assert sigmas[0] == 1
            assert sigmas[-1] == 0
            assert bool((sigmas.diff() < 0).all())


def stir(policy: Policy) -> None:
    """Make LoRA adapters count: their B factors start at 0."""
    torch.manual_seed(1)
    for parameter in policy.trainable().values():
        torch.nn.init.normal_(parameter.data, std=0.1)


@pytest.mark.parametrize(("height", "width", "steps"), [(32, 64, 4), (64, 32, 3)])
def test_ode_equals_the_pipeline_s_own_pictures(policy: Policy, height: int, width: int, steps: int) -> None:
    policy._pipeline.set_progress_bar_config(disable=True)
    usual = policy.sigmas(4)
    with policy.resolution(height, width), policy.sampling():
        noise = policy.noise(generator_for(7), 2)
        x = ode_trajectory(policy.velocity, noise, policy.encode(PROMPTS), policy.sigmas(steps)).final
        ours = policy.decode(x)
        size = {"height": height, "width": width, "num_inference_steps": steps}
        size["max_sequence_length"] = policy.config.max_sequence_length
        guided = {"guidance_scale": policy.config.guidance}
        if isinstance(policy, QwenImagePolicy):
            guided = {"true_cfg_scale": policy.config.guidance, "negative_prompt": [""] * 2}
        # FLUX.2's takes them as pictures, the others as their networks do.
        given = noise.mT.reshape(2, *policy._noise_shape) if isinstance(policy, Flux2KleinPolicy) else noise
        theirs = policy._pipeline(prompt=[*PROMPTS], latents=given, output_type="pt", **size, **guided).images
    assert ours.shape == (2, 3, height, width)
    assert (ours - theirs).abs().max() <= 0.5 / 255 + 1e-4  # ours is rounded to 1/255
    assert torch.equal(policy.sigmas(4), usual)
    assert policy.decode(policy.noise(generator_for(1))).shape == (1, 3, 32, 64)
    with pytest.raises(ConfigError, match="multiples of 16"), policy.resolution(40, 32):
        pass


def test_classifier_free_guidance_is_one_forward_of_both_halves_and_none_is_a_plain_one(
    make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, forward = [], StableDiffusion3Policy._predict

    def noted(self: StableDiffusion3Policy, x: Tensor, *others: Any) -> Tensor:
        batches.append(len(x))
        return forward(self, x, *others)

    monkeypatch.setattr(StableDiffusion3Policy, "_predict", noted)
    for guidance in (4.5, 1.0):
        policy = make_policy("sd3", guidance=guidance)
        with policy.sampling():
            policy.velocity(policy.noise(generator_for(1), 2), 0.7, policy.encode(PROMPTS))
    assert batches == [4, 2]


@pytest.mark.parametrize("name", TWIN_NAMES)
def test_adapters_say_the_same_merged_and_in_plain_diffusers_and_the_base_is_the_reference(
    make_policy: MakePolicy, name: str, tmp_path: Path
) -> None:
    policy = make_policy(name, guidance=GUIDANCE[name])
    x, text = policy.noise(generator_for(1), 2), policy.encode(PROMPTS)
    with torch.no_grad():
        base = policy.velocity(x, 0.5, text)
        stir(policy)
        unmerged = policy.velocity(x, 0.5, text)
        before = {key: p.detach().clone() for key, p in policy.transformer.named_parameters()}
        with policy.sampling():
            merged = policy.velocity(x, 0.5, text)
        with policy.reference():
            reference = policy.velocity(x, 0.5, text)
    torch.testing.assert_close(merged, unmerged, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(reference, base)
    assert (merged - base).abs().max() > 1e-3
    assert all(torch.equal(p, before[key]) for key, p in policy.transformer.named_parameters())

    policy.save(tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(find_pipeline(f"twin:{name}"))
    pipeline.load_lora_weights(tmp_path)
    policy.transformer = pipeline.transformer
    with torch.no_grad():
        torch.testing.assert_close(policy.velocity(x, 0.5, text), unmerged, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", TWIN_NAMES)
def test_in_bf16_sampling_keeps_all_of_a_small_change(make_policy: MakePolicy, name: str, tmp_path: Path) -> None:
    lora = {"rank": 64, "alpha": 128, "merge_while_sampling": True}
    policy = make_policy(name, lora=lora, precision="bf16", guidance=GUIDANCE[name])
    x, text = policy.noise(generator_for(1), 2), policy.encode(PROMPTS)
    optimizer = torch.optim.AdamW(policy.trainable().values(), lr=1e-4)
    with policy.sampling():
        before = policy.velocity(x, 0.5, text)
    for updates in (1, 2):
        while optimizer.state_dict()["state"].get(0, {"step": 0})["step"] < updates:
            optimizer.zero_grad()
            policy.velocity(x, 0.5, text).square().mean().backward()
            optimizer.step()
        trained = policy.velocity(x, 0.5, text).detach()
        with policy.sampling():
            assert torch.equal(policy.velocity(x, 0.5, text), trained)
    assert not torch.equal(trained, before)

    policy.save(tmp_path)
    again = make_policy(name, precision="bf16", guidance=GUIDANCE[name])
    again.transformer.unload_lora()
    put_lora(again.transformer, tmp_path / LORA_FILE)
    with again.sampling():
        torch.testing.assert_close(again.velocity(x, 0.5, text), trained, atol=2e-2, rtol=0)
        assert (again.velocity(x, 0.5, text) - trained).norm() < 0.2 * (trained - before).norm()


def test_fp16_rounds_less_than_bf16_and_learns_with_a_scaled_loss(make_policy: MakePolicy) -> None:
    exact, fp16, bf16 = (make_policy("sd3", precision=p, guidance=4.5) for p in ("fp32", "fp16", "bf16"))
    x, text = exact.noise(generator_for(1), 2), fp16.encode(PROMPTS)
    for policy in (exact, fp16, bf16):
        stir(policy)
    with torch.no_grad():
        wanted, half, low = (policy.velocity(x, 0.5, exact.encode(PROMPTS)) for policy in (exact, fp16, bf16))
    assert (half - wanted).norm() < (low - wanted).norm() / 4

    def loss(policy: Policy = fp16) -> Tensor:  # of the size of a mean over a real latent
        return 1e-6 * policy.velocity(x, 0.5, text).square().mean()

    gradients = torch.autograd.grad(loss(exact), list(exact.trainable().values()))
    norm = float(torch.nn.utils.get_total_norm(gradients))
    engine = Engine(fp16, OptimizerConfig(), Processes(Accelerator(cpu=True), 60))
    lost, kept = (engine.update([loss], scale) for scale in (1.0, 2.0**16))
    assert kept == pytest.approx(norm, rel=0.1)
    assert abs(lost - kept) > abs(kept - norm)
    assert not math.isfinite(engine.update([loss], 2.0**126))


def test_adapters_cost_no_casts_and_say_the_same_without(make_policy: MakePolicy) -> None:
    policy = make_policy("flux", precision="bf16")
    stir(policy)
    inputs = policy.noise(generator_for(1), 2), 0.5, policy.encode(PROMPTS)

    def run() -> tuple[Tensor, int]:
        with profile(activities=[ProfilerActivity.CPU]) as found, policy.sampling():
            velocity = policy.velocity(*inputs)
        return velocity, sum(event.count for event in found.key_averages() if event.key == "aten::_to_copy")

    ours, few = run()
    layers = [module for module in policy.transformer.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.cast_input_dtype_enabled = True  # peft's own way
    theirs, many = run()
    assert torch.equal(ours, theirs)
    assert many - few >= 1.8 * len(layers)  # to float32 and back, but where an input is float32 already


def test_adapters_start_as_they_are_told_to(make_policy: MakePolicy) -> None:
    def factors(**lora: object) -> Tensor:
        weights = make_policy("flux", lora={"rank": 16, "alpha": 16, **lora}).trainable()
        return torch.cat([w.detach().flatten() for name, w in weights.items() if "lora_A" in name])

    assert factors().std() == pytest.approx(1 / 16, rel=0.05)
    assert factors(init="kaiming").abs().max() <= 1 / 64**0.5  # uniform, by the width


def test_full_tuning_trains_everything_and_keeps_a_reference(make_policy: MakePolicy) -> None:
    policy = make_policy("sd3", tuning="full", guidance=4.5)
    x, text = policy.noise(generator_for(1)), policy.encode(PROMPTS[:1])
    assert len(policy.trainable()) == len(list(policy.transformer.parameters()))
    policy.keep_reference()
    with torch.no_grad():
        base = policy.velocity(x, 0.5, text)
        for parameter in policy.trainable().values():
            parameter.mul_(1.1)
        assert not torch.allclose(policy.velocity(x, 0.5, text), base, atol=1e-4)
        with policy.reference():
            assert torch.equal(policy.velocity(x, 0.5, text), base)


def test_published_targets_are_adapted_and_no_other(make_policy: MakePolicy) -> None:
    lora = {"target_modules": ["attn.to_q", "attn.add_q_proj"]}
    adapted = {key.split(".lora")[0] for key in make_policy("sd3", lora=lora).trainable()}
    # The second attention of dual-attention blocks is another module.
    assert adapted == {f"transformer_blocks.{i}.attn.{part}" for i in range(3) for part in ("to_q", "add_q_proj")}
    with pytest.raises(ConfigError, match="target_modules"):
        make_policy("sd3", lora={"target_modules": ["attn.to_nowhere"]})


@pytest.mark.parametrize("name", TWIN_NAMES)
def test_saving_memory_changes_no_gradient_and_no_picture(make_policy: MakePolicy, name: str) -> None:
    gradients, pictures = [], []
    for saves in (False, True):
        execution = {"gradient_checkpointing": saves, "vae_slicing": saves}
        policy = make_policy(name, execution=execution, guidance=GUIDANCE[name])
        stir(policy)
        x, text = policy.noise(generator_for(1), 2), policy.encode(PROMPTS)
        policy.velocity(x, 0.7, text).square().mean().backward()
        gradients.append([p.grad for p in policy.trainable().values()])
        pictures.append(policy.decode(x))
        assert policy.transformer.is_gradient_checkpointing == policy._pipeline.vae.use_slicing == saves
    assert all(torch.equal(plain, again) for plain, again in zip(*gradients, strict=True))
    assert sum(gradient.abs().max() > 0 for gradient in gradients[0]) > len(gradients[0]) / 2
    torch.testing.assert_close(*pictures, atol=1.1 / 255, rtol=0)


def test_compiling_is_asked_of_every_block(make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(type(module).__name__))
    make_policy("flux", execution={"compile": "blocks"})
    assert compiled == ["FluxTransformerBlock"] * 2 + ["FluxSingleTransformerBlock"] * 2
    with pytest.raises(ConfigError, match="compile=auto"):  # its network takes lists
        make_policy("z-image", execution={"compile": "auto"})


def test_compiled_sampling_is_one_function_of_all_batches_and_weights(
    compiled: None, make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()  # what earlier tests compiled says which sizes vary, and would be guarded
    compilations: list[int] = []
    compile_it = torch.compile

    def backend(graph: Any, inputs: Any) -> Any:
        compilations.append(len(inputs))
        return graph.forward  # what dynamo traced, without the minute that code generation takes

    monkeypatch.setattr(torch, "compile", lambda network: compile_it(network, backend=backend))
    for _ in range(2):
        swift, plain = (make_policy("flux", execution={"compile": how}) for how in ("auto", "never"))
        for size in (3, 5, 1, 2):
            if size == 2:
                stir(swift)
                stir(plain)
            x, text = plain.noise(generator_for(1), size), plain.encode(["a boat"]).repeat(size)
            with swift.sampling(), plain.sampling():
                torch.testing.assert_close(swift.velocity(x, 0.5, text), plain.velocity(x, 0.5, text))
    assert len(compilations) == 1


def test_without_a_compiler_sampling_goes_on_and_says_so(
    compiled: None, make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    policy = make_policy("flux", execution={"compile": "auto"})
    assert "sampling is not compiled, and slower: no C++ compiler 'no-such-compiler'" in capsys.readouterr().err
    with policy.sampling():
        assert policy.velocity(policy.noise(generator_for(1), 2), 0.5, policy.encode(PROMPTS)).isfinite().all()


def test_a_twin_is_the_same_wherever_it_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = model_fingerprint(find_pipeline("twin:flux"))
    monkeypatch.setenv("ADAGRPO_CACHE", str(tmp_path))
    torch.manual_seed(123)
    drawn = torch.rand(1)
    torch.manual_seed(123)
    assert model_fingerprint(find_pipeline("twin:flux")) == here
    assert torch.equal(torch.rand(1), drawn)  # building it leaves the caller's random state alone
