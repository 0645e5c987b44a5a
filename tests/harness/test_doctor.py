"""The doctor: what a profile needs of a machine, by hand computation and by the code that runs; and what is missing."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness import cli
from harness.commands import grids
from harness.config import ROOT, RunConfig, compose
from harness.experiments import plan
from harness.experiments.doctor import checks
from harness.experiments.doctor.checks import Gpu, check, size, verdict
from harness.experiments.doctor.sizes import Architecture, disk_bytes, find_architecture, host_memory, memory
from harness.experiments.doctor.speed import gathered_bytes, operations, seconds_per_forward
from harness.experiments.plan import evaluation_pictures, expected_forwards
from harness.foundation.records import read_lines
from harness.models.pipelines.flux import FluxPolicy
from harness.runs import checkpoints
from harness.runs.directory import RunDirectory, prepare_run
from tests.harness.conftest import finish

FLUX = "black-forest-labs/FLUX.1-dev"
SD35 = "stabilityai/stable-diffusion-3.5-medium"
PLAIN = ["evaluation.base_test=false", "evaluation.interval=25", "evaluation.validation_prompts=96"]
PAPER = [f"model.path={FLUX}", "rollout={candidates: 10, group_size: 12, branch_indices: [0, 2, 4, 6]}", *PLAIN]
PAPER += [f"model.{setting}" for setting in ("height=512", "width=512", "num_steps=16", "max_batch=12")]
PAPER += ["model.max_sequence_length=256", "model.precision=bf16"]
DRAWING, UPDATING = "activations, or an offloaded reward", "activations of an update, or its step"


def config_of(*overrides: str) -> RunConfig:
    return compose("miniature-luck", overrides=overrides)


def architecture_of(path: str, folder: Path | None = None) -> Architecture:
    architecture = find_architecture(path, folder)
    assert architecture is not None
    return architecture


# --- counts


def test_pictures_and_forwards_of_evaluations_are_what_a_run_draws(
    lora_run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = read_lines(lora_run.folder / "eval.jsonl")
    drawn = sum(record["num_prompts"] * record["num_noises"] for record in records)
    assert lora_run.config.evaluation.gallery == 0
    assert sum(evaluation_pictures(lora_run.config)) == drawn
    monkeypatch.setattr(plan, "num_prompts", lambda path: 240)
    # At 25, 50, 75, 100; the gallery of 8 before, too; the test list once.
    assert evaluation_pictures(config_of(*PLAIN, "iterations=100")) == (4 * 96 + 5 * 8 + 240, 96)
    assert evaluation_pictures(config_of(*PLAIN, "iterations=101")) == (5 * 96 + 6 * 8 + 240, 96)
    forwards = 10 * (592 + 3 * 4) + 40 * (2 * (96 + 8) + 240)
    assert expected_forwards(config_of(*PAPER, "iterations=10", "evaluation.num_steps=40")) == forwards


@pytest.mark.parametrize(
    ("name", "gpu", "peak"),
    [("NVIDIA GeForce RTX 4090", "RTX 4090", 165e12), ("Another", "H100", 989e12), ("", "H100", 989e12)],
)
def test_seconds_of_a_forward_by_hand(name: str, gpu: str, peak: float) -> None:
    flux, sd35 = architecture_of(FLUX), architecture_of(SD35)
    expected = operations(flux, config_of(*PAPER).model) / (peak * 0.4)
    assert seconds_per_forward(flux, config_of(*PAPER), name) == (pytest.approx(expected), gpu)
    guided, plain = (seconds_per_forward(sd35, config_of(*PAPER, f"model.guidance={g}"), name)[0] for g in (4.5, 1))
    assert guided == pytest.approx(2 * plain)


@pytest.mark.parametrize(
    ("path", "billions", "blocks", "width", "tokens", "tera_operations"),
    # torch.utils.flop_counter's own count of the published configurations on the device meta.
    [(FLUX, 11.9, 57, 3072, 1024 + 256, 17.686), (SD35, 2.24, 24, 1536, 1024 + 77 + 256, 2.443)],
)
def test_sizes_of_the_published_models(
    path: str, billions: float, blocks: int, width: int, tokens: int, tera_operations: float
) -> None:
    found, model = architecture_of(path), config_of(*PAPER).model
    assert found.parameters == pytest.approx(billions * 1e9, rel=0.005)
    assert (found.num_blocks, found.width, found.tokens(model)) == (blocks, width, tokens)
    # Modulation layers act once a sample, and text layers on text.
    assert operations(found, model) == pytest.approx(tera_operations * 1e12, rel=1e-3)


def test_shared_weights_are_gathered_for_each_forward_and_backward() -> None:
    config, flux = compose("paper"), architecture_of(FLUX)
    # 736 forwards in batches of 12; 4 trained samples in 1 part of 4, each forward and backward.
    expected = (62 + 2 * 1) * flux.parameters * 4 * 7 / 8
    assert gathered_bytes(flux, config) == pytest.approx(expected)
    assert gathered_bytes(flux, compose("paper-lora")) == 0


# --- sizes


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_sizes_of_the_miniature_are_those_of_the_policy(tuning: str) -> None:
    config = config_of(f"optimizer.tuning={tuning}", "optimizer.weight_ema=0.9")
    architecture = architecture_of(config.model.path, ROOT / config.model.path)
    policy = FluxPolicy(config.model, config.optimizer, torch.device("cpu"), seed=0)
    trained = sum(p.numel() for p in policy.trainable().values())
    parts = memory(config, architecture, [])
    assert parts["weights"] == 4 * sum(p.numel() for p in policy.transformer.parameters())
    assert [parts[name] for name in ("optimiser", "averaged weights")] == [8 * trained, 4 * trained]
    # An update that is fuller than a rollout.
    drawn = ["model.max_batch=1", "rollout.prompts_per_iteration=4", "model.execution.max_train_batch=64"]
    assert memory(config_of(*drawn, f"optimizer.tuning={tuning}"), architecture, [])["gradients"] == 4 * trained
    encoders = (policy._pipeline.text_encoder, policy._pipeline.text_encoder_2)
    assert parts["text encoders"] == 4 * sum(p.numel() for encoder in encoders for p in encoder.parameters())
    assert parts["autoencoder"] == 4 * sum(p.numel() for p in policy._pipeline.vae.parameters())


def test_a_runs_disk_is_what_a_run_takes_and_a_finished_one_can_leave_its_weights_alone(
    lora_run: RunDirectory, tmp_path: Path
) -> None:
    small = finish(tmp_path, "optimizer.tuning=full", "runtime.checkpoints_of_finished=remove")
    architecture = architecture_of(small.config.model.path, ROOT / small.config.model.path)
    for run in (lora_run, small):
        files = [path for path in (run.folder / "checkpoints").rglob("*") if path.is_file()]
        taken = sum(path.stat().st_size for path in files)
        assert taken == pytest.approx(disk_bytes(run.config, architecture), rel=0.1)
    assert small.status()["state"] == "finished"
    assert disk_bytes(small.config, architecture) == 4 * architecture.parameters
    left = checkpoints.folder_of(small.checkpoints, 1)
    left.mkdir()  # as by a kill between the end and the removal
    prepare_run(small.config, tmp_path)
    assert not left.exists()


def parts_of(path: str, *overrides: str, rewards: tuple[str, ...] = (), on_gpu: bool = True) -> dict[str, int]:
    """Memory of a model in the paper's setting."""
    return memory(config_of(*PAPER, f"model.path={path}", *overrides), architecture_of(path), rewards, on_gpu)


