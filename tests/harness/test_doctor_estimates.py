"""The doctor's estimates: counts and sizes that agree with hand computation and with the code that runs."""

import json
from collections.abc import Sequence

import pytest
import torch
from accelerate import Accelerator

from harness.config import ROOT, RunConfig, compose
from harness.experiments.doctor.architecture import Architecture, find_architecture
from harness.experiments.doctor.compute import evaluation_pictures, forwards_of, seconds_per_forward
from harness.experiments.doctor.memory import (
    Estimate,
    checkpoint_bytes,
    estimate,
    trained_parameters,
)
from harness.models.pipelines.flux import FluxPolicy
from harness.prompts.lists import read_prompts
from harness.rewards import build_reward
from harness.runs.directory import RunDirectory
from harness.training.accounting import Counters, expected_cost
from harness.training.trainer import Trainer

FLUX = "black-forest-labs/FLUX.1-dev"
SD35 = "stabilityai/stable-diffusion-3.5-medium"
PLAIN = ["evaluation.base_test=false", "evaluation.interval=25", "evaluation.validation_prompts=96"]
PAPER = [f"model.path={FLUX}", "rollout.branch_indices=[0,2,4,6]", *PLAIN]
PAPER += [
    "model.height=512",
    "model.width=512",
    "model.num_steps=16",
    "model.max_sequence_length=256",
    "model.precision=bf16",
]
PAPER += ["model.max_batch=12", "rollout.candidates=10", "rollout.group_size=12"]


def config_of(*overrides: str) -> RunConfig:
    return compose("miniature-luck", overrides=overrides)


def architecture_of(path: str) -> Architecture:
    architecture = find_architecture(path, None)
    assert architecture is not None
    return architecture


# --- counts


def test_forwards_of_the_published_setting() -> None:
    assert expected_cost(config_of(*PAPER)) == Counters(592, 4, 48)
    assert Counters(592, 4, 48).forwards == 604  # a trained sample counts three
    for override in ("selection=curriculum", "fusion.enabled=true"):
        assert expected_cost(config_of(*PAPER, override)).sample_forwards == 736
    assert expected_cost(config_of(*PAPER, "rollout.prompts_per_update=8")).sample_forwards == 8 * 592


@pytest.mark.parametrize("selection", ["random", "curriculum"])
@pytest.mark.parametrize("kind", ["anchor_branch", "full_sde"])
def test_expected_counts_are_what_the_trainer_counts(kind: str, selection: str) -> None:
    small = "rollout.candidates=2 rollout.group_size=3 rollout.branch_indices=[1,4] rollout.prompts_per_update=2"
    updates = "objective.updates_per_iteration=2 objective.clip_range=0.1 objective.kl_beta=0.01"
    overrides = [f"rollout.kind={kind}", f"selection={selection}", "reward={colour: 1}"]
    config = config_of(*overrides, *small.split(), *updates.split())
    policy = FluxPolicy(config.model, config.optimizer, torch.device("cpu"), seed=0)
    prompts = read_prompts(config.prompts.train).prompts
    record = Trainer(config, policy, build_reward("colour"), prompts, Accelerator(cpu=True)).iterate()
    assert {name: record[name] for name in vars(Counters())} == vars(expected_cost(config))


def test_pictures_of_evaluations_are_what_a_run_draws(lora_run: RunDirectory) -> None:
    records = [json.loads(line) for line in (lora_run.folder / "eval.jsonl").read_text().splitlines()]
    drawn = sum(record["num_prompts"] * record["num_noises"] for record in records)
    assert lora_run.config.evaluation.gallery == 0
    assert evaluation_pictures(lora_run.config, 240, 4) == drawn
    # Before, at 25, 50, 75, 100, each with a gallery of 8; the test list once.
    assert evaluation_pictures(config_of(*PLAIN, "iterations=100"), 240, 240) == 5 * (96 + 8) + 240
    assert evaluation_pictures(config_of(*PLAIN, "iterations=101"), 240, 240) == 6 * (96 + 8) + 240


def test_forwards_add_up_over_runs_and_evaluations() -> None:
    configs = [config_of(*PAPER, "iterations=10"), config_of(*PAPER, "iterations=20", "selection=medium")]
    training = 10 * (592 + 3 * 4) + 20 * (736 + 3 * 4)
    assert forwards_of(configs, lambda config, split: 50) == training + 16 * 2 * (2 * (50 + 8) + 50)
    other_steps = config_of(*PAPER, "iterations=10", "evaluation.num_steps=40")
    assert forwards_of([other_steps], lambda config, split: 50) == 10 * 604 + 40 * (2 * (50 + 8) + 50)


# --- sizes


