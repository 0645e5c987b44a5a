"""Run: python -m pytest test_example.py"""

from pathlib import Path

import torch

from harness.rules.plugins import kernel_of

SOURCE = f"{Path(__file__).with_name('example.py')}:Example"


def test_the_mean_is_the_flows_step():
    x, velocity = torch.zeros(2, 4), torch.ones(2, 4)
    step = kernel_of("Example", SOURCE, eta=0.5).step(x, velocity, 0.75, 0.5)
    assert torch.equal(step.mean, torch.full((2, 4), -0.25))
    assert step.std.item() == 0.25
