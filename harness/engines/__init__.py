"""How processes share the work of an update out: what each holds, and when it exchanges what."""

from harness.config import RunConfig
from harness.engines.base import Engine
from harness.models.policy import Policy
from harness.processes import Processes


def build_engine(config: RunConfig, policy: Policy, processes: Processes) -> Engine:
    """The engine that ``runtime.engine`` names, around a policy whose reference is kept already, if it needs one.

    Raises:
        ConfigError: DeepSpeed is not installed, or a network cannot be shared out.
    """
    if config.runtime.engine == "fsdp2":
        from harness.engines.sharded import FullySharded

        return FullySharded(policy, config.optimizer, processes)
    if config.runtime.engine == "zero2":
        from harness.engines.zero2 import Zero2

        return Zero2(policy, config.optimizer, processes)
    from harness.engines.replicated import Replicated

    return Replicated(policy, config.optimizer, processes)
