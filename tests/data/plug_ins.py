"""Plug-ins of tests in several processes, each of which finds them by itself."""

import torch


class Either:
    """One candidate or another, drawn."""

    samples = 1

    def __call__(self, candidates):
        return int(torch.randint(len(candidates.means), (1,), generator=candidates.generator))


def Contrast(images, prompts):
    """How far pixels spread about their mean."""
    return images.std(dim=(1, 2, 3))


def Lifted(group, weight):
    """Local advantages, moved by where their group stands to the capability."""
    return group.local + weight * (group.rewards.mean() - group.mean)
