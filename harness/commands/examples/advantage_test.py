"""Run: python -m pytest test_example.py"""

from pathlib import Path

import torch

from harness.adagrpo import local_advantage
from harness.rules.advantages import Group
from harness.rules.plugins import fusion_of

SOURCE = f"{Path(__file__).with_name('example.py')}:Example"


def test_a_hard_group_counts_twice():
    rewards = torch.tensor([0.1, 0.2, 0.3])
    local = local_advantage(rewards)
    for capability, factor in ((0.5, 2), (0.1, 1)):
        group = Group(local, rewards, mean=capability, std=0.1)
        assert torch.equal(fusion_of("Example", SOURCE)(group, 1.0), factor * local)
