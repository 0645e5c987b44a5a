"""Check of the rewards that can score on this machine, with the reason for each that cannot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from harness.config import ConfigError, RewardConfig
from harness.foundation.errors import HarnessError
from harness.foundation.names import REWARDS
from harness.rewards import Reward, build_reward


@dataclass
class Panel:
    """Rewards that are ready, and the reasons why others are not."""

    ready: list[Reward] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    """Reasons by name for rewards that lack weights, an environment or a setting."""
    unfit: dict[str, str] = field(default_factory=dict)
    """Reasons by name for rewards that cannot score these prompts or pictures."""

    def close(self) -> None:
        """Release what the rewards hold outside this process, such as workers."""
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
    """Choose the rewards to score pictures with.

    Args:
        wanted: names of rewards; None for all that can score, including plug-ins.
        prompts: prompts of the pictures.
        height: height of the pictures in pixels.
        width: width of the pictures in pixels.
        settings: settings of rewards, by name.
        num_threads: see ``build_reward``.

    Raises:
        ConfigError: a wanted reward cannot score, or none can.
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
    """Sort rewards by whether everything they need is on this machine; loads no model. See ``choose_rewards``."""
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

    Each reward scores a picture of noise, so that errors of loading its weights appear before hours of drawing.
    """
    # Not a blank one: of that a reward may be not finite, such as one that divides by a picture's spread.
    noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    checked = Panel(missing=dict(panel.missing))
    for reward in panel.ready:
        try:
            for prompt in prompts:
                reward.check_prompt(prompt)
            reward.score(noise, prompts[:1])
            checked.ready.append(reward)
        except (ValueError, HarnessError) as error:
            reasons = checked.unfit if isinstance(error, ValueError) else checked.missing
            reasons[reward.name] = " ".join(str(error).split())
            reward.close()
    return checked
