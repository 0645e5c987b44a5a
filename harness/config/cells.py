"""Names of cells; runs of one cell differ only by seed."""

from collections import Counter
from collections.abc import Sequence

from analysis.cells.variants import name_variants
from harness.config import RunConfig, numeric_settings
from harness.foundation.trained_reward import TrainedReward


def cell_name(config: RunConfig) -> str:
    """Method, selection and fusion, such as ``flow_grpo curriculum + fusion 1``."""
    fusion = f" + {config.fusion.name} {config.fusion.weight:g}" if config.fusion.enabled else ""
    return f"{config.method.kernel} {config.selection}{fusion}"


def cell_names(configs: Sequence[RunConfig]) -> list[str]:
    """``cell_name`` of each run, followed by the settings (as reports name them) and reward that tell it from most.

    Runs with equal names differ only by seed.
    """
    settings = [{"settings": numeric_settings(config)} for config in configs]
    variants = name_variants([config.model_dump(mode="json") for config in configs], settings)
    rewards = [TrainedReward(config.reward).name for config in configs]
    usual = Counter(rewards).most_common(1)[0][0] if rewards else ""
    return [
        ", ".join(part for part in (cell_name(config), variant, "" if reward == usual else reward) if part)
        for config, variant, reward in zip(configs, variants, rewards, strict=True)
    ]
