"""What a prompt's own visits tell of it, for rules that need prompts to come back: all from the ledger's outcomes.

Rivals tell visits by 0/1 rewards: all wrong, all right, or something between. Rewards here are continuous, so a visit
counts as *flat* where its s is in the lowest ``FLAT_QUANTILE`` of those kept, *too hard* if m is at most mu_m and *too
easy* if above. Both lines are the latest, and move with the ledger. Symbols as in ``harness.rules.ledger``.
"""

from collections import defaultdict
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

from harness.rules.ledger import Ledger

FLAT_QUANTILE = 0.2
TOO_HARD, BETWEEN, TOO_EASY = range(3)
_SHARES = {TOO_HARD: 0.25 * 2 / 3, TOO_EASY: 0.25 / 3}
"""GRESO's targets: a quarter of the visits flat, two thirds of them too hard."""
_LEAST_CHANCE = 0.01
_BELIEF_DECAY = 0.5
_VARIANCE_DECAY = 0.8


def visit_states(ledger: Ledger) -> Tensor:
    """``[n]``: whether each outcome kept was too hard, between, or too easy."""
    m, s = ledger.outcomes[:, 1], ledger.outcomes[:, 2]
    flat = s <= s.quantile(FLAT_QUANTILE)
    return torch.where(flat, torch.where(m > ledger.capability.mean, TOO_EASY, TOO_HARD), BETWEEN)


def chances_to_stay(ledger: Ledger, prompts: Tensor) -> Tensor:
    """``[B]``: max(p^z, .01), GRESO's chance that a prompt is not skipped (arXiv 2506.02177).

    z is how many of a prompt's latest visits in a row were flat, p the rate of the kind of the latest, see ``rates``. A
    prompt that was never visited stays.
    """
    states, found = visit_states(ledger), rates(ledger)
    chances = torch.ones(len(prompts), dtype=torch.float64)
    for place, prompt in enumerate(prompts.tolist()):
        own = states[ledger.prompts == prompt].tolist()
        in_a_row = next((back for back, state in enumerate(reversed(own)) if state == BETWEEN), len(own))
        if in_a_row:
            chances[place] = max(found[own[-1]] ** in_a_row, _LEAST_CHANCE)
    return chances


def rates(ledger: Ledger) -> dict[int, float]:
    """GRESO's rates of what is too hard and too easy: .5, and .01 a step once prompts have come back, in [.05, .95].

    Down where the kind's share of an iteration's visits is at least its target, so that more is skipped; else up.
    """
    found, seen, returning = dict.fromkeys(_SHARES, 0.5), set[int](), False
    visits = zip(ledger.outcomes[:, 0].tolist(), visit_states(ledger).tolist(), ledger.prompts.tolist(), strict=True)
    for _, of_iteration in groupby(visits, key=itemgetter(0)):
        _, states, prompts = zip(*of_iteration, strict=True)
        returning = returning or not seen.isdisjoint(prompts)
        seen.update(prompts)
        for kind, target in _SHARES.items() if returning else ():
            step = -0.01 if states.count(kind) / len(states) >= target else 0.01
            found[kind] = min(max(found[kind] + step, 0.05), 0.95)
    return found


def chances_between(ledger: Ledger, prompts: Tensor) -> Tensor:
    """``[B]``: DPS' belief that a prompt is between too hard and too easy now (arXiv 2603.10887).

    A belief over the three states, uniform at first, and 3 x 3 counts of their transitions, 1 at first. Each iteration
    counts move halfway back to 1; a visit adds observed_i T_ij belief_j, normalised, and makes the belief what was
    observed; then belief <- T belief, T being the counts by columns. Prompts that were never visited stay uniform.
    """
    states, iterations = visit_states(ledger).tolist(), ledger.outcomes[:, 0].long().tolist()
    visits = defaultdict(list)
    for row, place in (ledger.prompts[:, None] == prompts).nonzero().tolist():
        visits[iterations[row]].append((place, states[row]))
    belief, counts = np.full((len(prompts), 3), 1 / 3), np.ones((len(prompts), 3, 3))
    transition = counts / 3
    for iteration in range(min(visits, default=iterations[-1]), iterations[-1] + 1):
        counts = _BELIEF_DECAY * counts + (1 - _BELIEF_DECAY)
        for place, state in visits[iteration]:
            joint = transition[place, state] * belief[place]
            counts[place, state] += joint / joint.sum()
            belief[place] = np.eye(3)[state]
        transition = counts / counts.sum(axis=1, keepdims=True)
        belief = (transition * belief[:, None]).sum(axis=2)
    return torch.from_numpy(belief[:, BETWEEN])


def variances(ledger: Ledger, prompts: Tensor) -> Tensor:
    """``[B]``: v <- .8 v + .2 s^2 over a prompt's visits, from its first s^2; others have the visited's mean."""
    known: dict[int, float] = {}
    for prompt, s in zip(ledger.prompts.tolist(), ledger.outcomes[:, 2].tolist(), strict=True):
        known[prompt] = _VARIANCE_DECAY * known.get(prompt, s**2) + (1 - _VARIANCE_DECAY) * s**2
    usual = sum(known.values()) / len(known)
    return torch.tensor([known.get(prompt, usual) for prompt in prompts.tolist()], dtype=torch.float64)
