"""Estimates of memory: by hand, at the fullest moment of a run, and what is said to make them smaller."""

from collections.abc import Sequence

import pytest

from harness.config import RunConfig, compose
from harness.experiments.doctor.architecture import Architecture, find_architecture
from harness.experiments.doctor.memory import Estimate, activation_bytes, estimate, how_to_save, sampling_bytes

FLUX = "black-forest-labs/FLUX.1-dev"
SD35 = "stabilityai/stable-diffusion-3.5-medium"
PAPER = [
    f"model.path={FLUX}",
    "model.height=512",
    "model.width=512",
    "model.num_steps=16",
    "model.max_sequence_length=256",
    "model.precision=bf16",
    "model.max_batch=12",
    "rollout.candidates=10",
    "rollout.group_size=12",
    "rollout.branch_indices=[0,2,4,6]",
]


def config_of(*overrides: str) -> RunConfig:
    return compose("miniature-luck", overrides=overrides)


def architecture_of(path: str) -> Architecture:
    architecture = find_architecture(path, None)
    assert architecture is not None
    return architecture


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
    small = [
        *eight,
        "model.max_batch=1",
        "runtime.engine=fsdp2",
        "runtime.processes=64",
        "rollout.prompts_per_update=64",
    ]
    assert estimate(config_of(*small), flux, []).moment == "sharing"  # each process reads the whole first
    advice = how_to_save(config_of(*eight), "updating")
    assert advice == "share the model out: runtime.engine=fsdp2; or train adapters: optimizer.tuning=lora"


def test_activations_by_hand_and_checkpointing_keeps_less() -> None:
    assert activation_bytes(2, 10, 8, num_blocks=3, element=2) == 3 * 34 * 2 * 10 * 8
    assert activation_bytes(2, 10, 8, num_blocks=3, element=2, checkpointing=True) == (3 * 2 + 34) * 2 * 10 * 8
    assert sampling_bytes(2, 10, 8, element=4) == 2 * 10 * 8 * 4 * 12


def moment_of(*overrides: str, rewards: Sequence[str] = ()) -> Estimate:
    """Of Stable Diffusion 3.5 medium in the paper's setting."""
    return estimate(config_of(*PAPER, f"model.path={SD35}", *overrides), architecture_of(SD35), rewards)


def test_the_fullest_moment_counts_and_settings_that_save_memory_make_it_smaller() -> None:
    sd35, blocks, tokens = architecture_of(SD35), 24, 1024 + 77 + 256
    plain = moment_of("model.execution.text_encoders=free", "rollout.prompts_per_update=4")
    # 4 prompts of 4 steps, at most model.max_batch of them in a forward, twice for guidance.
    assert (plain.moment, plain.parts["activations"]) == (
        "updating",
        activation_bytes(2 * 12, tokens, 1536, blocks, element=2),
    )
    assert "text encoders" not in plain.parts
    few = moment_of("model.execution.max_train_batch=3", "rollout.prompts_per_update=4")
    assert few.parts["activations"] == activation_bytes(2 * 3, tokens, 1536, blocks, element=2)
    assert few.parts["text encoders"] == 2 * sd35.text_encoders
    # One prompt of 4 steps, two updates of two steps each.
    dealt = moment_of("objective.updates_per_iteration=2", "objective.update_on=steps", "model.max_batch=4")
    assert dealt.parts["activations"] == activation_bytes(2 * 2, tokens, 1536, blocks, element=2)
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
    assert "CUDA context and workspace" not in on_cpu


def test_the_profile_for_one_gpu_fits_one_of_24_gigabytes() -> None:
    config = compose("single-gpu")
    needed = estimate(config, architecture_of(config.model.path), [*config.reward, *config.evaluation.judges])
    assert needed.total < 24e9
    assert needed.parts["text encoders"] > needed.total / 2
    assert needed.moment == "encoding"


@pytest.mark.parametrize(
    ("overrides", "moment", "advice"),
    [
        (["optimizer.tuning=full"], "updating", "optimizer.tuning=lora"),
        ([], "sampling", "model.execution.text_encoders=free"),
        (["model.execution={text_encoders: free}"], "updating", "model.execution.gradient_checkpointing=true"),
        (
            ["model.execution={text_encoders: free, gradient_checkpointing: true, max_train_batch: 4}"],
            "updating",
            "lower model.execution.max_train_batch, now 4",
        ),
        (["model.execution={text_encoders: free}"], "decoding", "model.execution.vae_slicing=true"),
        (["model.execution={text_encoders: free}"], "sampling", "lower model.max_batch, now 64"),
        (["model.execution={text_encoders: free}"], "encoding", "use a larger GPU"),
    ],
)
def test_advice_is_what_helps_at_that_moment(overrides: list[str], moment: str, advice: str) -> None:
    assert advice in how_to_save(config_of(*overrides), moment)
