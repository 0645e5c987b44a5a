"""Run: python -m pytest test_example.py"""

from pathlib import Path

import torch

from harness.config import RewardConfig
from harness.rewards import build_reward

SOURCE = f"{Path(__file__).with_name('example.py')}:Example"


def test_white_is_brighter_than_black():
    reward = build_reward("Example", settings=RewardConfig(plugin=SOURCE))
    pictures = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    assert reward.score(pictures, ["black", "white"]).tolist() == [0, 1]