def test_full_fine_tuning_needs_16_bytes_a_parameter_and_engines_share_them() -> None:
    full, count = "optimizer.tuning=full", architecture_of(FLUX).parameters
    two = [full, "runtime.processes=2", "rollout.prompts_per_iteration=8"]
    two += ["model.execution={compile: never, gradient_checkpointing: true}"]
    alone, shared = (
        parts_of(FLUX, *two, f"runtime.engine={engine}", rewards=("hpsv3", "ocr")) for engine in ("ddp", "fsdp2")
    )
    assert alone["weights"] + alone["gradients"] + alone["optimiser"] == 16 * count
    assert alone["reward models"] == pytest.approx(15.5e9, rel=0.01)
    # No copy in bf16 outlives a layer; the largest block is used, and the next arrives and is cut.
    assert shared["weights"] == pytest.approx(count * 4 / 2)
    assert shared["blocks gathered"] == pytest.approx(3 * 4 * 340e6, rel=0.01)
    assert shared["gradients"] + shared["optimiser"] == pytest.approx(count * 12 / 2)
    # Many processes hold the most before weights are sharded.
    many = ["runtime.engine=fsdp2", "runtime.processes=8", "objective.kl_beta=0.1"]
    whole = parts_of(FLUX, *two, *many, rewards=("hpsv3",))
    assert (whole["weights"], whole["weights of the KL reference"]) == (4 * count, 4 * count)
    assert "gradients" not in whole
    assert parts_of(FLUX, full, "objective.kl_beta=0.1")["weights of the KL reference"] == 4 * count


def test_gradients_are_there_in_an_update_alone_and_without_checkpointing_so_are_copies_of_weights() -> None:
    full, checkpointing = ("optimizer.tuning=full", "model.max_batch=1"), "model.execution.gradient_checkpointing=true"
    frugal, plain = parts_of(FLUX, *full, checkpointing), parts_of(FLUX, *full)
    assert "gradients" in frugal
    assert frugal[UPDATING] == 4 * architecture_of(FLUX).parameters  # AdamW's step, all weights together
    assert plain[UPDATING] > 2 * architecture_of(FLUX).parameters
    drawing = parts_of(FLUX, "model.max_batch=96", checkpointing, "model.execution.vae_slicing=true")
    assert "gradients" not in drawing
    # 24 numbers of 16 bits: norms are float32 under CUDA's autocast, and so is what they are joined with.
    assert drawing[DRAWING] == 24 * 2 * 96 * 1280 * 3072


