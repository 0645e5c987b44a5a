"""Command lines of processes: argv of every placement, what accelerate makes of its files, the page that shows them."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils.launch import prepare_multi_gpu_env

from harness import cli
from harness.config import ROOT, ConfigError
from harness.experiments.jobs import process, slots
from harness.experiments.jobs.command import CONFIGURATIONS, Placement, typed, worker_command

ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def test_several_cpu_processes_are_not_left_to_accelerate_and_one_needs_no_launcher() -> None:
    """Other command lines are on the page that is compared below."""
    placement = Placement(4, machines=2, machine_rank=1, main_address="node0", main_port=29501)
    two = "--nproc-per-node 2 --nnodes 2 --node-rank 1 --master-addr node0 --master-port 29501 -m harness.cli train"
    assert worker_command(placement, "harness.cli", ["train"]) == [*TORCHRUN, *two.split()]
    assert worker_command(Placement(), "harness.cli", ["train"]) == [sys.executable, "-m", "harness.cli", "train"]
    assert process.command(Placement(), ["queue"])[1:] == ["-m", "harness.experiments.jobs.worker", "queue"]
    assert process.command(Placement(2), ["queue"])[: len(TORCHRUN)] == TORCHRUN


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"processes": 2, "machines": 2}, "2 machines need the address of the first one"),
        ({"machine_rank": 1}, "machine rank 1: must be 0 to 0"),
        ({"processes": 2, "machines": 2, "main_address": "a", "main_port": 65536}, "must be 1 to 65535"),
    ],
)
def test_impossible_placements_are_errors(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Placement(**settings)


def test_accelerate_knows_every_key_of_its_files() -> None:
    options = vars(launch.launch_command_parser().parse_args(["script"]))
    for path in CONFIGURATIONS.glob("*.yaml"):
        assert set(load_config_from_file(str(path)).fsdp_config) <= options.keys()  # it refuses other keys itself


def test_the_files_make_accelerate_launch_what_their_engines_are(monkeypatch: pytest.MonkeyPatch) -> None:
    launched_with: list[Any] = []
    monkeypatch.setattr(launch, "multi_gpu_launcher", launched_with.append)

    def launched(**placement: Any) -> dict[str, str]:
        """The environment that accelerate would give to the processes of a placement."""
        words = worker_command(Placement(cuda=True, **placement), "harness.cli", ["train"])[len(ACCELERATE) :]
        launch.launch_command(launch.launch_command_parser().parse_args(words))
        return prepare_multi_gpu_env(launched_with[-1])

    ddp, fsdp2 = (launched(processes=8, engine=engine) for engine in ("ddp", "fsdp2"))
    assert "ACCELERATE_USE_FSDP" not in ddp
    assert (fsdp2["ACCELERATE_USE_FSDP"], fsdp2["FSDP_VERSION"]) == ("true", "2")
    assert (fsdp2["FSDP_RESHARD_AFTER_FORWARD"], fsdp2["FSDP_OFFLOAD_PARAMS"]) == ("true", "false")
    assert fsdp2["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
    assert all(one["ACCELERATE_MIXED_PRECISION"] == "no" for one in (ddp, fsdp2))
    for engine in ("ddp", "fsdp2"):
        launched(processes=16, machines=2, machine_rank=1, main_address="node0", engine=engine)
        options = launched_with[-1]
        assert (options.nnodes, options.nproc_per_node, options.node_rank) == ("2", "8", 1)
        assert (options.rdzv_backend, options.rdzv_endpoint) == ("static", "node0:29500")


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        cli.main(["launch", *words])
    output = capsys.readouterr()
    return int(end.value.code or 0), (output.out + output.err).strip()


def test_launch_checks_what_it_can_before_anything_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(slots, "visible_gpus", lambda: ("0", "1"))
    monkeypatch.setattr(os, "execve", lambda *arguments: pytest.fail("started"))
    eight = "adagrpo: error: runtime.processes=8 on 1 machines need 8 GPUs here, but there are 2"
    assert run(capsys, "--profile", "paper") == (2, eight)
    two = ["runtime.processes=2", "rollout.prompts_per_iteration=2"]
    assert "nowhere.txt: no such file" in run(capsys, *two, "prompts.train=nowhere.txt")[1]
    assert "no run directory" in run(capsys, "--resume", str(tmp_path))[1]
    assert "need the address of the first one" in run(capsys, *two, "runtime.machines=2")[1]
    few = run(capsys, "runtime.processes=1000", "rollout.prompts_per_iteration=1000", "runtime.device=cpu")
    assert "prompts, but an iteration draws 8000, rollout.prompts_per_iteration times rollout.candidates" in few[1]
    for option in (["--main-address", "node0"], ["--main-port", "29501"]):
        line = f"adagrpo: error: {option[0]} is for several machines, but runtime.machines=1"
        assert run(capsys, *two, *option, "--show") == (2, line)


def test_launch_becomes_the_launcher(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Started(Exception):
        pass

    seen: list[Any] = []

    def execve(path: str, words: list[str], environment: dict[str, str]) -> None:
        seen.extend([path, words, environment["OMP_NUM_THREADS"], environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]])
        raise Started

    monkeypatch.setattr(os, "execve", execve)
    settings = ["runtime.processes=2", "rollout.prompts_per_iteration=2", "runtime.device=cpu", "runtime.threads=3"]
    settings += ["runtime.preemption_seconds=90"]
    with pytest.raises(Started):
        cli.main(["launch", *settings])
    words = worker_command(Placement(2), "harness.cli", ["train", "--profile", "miniature", *settings])
    assert seen == [words[0], words, "3", "95"]


def test_the_launch_lines_of_the_page_are_those_of_the_function() -> None:
    train = ["train", "--profile", "paper"]
    over_two = ["runtime.machines=2", "runtime.processes=16", "rollout.prompts_per_iteration=16"]

    def line(settings: list[str], **placement: Any) -> str:
        return typed(worker_command(Placement(**placement), "harness.cli", [*train[:2], *settings]))

    several = {"processes": 16, "cuda": True, "machines": 2, "machine_rank": 1, "main_address": "node0"}
    cpu = ["miniature", "runtime.device=cpu", "runtime.processes=2", "rollout.prompts_per_iteration=2"]
    wanted = [
        line(["single-gpu"], cuda=True),
        line(["paper-lora"], processes=8, cuda=True),
        line(["paper"], processes=8, cuda=True, engine="fsdp2"),
        line(["paper-lora", *over_two], **several),
        line(["paper", *over_two], engine="fsdp2", **several),
        line(cpu, processes=2),
    ]
    page = (ROOT / "docs" / "processes.md").read_text()
    shown = [
        text.strip()
        for text in page.splitlines()
        if text.startswith(("    accelerate launch", "    torchrun", "    python -m harness.cli"))
    ]
    assert shown == wanted
