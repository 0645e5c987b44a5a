"""Statistics of a prompt's own earlier visits, from the ledger, for rules that rely on prompts coming back.

Published methods classify visits by 0/1 rewards: all wrong, all right, or mixed. Rewards here are continuous, so a
visit is *flat* if its s is in the lowest ``FLAT_QUANTILE`` of the ledger's; a flat visit is *too hard* if its m is at
most mu_m, else *too easy*. Both thresholds change with the ledger. Symbols as in ``harness.rules.ledger``.
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
"""GRESO's target shares of an iteration's visits: a quarter flat, two thirds of those too hard."""
_LEAST_CHANCE = 0.01
_BELIEF_DECAY = 0.5
_VARIANCE_DECAY = 0.8


def visit_states(ledger: Ledger) -> Tensor:
    """State of each outcome in the ledger, ``[n]``: ``TOO_HARD``, ``BETWEEN`` (not flat) or ``TOO_EASY``."""
    m, s = ledger.outcomes[:, 1], ledger.outcomes[:, 2]
    flat = s <= s.quantile(FLAT_QUANTILE)
    return torch.where(flat, torch.where(m > ledger.capability.mean, TOO_EASY, TOO_HARD), BETWEEN)


def chances_to_stay(ledger: Ledger, prompts: Tensor) -> Tensor:
    """GRESO's probability that a prompt is not skipped (arXiv 2506.02177), ``[B]``: max(p^z, .01).

    z is the number of latest visits in a row that were flat, p the rate of the latest one's state (``rates``).
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
    """GRESO's rates by state: .5 until any prompt has come back, then moved by .01 per iteration within [.05, .95].

    Lowered, to skip more, if the state's share of an iteration's visits is at least its target, else raised.
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
    """DPS's probability that a prompt is now between too hard and too easy (arXiv 2603.10887), ``[B]``.

    A prompt has a belief over the three states, uniform at first and without visits, and 3 x 3 counts of transitions, 1
    at first. Each iteration the counts move halfway back to 1; a visit adds observed_i T_ij belief_j, normalised, and
    sets the belief to the observed state; then belief <- T belief, T being the counts normalised by column.
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
    """Moving average v <- .8 v + .2 s^2 over each prompt's visits, ``[B]``; without visits the mean of all v."""
    known: dict[int, float] = {}
    for prompt, s in zip(ledger.prompts.tolist(), ledger.outcomes[:, 2].tolist(), strict=True):
        known[prompt] = _VARIANCE_DECAY * known.get(prompt, s**2) + (1 - _VARIANCE_DECAY) * s**2
    usual = sum(known.values()) / len(known)
    return torch.tensor([known.get(prompt, usual) for prompt in prompts.tolist()], dtype=torch.float64)
