"""How processes share the work of an update out: what each holds, and when it exchanges what."""

from collections.abc import Callable
from typing import Any

from harness.config import RunConfig
from harness.models.pipelines.policy import Policy
from harness.training.engines.base import Engine
from harness.training.processes import Processes


def _replicated(*arguments: Any) -> Engine:
    from harness.training.engines.replicated import Replicated

    return Replicated(*arguments)


def _sharded(*arguments: Any) -> Engine:
    from harness.training.engines.sharded import FullySharded

    return FullySharded(*arguments)


def _zero2(*arguments: Any) -> Engine:
    from harness.training.engines.zero2 import Zero2

    return Zero2(*arguments)


ENGINES: dict[str, Callable[..., Engine]] = {"ddp": _replicated, "fsdp2": _sharded, "zero2": _zero2}
"""Of the names of ``harness.names.ENGINES``; each imports its own."""


def build_engine(config: RunConfig, policy: Policy, processes: Processes) -> Engine:
    """The engine that ``runtime.engine`` names, around a policy whose reference is kept already, if it needs one.

    Raises:
        ConfigError: DeepSpeed is not installed, or a network cannot be shared out.
    """
    return ENGINES[config.runtime.engine](policy, config.optimizer, processes)
