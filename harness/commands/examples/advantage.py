"""Advantages by the capability: adagrpo train fusion.enabled=true fusion.kind=example.py:Example"""


def Example(group, weight):
    """Local advantages [G], larger by ``weight`` in a group whose mean lies below the capability."""
    is_hard = group.rewards.mean() < group.mean
    return group.local * (1 + weight * float(is_hard))