def test_parameters_of_the_published_models() -> None:
    flux, sd35 = architecture_of(FLUX), architecture_of(SD35)
    assert flux.parameters == pytest.approx(11.9e9, rel=0.005)
    assert (flux.num_blocks, flux.width, flux.latent_channels_per_token) == (57, 3072, 64)
    assert sd35.parameters == pytest.approx(2.24e9, rel=0.005)
    assert (sd35.num_blocks, sd35.width, sd35.latent_channels_per_token) == (24, 1536, 64)
    model = config_of(*PAPER).model
    assert flux.tokens(model) == 1024 + 256
    assert sd35.tokens(model) == 1024 + 77 + 256
    assert (flux.forwards_per_velocity(model), sd35.forwards_per_velocity(model)) == (1, 2)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_sizes_of_the_miniature_are_those_of_the_policy(tuning: str) -> None:
    config = config_of(f"optimizer.tuning={tuning}", "optimizer.weight_ema=0.9")
    architecture = find_architecture(config.model.path, ROOT / config.model.path)
    assert architecture is not None
    policy = FluxPolicy(config.model, config.optimizer, torch.device("cpu"), seed=0)
    trained = sum(p.numel() for p in policy.trainable().values())
    assert trained_parameters(config, architecture) == trained
    parts = estimate(config, architecture, []).parts
    assert parts["weights"] == 4 * sum(p.numel() for p in policy.transformer.parameters())
    assert (parts["gradients"], parts["optimiser"], parts["averaged weights"]) == (
        4 * trained,
        8 * trained,
        4 * trained,
    )
    encoders = (policy._pipeline.text_encoder, policy._pipeline.text_encoder_2)
    assert parts["text encoders"] == 4 * sum(p.numel() for encoder in encoders for p in encoder.parameters())
    assert architecture.vae == sum(p.numel() for p in policy._pipeline.vae.parameters())
    latent = policy.noise(torch.Generator())
    assert latent.numel() == architecture.latent_channels_per_token * architecture.image_tokens(config.model)


def test_a_runs_disk_is_what_a_run_takes(lora_run: RunDirectory) -> None:
    config = lora_run.config
    architecture = find_architecture(config.model.path, ROOT / config.model.path)
    assert architecture is not None
    files = [path for path in (lora_run.folder / "checkpoints").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) == pytest.approx(checkpoint_bytes(config, architecture), rel=0.1)


@pytest.mark.parametrize(
    ("name", "gpu", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100", 312e12),
        ("NVIDIA GeForce RTX 4090", "RTX 4090", 165e12),
        ("Another", "H100", 989e12),
        (None, "H100", 989e12),
    ],
)
def test_seconds_of_a_forward_by_hand(name: str | None, gpu: str, peak: float) -> None:
    flux, sd35 = architecture_of(FLUX), architecture_of(SD35)
    operations = 2 * flux.parameters * 1280 + 4 * 1280**2 * 3072 * 57
    assert seconds_per_forward(flux, config_of(*PAPER), name) == (pytest.approx(operations / (peak * 0.4)), gpu)
    guided, _ = seconds_per_forward(sd35, config_of(*PAPER), name)
    assert guided == pytest.approx(2 * seconds_per_forward(sd35, config_of(*PAPER, "model.guidance=1"), name)[0])


# --- memory


def test_full_fine_tuning_of_flux_needs_18_bytes_a_parameter_and_a_reference_four_more() -> None:
    flux = architecture_of(FLUX)
    config = config_of(*PAPER, "optimizer.tuning=full")
    parts = estimate(config, flux, ["hpsv3", "hpsv3", "ocr"]).parts
    assert parts["weights"] + parts["gradients"] + parts["optimiser"] == 18 * flux.parameters
    assert parts["reward models"] == pytest.approx(15.5e9, rel=0.01)
    with_kl = estimate(config_of(*PAPER, "optimizer.tuning=full", "objective.kl_beta=0.1"), flux, []).parts
    assert with_kl["weights of the KL reference"] == 4 * flux.parameters
    # Candidates' 10 paths of 16 steps, and 4 groups of 12, of 64 x 1024 numbers each.
    chosen = estimate(config_of(*PAPER, "selection=medium"), flux, []).parts
    assert chosen["latents"] == 4 * 64 * 1024 * (10 * 33 + 4 * 12 * 4)


