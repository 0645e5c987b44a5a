"""Slots: each worker has threads or GPUs of its own."""

import os

import pytest

from harness.config import ConfigError, RuntimeConfig
from harness.experiments.jobs.slots import local_slots, make_slots


def test_cpu_slots_share_the_cores() -> None:
    slots = make_slots(RuntimeConfig(threads=2), None, gpus=(), cores=9)
    assert len(slots) == 4
    assert all(slot.environment == {"OMP_NUM_THREADS": "2"} and not slot.placement.cuda for slot in slots)
    assert len(make_slots(RuntimeConfig(threads=2, processes=4), None, gpus=(), cores=2)) == 1
    assert len(make_slots(RuntimeConfig(), 5, gpus=(), cores=2)) == 5


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot tell")
def test_a_scheduler_may_leave_fewer_cores_than_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5})
    assert len(local_slots([RuntimeConfig(threads=1, device="cpu")], None)) == 2


def test_gpu_slots_see_their_own_gpus_only_and_know_the_engine() -> None:
    slots = make_slots(RuntimeConfig(processes=2, engine="fsdp2"), None, gpus=("0", "1", "GPU-a", "3", "4"), cores=2)
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["0,1", "GPU-a,3"]
    assert all(slot.placement.cuda and slot.placement.processes == 2 for slot in slots)
    assert slots[0].placement.configuration.name == "fsdp2.yaml"


@pytest.mark.parametrize(
    ("runtime", "count", "gpus", "message"),
    [
        (RuntimeConfig(device="cuda"), None, (), "torch finds no CUDA device here"),
        (RuntimeConfig(processes=8), None, ("0", "1"), "1 slots of 8 GPUs need 8, but there are 2"),
        (RuntimeConfig(), 3, ("0", "1"), "3 slots of 1 GPUs need 3, but there are 2"),
    ],
)
def test_slots_that_the_machine_cannot_give_are_errors(
    runtime: RuntimeConfig, count: int | None, gpus: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_slots(runtime, count, gpus, cores=4)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([{}, {"threads": 2}], r"need the same runtime\.threads"),
        ([{}, {"engine": "fsdp2"}], r"need the same runtime\.engine"),
        ([{"processes": 2, "machines": 2}], r"runtime\.machines=2: a grid's runs are launched on this machine alone"),
    ],
)
def test_runs_that_need_different_processes_are_not_launched_together(others: list[dict], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        local_slots([RuntimeConfig(device="cpu", **other) for other in others], None)
    assert local_slots([RuntimeConfig(device="cpu"), RuntimeConfig(device="cpu", checkpoint_interval=3)], 1)
