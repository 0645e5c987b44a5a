"""``runtime.arithmetic`` as the settings that it stands for on this machine."""

import sys
from functools import cache
from typing import Any, TypeVar

from harness.config.rewards import RewardConfig
from harness.config.run import RunConfig
from harness.config.section import Section
from harness.foundation.names import RECOGNISERS
from harness.foundation.processor import has_bf16

S = TypeVar("S", bound=Section)


def with_arithmetic(config: RunConfig) -> RunConfig:
    """The run as this machine computes it: what is fast is said by settings that are part of its name.

    Precisions that were set otherwise stay. On a processor without bfloat16 the run is exact, and a line says so.
    """
    if config.runtime.arithmetic == "exact":
        return config
    if not has_bf16():
        _say_exact()
        return _with(config, runtime=_with(config.runtime, arithmetic="exact"))
    rewards, optimizer = dict(config.rewards), config.optimizer
    for name in RECOGNISERS:
        settings = rewards.get(name, RewardConfig())
        is_here = settings.backend in (None, "native") and settings.plugin is None
        if name in (*config.reward, *config.evaluation.judges) and is_here and settings.precision is None:
            rewards[name] = _with(settings, precision="bf16")
    if config.model.precision != "fp32":
        return _with(config, rewards=rewards)
    if optimizer.tuning == "lora":  # adapters that are merged into 16-bit weights are rounded away
        optimizer = _with(optimizer, lora=_with(optimizer.lora, merge_while_sampling=False))
    return _with(config, rewards=rewards, optimizer=optimizer, model=_with(config.model, precision="bf16"))


def _with(section: S, **changes: Any) -> S:
    return section.model_copy(update=changes)


@cache
def _say_exact() -> None:
    print("runtime.arithmetic=fast: this processor has no bfloat16; computing exactly", file=sys.stderr)