def test_engines_leave_a_process_its_share() -> None:
    flux = architecture_of(FLUX)
    eight = [*PAPER, "optimizer.tuning=full", "runtime.processes=8", "rollout.prompts_per_update=8"]
    eight += ["model.execution={compile: never, text_encoders: free}"]
    alone, shared = (estimate(config_of(*eight, f"runtime.engine={engine}"), flux, []) for engine in ("ddp", "fsdp2"))
    count = flux.parameters
    assert alone.parts["weights"] + alone.parts["gradients"] + alone.parts["optimiser"] == 18 * count
    # A copy in bf16 is made of all weights in a forward, whoever holds them.
    assert shared.parts["weights"] == pytest.approx(count * (4 / 8 + 2))
    assert shared.parts["gradients"] + shared.parts["optimiser"] == pytest.approx(count * 12 / 8)
    assert shared.parts["weights gathered"] == pytest.approx(2 * 4 * count / 57, rel=0.01)
    assert shared.total < 141e9 < alone.total
    small = [*eight, "model.max_batch=1", "runtime.engine=fsdp2", "runtime.processes=64"]
    small += ["rollout.prompts_per_update=64"]
    assert estimate(config_of(*small), flux, []).moment == "sharing"  # each process reads the whole first


def moment_of(*overrides: str, rewards: Sequence[str] = ()) -> Estimate:
    """Of Stable Diffusion 3.5 medium in the paper's setting."""
    return estimate(config_of(*PAPER, f"model.path={SD35}", *overrides), architecture_of(SD35), rewards)


def test_the_fullest_moment_counts_and_settings_that_save_memory_make_it_smaller() -> None:
    sd35, blocks = architecture_of(SD35), 24
    of_a_sample = 2 * 2 * (1024 + 77 + 256) * 1536  # twice for guidance, in 16 bits
    plain = moment_of("model.execution.text_encoders=free", "rollout.prompts_per_update=4")
    # 34 bytes per token and channel of 4 prompts of 4 steps, at most model.max_batch of them in a forward.
    assert (plain.moment, plain.parts["activations"]) == ("updating", 12 * of_a_sample * 17 * blocks)
    assert "text encoders" not in plain.parts
    few = moment_of("model.execution.max_train_batch=3", "rollout.prompts_per_update=4")
    assert few.parts["activations"] == 3 * of_a_sample * 17 * blocks
    assert few.parts["text encoders"] == 2 * sd35.text_encoders
    # One prompt of 4 steps, two updates of two steps each.
    dealt = moment_of("objective.updates_per_iteration=2", "objective.update_on=steps", "model.max_batch=4")
    assert dealt.parts["activations"] == 2 * of_a_sample * 17 * blocks
    frugal = "model.execution={text_encoders: free, gradient_checkpointing: true, max_train_batch: 12}"
    # Before training the encoders are there, but neither gradients nor moments.
    encoding = moment_of(frugal, "rollout.prompts_per_update=4")
    assert encoding.moment == "encoding"
    assert encoding.parts["text encoders"] == 2 * sd35.text_encoders
    assert "gradients" not in encoding.parts


def test_pictures_decoded_one_at_a_time_need_one_picture_s_memory() -> None:
    large = ["model.height=1024", "model.width=1024", "model.execution.gradient_checkpointing=true"]
    many, one = (moment_of(*large, f"model.execution.vae_slicing={sliced}") for sliced in ("false", "true"))
    assert many.moment == "decoding"
    assert many.parts["activations of the autoencoder"] == 12 * 3 * 4 * 256 * 1024**2
    assert one.moment != "decoding"


def test_offloaded_rewards_count_while_they_score_and_others_elsewhere_never() -> None:
    kept = moment_of(rewards=["hpsv2", "clip"])
    sizes = 4 * 986_109_441, 4 * 427_616_513
    assert kept.parts["reward models"] == sum(sizes)
    offload = "rewards={hpsv2: {offload: true}, clip: {offload: true}}"
    scoring = moment_of(offload, "rollout.group_size=2", "model.max_batch=1", rewards=["hpsv2", "clip"])
    assert (scoring.moment, scoring.parts["reward models"]) == ("scoring", sizes[0])
    elsewhere = "rewards={hpsv2: {backend: url, url: 'http://a'}, clip: {device: cpu}}"
    assert moment_of(elsewhere, rewards=["hpsv2", "clip"]).parts["reward models"] == 0
    assert moment_of("rewards.hpsv2.precision=bf16", rewards=["hpsv2"]).parts["reward models"] == sizes[0] // 2
    # On a CPU there is nowhere to go.
    config = config_of(*PAPER, offload)
    on_cpu = estimate(config, architecture_of(FLUX), ["hpsv2", "clip"], on_gpu=False).parts
    assert on_cpu["reward models"] == sum(sizes)
    assert not on_cpu["CUDA context and workspace"]


def test_the_profile_for_one_gpu_fits_one_of_24_gigabytes() -> None:
    config = compose("single-gpu")
    needed = estimate(config, architecture_of(config.model.path), [*config.reward, *config.evaluation.judges])
    assert needed.total < 24e9
    assert needed.parts["text encoders"] > needed.total / 2
    assert needed.moment == "encoding"
