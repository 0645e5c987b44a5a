"""The doctor: what a profile needs of a machine, and what is missing."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from harness import cli
from harness.commands import reproduce
from harness.config import ROOT, compose
from harness.experiments.doctor import checks, machine
from harness.experiments.doctor.checks import check
from harness.experiments.doctor.compute import evaluation_pictures
from harness.experiments.doctor.machine import Gpu
from harness.experiments.doctor.report import size
from harness.experiments.jobs.plan import Cost
from harness.training.accounting import expected_cost


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpus_are_found_without_taking_memory_of_them() -> None:
    gpus = machine.find_gpus()
    assert len(gpus) == torch.cuda.device_count()
    assert all(gpu.free > 0 for gpu in gpus)
    assert not torch.cuda.is_initialized()


@pytest.fixture
def gpu_profile(tmp_path: Path) -> Path:
    """FLUX with LoRA on two GPUs, one cell, one seed."""
    grid = tmp_path / "grid.yaml"
    grid.write_text(f"profile: {tmp_path}/profile.yaml\nseeds: [0]\ncells: [{{method: flow_grpo}}]\n")
    path = tmp_path / "profile.yaml"
    path.write_text(
        f"use_grid: {grid}\nuse_model: miniature-luck\nuse_method: flow_grpo\nuse_reward: ocr\nexperiment: on-gpus\n"
        "iterations: 100\nmodel: {path: black-forest-labs/FLUX.1-dev, height: 512, width: 512, num_steps: 16, "
        "max_sequence_length: 256, precision: bf16, max_batch: 12}\nrollout: {prompts_per_update: 2}\n"
        "runtime: {device: cuda, processes: 2}\n"
    )
    return path


@pytest.mark.parametrize(("profile", "model"), [("smoke", "harness/models/miniature/"), ("paper-dry", "twin:flux")])
def test_a_profile_that_can_run_misses_nothing(profile: str, model: str) -> None:
    report = check(profile)
    assert report.missing == []
    text = "\n".join(report.lines())
    assert re.search(rf"{model}\S* is here", text)
    assert text.endswith("nothing is missing")


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
    assert "GPU-hours" in next(finding.text for finding in report.findings if finding.area == "hours")


def test_memory_is_compared_with_the_fullest_gpu_in_use(gpu_profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def problems(*free: int) -> str:
        gpus = [Gpu("NVIDIA A100", gibibytes * 2**30) for gibibytes in free]
        monkeypatch.setattr(machine, "find_gpus", lambda: gpus)
        return "\n".join(check(str(gpu_profile)).missing)

    assert "memory: a process needs about" in problems(80, 10)
    assert "10.0 GiB are free on a GPU; what saves: model.execution.text_encoders=free, or" in problems(80, 10)
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
    # 2 x 12 candidates in each of 10 iterations, and two lists.
    free = ["model.execution.text_encoders=free", "iterations=10"]
    (disk,) = (line for line in check(str(gpu_profile), free).missing if line.startswith("disk"))
    assert f"{size((240 + 240 + 240) * 256 * 4096 * 2)} for embeddings of prompts" in disk


def test_given_seconds_decide_the_hours(gpu_profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_gpus", list)
    (finding,) = (f for f in check(str(gpu_profile), seconds=2.0).findings if f.area == "hours")
    config = compose(str(gpu_profile))
    forwards = 100 * expected_cost(config).forwards + 16 * evaluation_pictures(config, 240, 240)
    assert finding.text.startswith(f"{forwards * 2 / 3600:,.1f} GPU-hours ({forwards / 3600:,.1f} hours on 2 GPUs)")


def test_finished_runs_decide_the_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "measured_cost", lambda experiments: Cost(3, 10.0, 60.0, 1e6))
    (finding,) = (f for f in check("smoke").findings if f.area == "hours")
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
