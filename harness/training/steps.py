"""Choice of the stochastic and the trained steps of a schedule, and division of the samples among updates.

All random choices are functions of seed, iteration and slot.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.config import ObjectiveConfig, RolloutConfig, num_trained_steps
from harness.prompts.lists import generator_for
from harness.rollout import Rollout, TrainStep

Batch = list[tuple[Rollout, TrainStep, Tensor]]
"""Transitions of one optimiser update: tuples of a rollout, one of its steps, and the advantages of its siblings."""


def stochastic_steps(rollout: RolloutConfig, seed: int, iteration: int, slot: int) -> tuple[int, ...]:
    """Steps at which a prompt's rollout is stochastic, increasing: all branch indices, or a window of them.

    The slot is the prompt's number within the iteration; a sliding window is at the same place for all prompts.
    """
    indices, window = rollout.branch_indices, rollout.window
    if window is None:
        return indices
    places, move = len(indices) - window.size + 1, iteration - 1
    if window.move == "slide":
        first = move % places
    else:
        first = int(torch.randint(places, (1,), generator=generator_for(seed, move, slot, "window")))
    return indices[first : first + window.size]


def trained_steps(rollout: RolloutConfig, stochastic: tuple[int, ...], seed: int, iteration: int, slot: int) -> Tensor:
    """Mask ``[steps, G]`` of the stochastic steps on which each sample of a prompt is trained.

    They are all, or a random ``trained_share`` of them; ``trained_draw`` says whether samples share the draw.
    """
    count, generator = num_trained_steps(rollout), generator_for(seed, iteration, slot, "trained steps")
    draws = rollout.group_size if rollout.trained_draw == "sample" else 1
    chosen = torch.zeros(draws, len(stochastic), dtype=torch.bool)
    for sample in chosen:
        sample[torch.randperm(len(stochastic), generator=generator)[:count]] = True
    return chosen.T.expand(-1, rollout.group_size)


def split_updates(rollouts: Sequence[Rollout], advantages: Sequence[Tensor], objective: ObjectiveConfig) -> list[Batch]:
    """Divide an iteration's transitions among its optimiser updates.

    Args:
        rollouts: rollouts of this process, in the order of slots.
        advantages: advantages of each rollout, ``[groups, G]``: a group per step (anchor-branch), or one group whose
            rewards all steps share (full SDE).
        objective: number of updates, and whether they share all samples or divide prompts or steps: update u of U gets
            the prompts, or trained steps, u, u + U, u + 2U, ... If prompts are divided, each process has a multiple of
            U slots, so that the number of processes changes nothing.
    """
    slots: list[Batch] = [
        [
            (rollout, step, step.of_siblings(own))
            for step, own in zip(rollout.steps, groups.expand(len(rollout.steps), -1), strict=True)
        ]
        for rollout, groups in zip(rollouts, advantages, strict=True)
    ]
    updates = objective.updates_per_iteration
    if objective.update_on == "prompts":
        return [[item for slot in slots[u::updates] for item in slot] for u in range(updates)]
    if objective.update_on == "steps":
        return [[item for slot in slots for item in slot[u::updates]] for u in range(updates)]
    return [[item for slot in slots for item in slot]] * updates
