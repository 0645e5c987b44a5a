"""What the tests of the harness share: a cache of their own, and policies on the twins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from harness.models.policy import Policy


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Twins, embeddings and fingerprints of tests go to a folder of theirs; that of the user stays as it is."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAGRPO_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def make_policy(own_cache: Path) -> Callable[..., Policy]:
    """Makes policies on twins: pictures of 32 x 64, 32 T5 tokens, 4 steps, adapters of rank 4."""
    import torch

    from harness.config import ModelConfig, OptimizerConfig
    from harness.models.registry import build_policy

    def make(name: str, tuning: str = "lora", lora: Mapping[str, object] | None = None, **model: object) -> Policy:
        torch.set_num_threads(1)
        settings = {"height": 32, "width": 64, "num_steps": 4, "max_sequence_length": 32} | model
        optimizer = OptimizerConfig.model_validate({"tuning": tuning, "lora": {"rank": 4, "alpha": 8, **(lora or {})}})
        config = ModelConfig.model_validate({"path": f"twin:{name}", **settings})
        return build_policy(config, optimizer, torch.device("cpu"), seed=0)

    return make
