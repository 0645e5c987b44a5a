"""Adapters for other trainers, against stubs of the interfaces that they use: see docs/integrations.md."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from harness.adagrpo import CapabilityTracker, fuse_advantages, global_advantage, local_advantage
from harness.config import ROOT

ADAPTERS = ROOT / "docs" / "integrations"
REWARDS = torch.tensor([0.1, 0.5, 0.3, 0.9, 0.2, 0.8])
GROUPS = [0, 1, 0, 1, 0, 1]


def expected(rounds: int = 1) -> torch.Tensor:
    """Fused advantages of the two groups, after so many updates with the same rewards."""
    tracker, fused = CapabilityTracker(decay=0.8), torch.zeros(6, dtype=torch.float64)
    for _ in range(rounds):
        tracker.update(REWARDS.double())
    for group in (0, 1):
        rows = torch.tensor(GROUPS) == group
        own = REWARDS[rows].double()
        fused[rows] = fuse_advantages(local_advantage(own), global_advantage(own, tracker.mean, tracker.std))
    return fused.float()


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a module with some names where an adapter imports it from."""

    def put(name: str, **names: Any) -> None:
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:count]), ModuleType(".".join(parts[:count])))
        vars(sys.modules[name]).update(names)

    return put


class Processor:
    """As Flow-Factory's, of one process: calls a reducer with itself."""

    def __init__(self) -> None:
        self.reward_weights = {"a": 1.0, "b": 2.0}

    def compute_advantages(self, samples: Any, rewards: Any, store: bool, aggregation_func: Any) -> torch.Tensor:
        return aggregation_func(self, samples, rewards, store)

    def collect_group_rewards(self, samples: Any, rewards: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
        ids = np.array([sample.unique_id for sample in samples])
        return {name: of.numpy() for name, of in rewards.items()}, np.unique(ids, return_inverse=True)[1]

    def _to_local(self, values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(values)


class GRPOTrainer:
    """As Flow-Factory's."""

    def __init__(self) -> None:
        self.advantage_processor = Processor()

    def compute_advantages(self, samples: Any, rewards: Any, store: bool = True, func: Any = None) -> torch.Tensor:
        return self.advantage_processor.compute_advantages(samples, rewards, store, func)


def test_flow_factory_gets_fused_advantages(stub: Callable[..., None]) -> None:
    stub("flow_factory.trainers.grpo", GRPOTrainer=GRPOTrainer)
    trainer = runpy.run_path(str(ADAPTERS / "flow_factory_adagrpo.py"))["AdaGRPOTrainer"]()
    samples = [SimpleNamespace(unique_id=100 + group, extra_kwargs={}) for group in GROUPS]
    rewards = {"a": REWARDS - 0.2, "b": torch.full((6,), 0.1)}
    for rounds in (1, 2):
        torch.testing.assert_close(trainer.compute_advantages(samples, rewards), expected(rounds))
    assert samples[3].extra_kwargs["advantage"].item() == pytest.approx(expected()[3].item())


def test_verl_omni_gets_fused_advantages(stub: Callable[..., None]) -> None:
    registry: dict[str, Any] = {}
    stub(
        "verl_omni.trainer.diffusion.diffusion_algos",
        register_diffusion_adv_est=lambda name: lambda function: registry.setdefault(name, function),
    )
    runpy.run_path(str(ADAPTERS / "verl_omni_adagrpo.py"))
    index = np.array([f"uid {group}" for group in GROUPS], dtype=object)
    for rounds in (1, 2):
        found, returns = registry["adagrpo"](
            sample_level_rewards=REWARDS[:, None].expand(6, 3), index=index, config=None
        )
        torch.testing.assert_close(found, expected(rounds)[:, None].expand(6, 3))
        assert returns is found


def test_the_page_names_the_adapters() -> None:
    page = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
    assert all(f"docs/integrations/{path.name}" in page for path in Path(ADAPTERS).glob("*.py"))
