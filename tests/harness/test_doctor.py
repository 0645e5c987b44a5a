"""The doctor: counts and sizes that agree with hand computation and with the code that runs, and what is missing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from harness import cli
from harness.commands import reproduce
from harness.config import ROOT, RunConfig, compose
from harness.experiments.doctor import checks, machine
from harness.experiments.doctor.architecture import Architecture, find_architecture
from harness.experiments.doctor.checks import check
from harness.experiments.doctor.compute import (
    evaluation_pictures,
    known_gpu,
    most_prompts,
    scoring_seconds,
    seconds_per_forward,
    work_of,
)
from harness.experiments.doctor.machine import Gpu
from harness.experiments.doctor.memory import checkpoint_bytes, embedding_bytes, estimate, trained_parameters
from harness.experiments.doctor.report import Finding, Report, size
from harness.experiments.jobs.plan import Cost
from harness.models.pipelines.flux import FluxPolicy
from harness.prompts.lists import read_prompts
from harness.rewards import build_reward
from harness.runs.directory import RunDirectory
from harness.training.accounting import Counters, expected_cost
from harness.training.trainer import Trainer

FLUX = "black-forest-labs/FLUX.1-dev"
SD35 = "stabilityai/stable-diffusion-3.5-medium"
PLAIN = ["evaluation.base_test=false", "evaluation.interval=25", "evaluation.validation_prompts=96"]
PAPER = [
    f"model.path={FLUX}",
    "model.height=512",
    "model.width=512",
    "model.num_steps=16",
    "model.max_sequence_length=256",
    "model.precision=bf16",
    "model.max_batch=12",
    "rollout.candidates=10",
    *PLAIN,
    "rollout.group_size=12",
    "rollout.branch_indices=[0,2,4,6]",
]
MINIATURE = ["rollout.candidates=12", "rollout.group_size=8", "rollout.branch_indices=[0,1,2,3]"]


def config_of(*overrides: str) -> RunConfig:
    return compose("miniature-luck", overrides=overrides)


def architecture_of(path: str) -> Architecture:
    architecture = find_architecture(path, None)
    assert architecture is not None
    return architecture


# --- counts


@pytest.mark.parametrize(
    ("setting", "base", "with_candidates"), [(PAPER, 592, 736), (MINIATURE, 184, 272)], ids=["paper", "miniature"]
)
def test_forwards_of_the_published_settings(setting: list[str], base: int, with_candidates: int) -> None:
    assert expected_cost(config_of(*setting)).sample_forwards == base
    for override in ("selection=curriculum", "fusion.enabled=true"):
        assert expected_cost(config_of(*setting, override)).sample_forwards == with_candidates
    assert expected_cost(config_of(*setting, "rollout.prompts_per_update=8")).sample_forwards == 8 * base


def test_a_trained_sample_counts_three_forwards() -> None:
    assert expected_cost(config_of(*PAPER)) == Counters(592, 4, 48)
    assert Counters(592, 4, 48).forwards == 604


@pytest.mark.parametrize("selection", ["random", "curriculum"])
@pytest.mark.parametrize("kind", ["anchor_branch", "full_sde"])
def test_expected_counts_are_what_the_trainer_counts(kind: str, selection: str) -> None:
    overrides = [
        f"rollout.kind={kind}",
        f"selection={selection}",
        "reward={colour: 1}",
        "rollout.candidates=2",
        "rollout.group_size=3",
        "rollout.branch_indices=[1,4]",
        "rollout.prompts_per_update=2",
        "objective.updates_per_iteration=2",
        "objective.clip_range=0.1",
        "objective.kl_beta=0.01",
    ]
    config = config_of(*overrides)
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


def test_work_adds_up_over_runs() -> None:
    configs = [config_of(*PAPER, "iterations=10"), config_of(*PAPER, "iterations=20", "selection=medium")]
    work = work_of(configs, lambda config, split: 50)
    assert work.training == Counters(10 * 592 + 20 * 736, 30 * 4, 10 * 48 + 20 * 58)
    assert work.evaluation_forwards == 16 * (2 * (50 + 8) + 50 + 2 * (50 + 8) + 50)
    assert work.forwards == work.training.forwards + work.evaluation_forwards
    other_steps = work_of([config_of(*PAPER, "iterations=10", "evaluation.num_steps=40")], lambda config, split: 50)
    assert other_steps.evaluation_forwards == 40 * (2 * (50 + 8) + 50)


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


def test_seconds_of_a_forward_by_hand() -> None:
    config = config_of(*PAPER)
    flux = architecture_of(FLUX)
    operations = 2 * flux.parameters * 1280 + 4 * 1280**2 * 3072 * 57
    assert seconds_per_forward(flux, config, "A100") == pytest.approx(operations / (312e12 * 0.4))
    guided = seconds_per_forward(architecture_of(SD35), config, "H100")
    unguided = seconds_per_forward(architecture_of(SD35), config_of(*PAPER, "model.guidance=1"), "H100")
    assert guided == pytest.approx(2 * unguided)
    assert scoring_seconds(config, "H100") == 0
    assert known_gpu("NVIDIA A100-SXM4-80GB") == "A100"
    assert known_gpu("NVIDIA H100 80GB HBM3") == "H100"
    assert known_gpu("NVIDIA GeForce RTX 4090") == "RTX 4090"
    assert known_gpu("Another") is None


# --- the machine


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpus_are_found_without_taking_memory_of_them() -> None:
    gpus = machine.find_gpus()
    assert len(gpus) == torch.cuda.device_count()
    assert all(0 < gpu.free <= gpu.total for gpu in gpus)
    assert not torch.cuda.is_initialized()


# --- the report


@pytest.fixture
def gpu_profile(tmp_path: Path) -> Path:
    """FLUX with LoRA on two GPUs, one cell, one seed."""
    grid = tmp_path / "grid.yaml"
    grid.write_text(f"profile: {tmp_path}/profile.yaml\nseeds: [0]\ncells: [{{method: flow_grpo}}]\n")
    settings = "".join(
        f"  {override.removeprefix('model.').replace('=', ': ')}\n" for override in PAPER if "model." in override
    )
    path = tmp_path / "profile.yaml"
    path.write_text(
        f"use_grid: {grid}\nuse_model: miniature-luck\nuse_method: flow_grpo\nuse_reward: ocr\nexperiment: on-gpus\n"
        f"iterations: 100\nmodel:\n{settings}rollout: {{prompts_per_update: 2}}\n"
        "runtime: {device: cuda, processes: 2}\n"
    )
    return path


def test_a_cpu_profile_that_can_run_misses_nothing() -> None:
    report = check("smoke")
    assert report.missing == []
    text = "\n".join(report.lines())
    assert "harness/models/miniature/base is here" in text
    assert "ready: ocr, ocr-v4, colour" in text
    assert text.endswith("nothing is missing")


def test_a_twin_is_a_model_like_any_other() -> None:
    report = check("paper-dry")
    assert report.missing == []
    assert "twin:flux is here" in "\n".join(report.lines())


def test_a_model_that_is_not_whole_is_told_from_one_that_is_not_here(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ROOT / "harness/models/miniature/base", tmp_path / "base"))
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    (weights,) = (line for line in check("smoke", [f"model.path={folder}"]).missing if line.startswith("weights"))
    assert weights.startswith(f"weights: model.path: {file} is damaged or was cut off")


def test_rewards_are_looked_for_where_the_profile_says() -> None:
    report = check("smoke", ["rewards.ocr={backend: url, url: 'http://127.0.0.1:9'}"])
    assert [line.partition(" cannot")[0] for line in report.missing] == [
        "rewards: reward 'ocr': http://127.0.0.1:9/reward"
    ]


def test_what_a_machine_without_gpus_misses(gpu_profile: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "find_gpus", list)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("ADAGRPO_ASSETS", str(tmp_path))
    report = check(str(gpu_profile), ["prompts.train=no.txt"])
    missing = {line.split(": ")[0]: line for line in report.missing}
    assert missing["GPUs"] == ("GPUs: 0 of 2 CUDA devices are here; use such a machine, or fewer runtime.processes")
    assert "hf download black-forest-labs/FLUX.1-dev" in missing["weights"]
    assert "adagrpo fetch-assets" in missing["rewards"]
    assert "no.txt: no such file" in missing["prompts"]
    assert "memory" not in missing
    assert any("GPU-hours" in finding.text for finding in report.findings)


def test_memory_is_compared_with_the_fullest_gpu_in_use(gpu_profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def problems(*free: int) -> str:
        gpus = [Gpu("NVIDIA A100", gibibytes * 2**30, 80 * 2**30) for gibibytes in free]
        monkeypatch.setattr(machine, "find_gpus", lambda: gpus)
        return "\n".join(check(str(gpu_profile)).missing)

    assert "memory: a process needs about" in problems(80, 10)
    assert "10.0 GiB are free on a GPU; free the text encoders: model.execution.text_encoders=free" in problems(80, 10)
    assert "memory" not in problems(80, 80, 10)  # the third is not used
    assert "GPUs" in problems(80)


def test_a_full_disk_is_named(gpu_profile: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "find_gpus", list)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(machine, "free_disk", lambda path: 2**30)
    (disk,) = (line for line in check(str(gpu_profile)).missing if line.startswith("disk"))
    assert "31.5 GiB for the download" in disk
    assert "1.0 GiB are free" in disk


def test_embeddings_of_freed_encoders_take_disk(gpu_profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_gpus", list)
    monkeypatch.setattr(machine, "free_disk", lambda path: 2**30)
    free = "model.execution.text_encoders=free"
    # 256 T5 tokens of 4096 channels in bf16, a prompt; 2 x 12 candidates in each of 10 iterations, and two lists.
    assert embedding_bytes(config_of(*PAPER), architecture_of(FLUX)) == 256 * 4096 * 2
    (disk,) = (line for line in check(str(gpu_profile), [free, "iterations=10"]).missing if line.startswith("disk"))
    assert f"{size((240 + 240 + 240) * 256 * 4096 * 2)} for embeddings of prompts" in disk
    assert most_prompts([compose(str(gpu_profile))], lambda config, split: 100) == 300


def test_given_seconds_decide_the_hours(gpu_profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_gpus", list)
    (finding,) = (f for f in check(str(gpu_profile), seconds=2.0).findings if f.area == "compute")
    config = compose(str(gpu_profile))
    forwards = 100 * expected_cost(config).forwards + 16 * evaluation_pictures(config, 240, 240)
    assert finding.text.startswith(f"{forwards * 2 / 3600:,.1f} GPU-hours ({forwards / 3600:,.1f} hours on 2 GPUs)")


def test_finished_runs_decide_the_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "measured_cost", lambda experiments: Cost(3, 10.0, 60.0, 1e6))
    (finding,) = (f for f in check("smoke").findings if f.area == "compute")
    assert finding.text == f"{(24 * 10 + 2 * 60) / 3600:,.1f} hours: as 3 finished runs took"


def run_command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    return int(ended.value.code or 0)


def test_the_command_ends_with_2_and_the_list(
    gpu_profile: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "find_gpus", list)
    assert run_command("doctor", "--profile", str(gpu_profile)) == 2
    assert "\nmissing:\n- GPUs: 0 of 2" in capsys.readouterr().out
    assert run_command("doctor", "--profile", "smoke") == 0


def test_reproduce_on_gpus_asks_the_doctor_first(
    gpu_profile: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "find_gpus", list)
    monkeypatch.setattr(reproduce, "execute_grid", lambda options: pytest.fail("training began"))
    assert run_command("reproduce", "--profile", str(gpu_profile)) == 2
    assert "missing:\n- GPUs" in capsys.readouterr().out


def test_a_report_lists_only_what_is_missing() -> None:
    report = Report("p", [Finding("a", "fine"), Finding("longer", "bad", "get it", ("detail",))])
    assert report.lines() == [
        "profile p",
        "  a       fine",
        "! longer  bad",
        "            detail",
        "missing:",
        "- longer: get it",
    ]


def test_sizes_are_readable() -> None:
    assert [size(2**10), size(3.5 * 2**20), size(62 * 2**30)] == ["1.0 KiB", "3.5 MiB", "62.0 GiB"]
