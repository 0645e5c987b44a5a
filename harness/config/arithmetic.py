"""``runtime.arithmetic`` as the settings that it stands for on this machine."""

import sys
from functools import cache

from harness.config.rewards import RewardConfig
from harness.config.run import RunConfig
from harness.foundation.names import RECOGNISERS
from harness.foundation.processor import has_bf16


def with_arithmetic(config: RunConfig) -> RunConfig:
    """The run as this machine computes it: what is fast is said by settings that are part of its name.

    Fast is to read in bfloat16. The network is not: adapters cannot be merged into 16-bit weights, and apart from them
    it was slower than in float32 (docs/speed.md). Precisions that were set otherwise stay. On a processor without
    bfloat16 the run is exact, and a line says so.
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