@pytest.mark.parametrize(("profile", "taken", "free"), [("paper", 69.7, 79.1 * 2**30), ("single-gpu", 16.5, 24e9)])
def test_a_profile_takes_what_is_written_and_fits_its_gpu(profile: str, taken: float, free: float) -> None:
    config = compose(profile)
    rewards = [*config.reward, *config.evaluation.judges]
    needed = sum(memory(config, architecture_of(config.model.path), rewards).values())
    assert needed / 2**30 == pytest.approx(taken, abs=0.05)
    assert verdict(needed, free) == "fits"
    assert [verdict(needed, needed * share) for share in (1.1, 1.05, 0.99)] == ["fits", "tight", "does not fit"]


def test_main_memory_of_a_machine_is_what_all_its_processes_keep_there() -> None:
    config, flux = compose("paper"), architecture_of(FLUX)
    parts = host_memory(config, flux, [*config.reward, *config.evaluation.judges])
    offloaded = 4 * (986_109_441 + 427_616_513)
    assert sum(parts.values()) == 8 * 3 * 2**30 + 8 * offloaded + 4 * flux.parameters
    assert sum(host_memory(compose("paper-lora"), flux, []).values()) == 8 * 3 * 2**30


def test_settings_that_save_memory_make_it_smaller() -> None:
    encoders = 2 * architecture_of(SD35).text_encoders
    of_a_sample = 17 * 24 * 2 * 2 * (1024 + 77 + 256) * 1536  # in 24 blocks, twice for guidance, in 16 bits
    plain = parts_of(SD35, "model.execution.text_encoders=free", "rollout.prompts_per_iteration=4")
    # 34 bytes per token and channel of 4 prompts of 4 steps, at most model.max_batch of them in a forward.
    assert plain[UPDATING] == 12 * of_a_sample
    assert "text encoders" not in plain
    few = parts_of(SD35, "model.execution.max_train_batch=3", "rollout.prompts_per_iteration=4")
    assert (few[UPDATING], few["text encoders"]) == (3 * of_a_sample, encoders)
    # One prompt of 4 steps, two updates of two steps each.
    dealt = parts_of(SD35, "objective.updates_per_iteration=2", "objective.update_on=steps", "model.max_batch=4")
    assert dealt[UPDATING] == 2 * of_a_sample
    # Before training the encoders are there, but neither gradients nor moments.
    frugal = parts_of(SD35, "model.execution={text_encoders: free, gradient_checkpointing: true}")
    assert frugal["text encoders"] == encoders
    assert "gradients" not in frugal
    large = ["model.height=1024", "model.width=1024", "model.execution.gradient_checkpointing=true"]
    many, one = (parts_of(SD35, *large, f"model.execution.vae_slicing={sliced}") for sliced in ("false", "true"))
    assert many[DRAWING] == 12 * 3 * 4 * 256 * 1024**2 > one.get(DRAWING, one.get(UPDATING, 0))


def test_rewards_count_where_they_are() -> None:
    def models(*overrides: str, on_gpu: bool = True) -> int:
        return parts_of(SD35, *overrides, rewards=("hpsv2", "clip"), on_gpu=on_gpu)["reward models"]

    hpsv2, clip = 4 * 986_109_441, 4 * 427_616_513
    assert models() == hpsv2 + clip
    offload = ["rewards={hpsv2: {offload: true}, clip: {offload: true}}", "rollout.group_size=2", "model.max_batch=1"]
    assert models(*offload) == 0
    assert parts_of(SD35, *offload, rewards=("hpsv2", "clip"))[DRAWING] == hpsv2
    assert models("rewards={hpsv2: {backend: url, url: 'http://a'}, clip: {device: cpu}}") == 0
    assert models("rewards.hpsv2.precision=bf16") == hpsv2 // 2 + clip
    assert models(*offload, on_gpu=False) == hpsv2 + clip  # there is nowhere to go
    assert parts_of(SD35, on_gpu=False)["CUDA context and workspace"] == 0


# --- what is missing


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpus_are_found_without_taking_memory_of_them() -> None:
    gpus = checks.find_gpus()
    assert len(gpus) == torch.cuda.device_count()
    assert all(gpu.free > 0 for gpu in gpus)
    assert not torch.cuda.is_initialized()


