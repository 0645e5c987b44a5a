"""Engines: what cannot be shared out is said before anything starts; averaged weights."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn

from harness.config import ConfigError
from harness.training import sharded
from tests.harness.test_training import trainer, watched


def test_accelerates_settings_of_fsdp_that_cannot_be_followed_are_refused() -> None:
    def launched(**settings: Any) -> Any:
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, **settings)
        return SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))

    sharded.check_launched(launched(reshard_after_forward=True))
    sharded.check_launched(Accelerator(cpu=True))
    with pytest.raises(ConfigError, match=r"fsdp_reshard_after_forward=false: gathered weights .* would miss averages"):
        sharded.check_launched(launched(reshard_after_forward=False))
    with pytest.raises(ConfigError, match="fsdp_offload_params=true: weights cannot be kept in main memory"):
        sharded.check_launched(launched(reshard_after_forward=True, cpu_offload=True))


def test_a_network_without_blocks_is_not_shared_out() -> None:
    with pytest.raises(ConfigError, match="Linear has no blocks"):
        sharded.shard(nn.Linear(1, 1), None)  # type: ignore[arg-type]


def test_weights_are_averaged_after_every_so_many_updates_and_swapped_in() -> None:
    settings = ["objective.updates_per_iteration=2", "optimizer.weight_ema=0.9", "optimizer.weight_ema_interval=3"]
    training = trainer(*settings)
    engine = training.engine
    start = {name: p.detach().clone() for name, p in training.parameters.items()}
    _, weights = watched(training)
    training.iterate()
    assert all(torch.equal(engine.averages[name], value) for name, value in start.items())
    training.iterate()  # updates 3 and 4
    averages = {name: average.clone() for name, average in engine.averages.items()}
    for name, value in start.items():
        torch.testing.assert_close(averages[name], 0.9 * value + 0.1 * weights[2][name])
    with engine.averaged_weights():
        assert all(torch.equal(p, averages[name]) for name, p in training.parameters.items())
    assert all(torch.equal(p, weights[3][name]) for name, p in training.parameters.items())
