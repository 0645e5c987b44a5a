"""Which rewards can score here and now, and why the others cannot: none is left out in silence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from harness.config import ConfigError, RewardConfig
from harness.foundation.errors import HarnessError
from harness.foundation.names import REWARDS
from harness.rewards import Reward, build_reward


@dataclass
class Panel:
    """Rewards by what they can do."""

    ready: list[Reward] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    """Why, by name: weights, an environment or a setting is not here."""
    unfit: dict[str, str] = field(default_factory=dict)
    """Why, by name: not made for these prompts or pictures."""

    def close(self) -> None:
        """Give back what the rewards hold outside of this process, such as workers."""
        for reward in self.ready:
            reward.close()


def choose_rewards(
    wanted: Sequence[str] | None,
    prompts: Sequence[str],
    height: int,
    width: int,
    settings: Mapping[str, RewardConfig],
    num_threads: int = 1,
) -> Panel:
    """The rewards to score pictures with: those that were asked for, or, for None, all that can, plug-ins too.

    Args:
        wanted: names of rewards.
        prompts: of the pictures.
        height: of the pictures, in pixels.
        width: of the pictures, in pixels.
        settings: of rewards, by name.
        num_threads: as in ``build_reward``.

    Raises:
        ConfigError: one that was asked for cannot score, or none can.
    """
    own = (name for name, of_name in settings.items() if of_name.plugin)
    names = tuple(dict.fromkeys((*REWARDS, *own) if wanted is None else wanted))
    panel = find_fit(find_ready(names, settings, num_threads), prompts, height, width)
    reasons = panel.missing | panel.unfit
    if reasons and (wanted is not None or not panel.ready):
        panel.close()
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise ConfigError(f"--rewards {told}" if wanted is not None else f"no reward can score here: {told}")
    return panel


def find_ready(names: Sequence[str], settings: Mapping[str, RewardConfig] | None = None, num_threads: int = 1) -> Panel:
    """Sort rewards by whether all they need is on this machine; loads no model. Arguments: see ``choose_rewards``."""
    panel = Panel()
    for name in names:
        try:
            reward = build_reward(name, num_threads, (settings or {}).get(name))
            reward.check_ready()
            panel.ready.append(reward)
        except (ValueError, HarnessError) as error:
            panel.missing[name] = " ".join(str(error).split())
    return panel


def find_fit(panel: Panel, prompts: Sequence[str], height: int, width: int) -> Panel:
    """Sort the ready rewards of a panel by whether they can score pictures of these prompts and this size.

    Each scores one blank picture, so that its weights are loaded before hours of drawing, not after.
    """
    checked = Panel(missing=dict(panel.missing))
    for reward in panel.ready:
        try:
            for prompt in prompts:
                reward.check_prompt(prompt)
            reward.score(torch.zeros(1, 3, height, width), prompts[:1])
            checked.ready.append(reward)
        except (ValueError, HarnessError) as error:
            reasons = checked.unfit if isinstance(error, ValueError) else checked.missing
            reasons[reward.name] = " ".join(str(error).split())
            reward.close()
    return checked
