"""Run: python -m pytest test_example.py"""

from pathlib import Path

import torch

from harness.adagrpo import CapabilityTracker
from harness.foundation.plugins import find
from harness.rules.plugins import rule_of
from harness.rules.selection import Candidates

SOURCE = f"{Path(__file__).with_name('example.py')}:Example"


def test_the_hardest_are_left_out():
    rewards = torch.tensor([[0.1], [0.8], [0.5], [0.4]])
    candidates = Candidates(rewards, CapabilityTracker(), torch.Generator())
    assert rule_of(find(SOURCE).name, SOURCE)(candidates) == 2
