"""A check of the whole pipeline: siblings get each other's rewards, so nothing is to be learnt.

``adagrpo train objective.normalisation=experiments/study/shuffled.py:Shuffled``
"""

import hashlib

import torch


def Shuffled(rewards):
    """Local advantages (R - m) / s ``[G]`` of a group's rewards in an order that their own bytes draw; 0 if s is 0."""
    digest = hashlib.sha256(rewards.double().cpu().numpy().tobytes()).digest()
    order = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "big")))
    shuffled = rewards[order]
    spread = shuffled.std()
    return (shuffled - shuffled.mean()) / spread if spread > 0 else torch.zeros_like(rewards)
