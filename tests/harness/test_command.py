"""Command lines of workers: argv for every placement, and a user's accelerate configuration that changes nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.config import ROOT, ConfigError
from harness.launch.command import Placement, worker_command

JOB = ["-m", "harness.launch.worker", "queue"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
SETTINGS = ["--config_file", str(ROOT / "harness" / "launch" / "accelerate.yaml")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def argv(placement: Placement) -> list[str]:
    return worker_command(placement, "harness.launch.worker", ["queue"])


def test_one_cpu_process() -> None:
    counts = ["--num_processes", "1", "--num_machines", "1", "--machine_rank", "0"]
    assert argv(Placement()) == [*ACCELERATE, *SETTINGS, *counts, "--cpu", *JOB]


def test_one_gpu() -> None:
    counts = ["--num_processes", "1", "--num_machines", "1", "--machine_rank", "0"]
    assert argv(Placement(cuda=True)) == [*ACCELERATE, *SETTINGS, *counts, *JOB]


def test_eight_gpus_meet_at_a_port_that_is_free() -> None:
    counts = ["--num_processes", "8", "--num_machines", "1", "--machine_rank", "0"]
    meeting = ["--multi_gpu", "--main_process_port", "0"]
    assert argv(Placement(8, cuda=True)) == [*ACCELERATE, *SETTINGS, *counts, *meeting, *JOB]


def test_two_machines_of_eight_gpus() -> None:
    counts = ["--num_processes", "16", "--num_machines", "2", "--machine_rank", "1"]
    meeting = ["--multi_gpu", "--main_process_ip", "node0", "--main_process_port", "29500"]
    placement = Placement(16, cuda=True, machines=2, machine_rank=1, main_address="node0")
    assert argv(placement) == [*ACCELERATE, *SETTINGS, *counts, *meeting, *JOB]


def test_two_cpu_processes_are_not_left_to_accelerate_which_would_start_one() -> None:
    assert argv(Placement(2)) == [*TORCHRUN, "--standalone", "--nproc-per-node", "2", *JOB]


def test_two_machines_of_two_cpu_processes() -> None:
    placement = Placement(4, machines=2, machine_rank=1, main_address="node0", main_port=29501)
    counts = ["--nproc-per-node", "2", "--nnodes", "2", "--node-rank", "1"]
    assert argv(placement) == [*TORCHRUN, *counts, "--master-addr", "node0", "--master-port", "29501", *JOB]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"processes": 0}, "0 processes cannot be shared evenly by 1 machines"),
        ({"processes": 3, "machines": 2, "main_address": "node0"}, "3 processes cannot be shared evenly by 2 machines"),
        ({"processes": 2, "machines": 2}, "2 machines need the address of the first one"),
        ({"machine_rank": 1}, "machine rank 1: must be 0 to 0"),
        ({"main_port": 0}, "main port 0: must be 1 to 65535"),
    ],
)
def test_impossible_placements_are_errors(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Placement(**settings)


def test_the_users_own_accelerate_configuration_changes_nothing(tmp_path: Path) -> None:
    own = tmp_path / "accelerate" / "default_config.yaml"
    own.parent.mkdir()
    own.write_text(
        "{compute_environment: LOCAL_MACHINE, distributed_type: FSDP, mixed_precision: bf16, num_processes: 4, "
        "debug: true, enable_cpu_affinity: true, dynamo_config: {dynamo_backend: INDUCTOR}, "
        "fsdp_config: {fsdp_sharding_strategy: FULL_SHARD}}\n"
    )
    (tmp_path / "show.py").write_text("import os; print(*(f'{k}={v}' for k, v in os.environ.items()), sep='\\n')")
    environment = {"HF_HOME": str(tmp_path), "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "3"}
    command = worker_command(Placement(cuda=True), "show", [])
    shown = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True).stdout
    settings = dict(line.split("=", 1) for line in shown.splitlines() if line.startswith(("ACCELERATE_", "OMP_")))
    assert settings["OMP_NUM_THREADS"] == "3"
    assert settings["ACCELERATE_MIXED_PRECISION"] == "no"
    assert settings["ACCELERATE_DYNAMO_BACKEND"] == "NO"
    assert settings["ACCELERATE_USE_CPU"] == "False"
    assert not settings.keys() & {"ACCELERATE_USE_FSDP", "ACCELERATE_DEBUG_MODE", "ACCELERATE_CPU_AFFINITY"}
