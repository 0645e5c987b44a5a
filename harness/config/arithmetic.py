"""Translation of ``runtime.arithmetic`` into the settings that it stands for on this machine."""

import sys
from functools import cache

from harness.config.rewards import RewardConfig
from harness.config.run import RunConfig
from harness.foundation.names import RECOGNISERS
from harness.foundation.processor import has_bf16


def with_arithmetic(config: RunConfig) -> RunConfig:
    """The configuration as this machine computes it: ``fast`` becomes settings that are part of the run's name.

    ``fast`` has text recognisers compute in bfloat16. The network stays in float32: adapters cannot be merged into
    16-bit weights, and unmerged ones were slower than float32 (docs/speed.md). Precisions that were set explicitly
    stay. On a processor without bfloat16 the run is exact, and a line on stderr says so.
    """
    if config.runtime.arithmetic == "exact":
        return config
    if not has_bf16():
        _say_exact()
        return config.model_copy(update={"runtime": config.runtime.model_copy(update={"arithmetic": "exact"})})
    rewards = dict(config.rewards)
    for name in RECOGNISERS:
        settings = rewards.get(name, RewardConfig())
        is_here = settings.backend in (None, "native") and settings.plugin is None
        if name in (*config.reward, *config.evaluation.judges) and is_here and settings.precision is None:
            rewards[name] = settings.model_copy(update={"precision": "bf16"})
    return config.model_copy(update={"rewards": rewards})


@cache
def _say_exact() -> None:
    print("runtime.arithmetic=fast: this processor has no bfloat16; computing exactly", file=sys.stderr)
