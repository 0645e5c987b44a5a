"""Which steps of the schedule are stochastic, which are trained on, and which update learns from what.

What is random is a function of seed, iteration and slot.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.config import ObjectiveConfig, RolloutConfig, num_trained_steps
from harness.prompts.lists import generator_for
from harness.rollout import Rollout, TrainStep

Batch = list[tuple[Rollout, TrainStep, Tensor]]
"""Transitions of one optimiser update: the rollout, a step of it, and the advantages of the step's siblings."""


def stochastic_steps(rollout: RolloutConfig, seed: int, iteration: int, slot: int) -> tuple[int, ...]:
    """Steps at which a prompt's rollout is stochastic, increasing: all branch indices, or a window of them.

    Args:
        rollout: the settings.
        seed: of the run.
        iteration: 1 and up.
        slot: which of the iteration's prompts; a window that slides is at the same place for all of them.
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
    """Which of the stochastic steps each sample of a prompt is trained on: all, or ``trained_share`` of them at random.

    Args:
        rollout: the settings; ``trained_draw`` says whether samples share the draw.
        stochastic: from ``stochastic_steps``.
        seed: of the run.
        iteration: 1 and up.
        slot: which of the iteration's prompts.

    Returns:
        ``[steps, G]`` bool.
    """
    count, generator = num_trained_steps(rollout), generator_for(seed, iteration, slot, "trained steps")
    draws = rollout.group_size if rollout.trained_draw == "sample" else 1
    chosen = torch.zeros(draws, len(stochastic), dtype=torch.bool)
    for sample in chosen:
        sample[torch.randperm(len(stochastic), generator=generator)[:count]] = True
    return chosen.T.expand(-1, rollout.group_size)


def split_updates(rollouts: Sequence[Rollout], advantages: Sequence[Tensor], objective: ObjectiveConfig) -> list[Batch]:
    """What each of an iteration's optimiser updates learns from.

    Args:
        rollouts: this process's, in the order of slots.
        advantages: of each, ``[groups, G]``: a group per step (anchor-branch), or one group that shares its reward over
            all steps (full SDE).
        objective: how many updates, and whether they share all samples or divide prompts or steps: update u of U gets
            prompts, or trained steps, u, u + U, u + 2U, ... Slots are counted over all processes, each of which has a
            multiple of U, so that the number of processes changes nothing.
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