@pytest.fixture
def gpu_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """FLUX with LoRA on two GPUs, one cell, one seed, on a machine without GPUs and with 1 GiB of disk."""
    monkeypatch.setattr(checks, "find_gpus", list)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30))
    grid = tmp_path / "grid.yaml"
    grid.write_text(f"profile: {tmp_path}/profile.yaml\nseeds: [0]\ncells: [{{method: flow_grpo}}]\n")
    path = tmp_path / "profile.yaml"
    path.write_text(
        f"use_grid: {grid}\nuse_model: miniature-luck\nuse_method: flow_grpo\nuse_reward: ocr\nexperiment: on-gpus\n"
        "iterations: 100\nmodel: {path: black-forest-labs/FLUX.1-dev, height: 512, width: 512, num_steps: 16, "
        "max_sequence_length: 256, precision: bf16, max_batch: 12}\nrollout: {prompts_per_iteration: 2}\n"
        "runtime: {device: cuda, processes: 2}\n"
    )
    return str(path)


@pytest.mark.parametrize(("profile", "model"), [("smoke", "harness/models/miniature/"), ("paper-dry", "twin:flux")])
def test_a_profile_that_can_run_misses_nothing(profile: str, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["doctor", "--profile", profile, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["profile"], found["missing"]) == (profile, [])
    texts = {finding["area"]: finding["text"] for finding in found["findings"]}
    assert {"GPUs", "weights", "rewards"} <= texts.keys()
    assert re.fullmatch(rf"{model}\S* is here", texts["weights"])


def test_a_model_that_is_not_whole_is_told_from_one_that_is_not_here(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ROOT / "harness/models/miniature/base", tmp_path / "base"))
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    (weights,) = (line for line in check("smoke", [f"model.path={folder}"]).missing if line.startswith("weights"))
    assert weights.startswith(f"weights: model.path: {file} is damaged or was cut off")


def test_what_a_machine_misses(gpu_profile: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ADAGRPO_ASSETS", str(tmp_path))
    free = ["model.execution.text_encoders=free", "iterations=10", "prompts.train=no.txt"]
    missing = {line.split(": ")[0]: line for line in check(gpu_profile, free).missing}
    assert missing.keys() == {"GPUs", "weights", "disk", "rewards", "prompts"}  # no GPU, no memory to compare with
    assert "0 of 2 CUDA devices" in missing["GPUs"]
    assert "hf download black-forest-labs/FLUX.1-dev" in missing["weights"]
    assert "adagrpo fetch-assets" in missing["rewards"]
    assert "no.txt: no such file" in missing["prompts"]
    assert "31.5 GiB for the download" in missing["disk"]
    assert f"{size((240 + 240) * 256 * 4096 * 2)} for embeddings of prompts" in missing["disk"]
    assert "1.0 GiB are free" in missing["disk"]
    elsewhere = check("smoke", ["rewards.ocr={backend: url, url: 'http://127.0.0.1:9'}"]).missing
    assert any(line.startswith("rewards: reward 'ocr': http://127.0.0.1:9/reward cannot") for line in elsewhere)


def test_memory_is_compared_with_the_fullest_gpu_in_use(gpu_profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def problems(*free: int) -> str:
        gpus = [Gpu("NVIDIA A100", gibibytes * 2**30) for gibibytes in free]
        monkeypatch.setattr(checks, "find_gpus", lambda: gpus)
        return "\n".join(check(gpu_profile).missing)

    assert "10.0 GiB are free on a GPU; what may save: " in problems(80, 10)
    assert "memory" not in problems(80, 80, 10)  # the third is not used
    assert "GPUs" in problems(80)


def test_given_seconds_or_finished_runs_decide_the_hours(gpu_profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def hours(*arguments: object) -> str:
        return next(finding.text for finding in check(*arguments).findings if finding.area == "hours")  # type: ignore[arg-type]

    forwards = expected_forwards(compose(gpu_profile))
    given = f"{forwards * 2 / 3600:,.1f} GPU-hours ({forwards / 3600:,.1f} hours on 2 GPUs)"
    assert hours(gpu_profile, (), 2.0).startswith(given)
    assert "estimated for H100" in hours(gpu_profile)
    monkeypatch.setattr(checks, "measured_rates", lambda folder: SimpleNamespace(num_runs=3))
    monkeypatch.setattr(checks, "expected_seconds", lambda config, rates: 3600.0)
    assert hours("smoke") == "2.0 hours: as 3 finished runs took"


def test_the_command_ends_with_2_and_the_list_and_reproduce_asks_first(
    gpu_profile: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(grids, "grid", lambda *chosen, **more: pytest.fail("training began"))
    for command in ("doctor", "reproduce"):
        with pytest.raises(SystemExit) as ended:
            cli.main([command, "--profile", gpu_profile])
        assert ended.value.code == 2
        assert "\nmissing:\n- GPUs: 0 of 2" in capsys.readouterr().out
