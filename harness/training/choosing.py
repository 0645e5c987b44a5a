"""Choice of the prompts that an iteration trains on, and the record of their outcomes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.adagrpo import SELECTION_STRATEGIES, CapabilityTracker
from harness.config import RunConfig
from harness.prompts.lists import draw_candidates, generator_for
from harness.rules.ledger import Ledger, prompt_number
from harness.rules.plugins import rule_of
from harness.rules.selection import Candidates, draw_strategy
from harness.training.accounting import Slot
from harness.training.processes import Processes


class Choosing:
    """Draws candidates, chooses among them as ``selection`` says, and keeps the ledger if the run has one.

    ``resolution`` is that of the reward. The ledger is the same in all processes.
    """

    def __init__(self, config: RunConfig, prompts: tuple[str, ...], resolution: float, processes: Processes) -> None:
        self._config, self._prompts, self._resolution, self._processes = config, prompts, resolution, processes
        self._by_number = {prompt_number(prompt): prompt for prompt in prompts} if config.selection == "replay" else {}
        self._rule = rule_of(config.selection, config.source_of(config.selection))
        self.ledger = Ledger(config.capability.decay, config.choice.forgetting) if config.keeps_ledger else None

    def draw(self, iteration: int, number: int) -> Slot:
        """Draw B candidate prompts for a slot; in a share of slots ``replay`` replaces the first by an earlier one."""
        rollout, seed = self._config.rollout, self._config.seed
        drawn = draw_candidates(self._prompts, rollout.prompts_per_iteration, rollout.candidates, seed, iteration)
        slot = Slot(number, drawn[number])
        if self._config.selection == "replay" and self.ledger is not None:
            again = self.ledger.worth_repeating(iteration, number)
            dice = torch.rand(1, generator=generator_for(seed, iteration, number, "replay"))
            if again is not None and dice < (self._config.choice.level or 0.0):
                slot.prompts[0], slot.is_repeated = self._by_number[again], True
        return slot

    def choose(self, iteration: int, slot: Slot, capability: CapabilityTracker) -> int:
        """Choose the candidate to train on and return its index; sets the slot's ``strategy`` for the bandit."""
        seed, choice = self._config.seed, self._config.choice
        if self._config.selection == "bandit" and self.ledger is not None:
            generator = generator_for(seed, iteration, slot.number, "bandit")
            slot.strategy = draw_strategy(self.ledger, choice.explore, generator)
        candidates = Candidates(
            # Random selection reads no reward, so with and without fusion it chooses the same prompts.
            torch.zeros(len(slot.prompts), 1) if slot.samples is None else slot.samples,
            capability,
            generator_for(seed, iteration, slot.number, "selection"),
            embeddings=None if slot.text is None else slot.text.summary,
            prompts=None if self.ledger is None else torch.tensor([prompt_number(p) for p in slot.prompts]),
            ledger=self.ledger,
            level=choice.level or 0.0,
            explore=choice.explore,
            strategy=SELECTION_STRATEGIES[max(slot.strategy, 0)],
            is_repeated=slot.is_repeated,
            resolution=self._resolution,
        )
        return self._rule(candidates)

    def above_floor(self, slots: Sequence[Slot], advantages: list[Tensor]) -> list[Tensor]:
        """Set the advantages of prompts to 0 whose spread is below the ledger's quantile ``choice.floor``."""
        floor = self._config.choice.floor
        if self.ledger is None or not floor:
            return advantages
        least = self.ledger.spread_quantile(floor)
        return [own * float(slot.spread >= least) for slot, own in zip(slots, advantages, strict=True)]

    def record(self, iteration: int, slots: Sequence[Slot]) -> dict[str, Any]:
        """Record the outcomes of all processes' prompts in the ledger. Collective, if the run keeps a ledger.

        Returns:
            Entries for the iteration's metrics.jsonl record: the ledger's earlier predictions, the bandit's strategies.
        """
        if self.ledger is None:
            return {}
        text = torch.stack([slot.text.summary[slot.chosen] for slot in slots if slot.text is not None]).cpu().double()
        rows = [
            [*self.ledger.outcome_of(slot.scores.total, slot.strategy), prompt_number(slot.prompt)] for slot in slots
        ]
        mine = torch.cat([torch.tensor(rows, dtype=torch.float64), text], dim=1)
        outcomes, numbers, text = self._processes.gather(mine, "gathering outcomes").split([5, 1, text.shape[1]], dim=1)
        noted: dict[str, Any] = {}
        if self.ledger.can_predict:
            noted["predicted_means"] = self.ledger.mean_of(text).mean.tolist()
            noted["predicted_stds"] = self.ledger.spread_of(text).mean.tolist()
        if self._config.selection == "bandit":
            noted["strategies"] = [SELECTION_STRATEGIES[int(strategy)] for strategy in outcomes[:, 4]]
        self.ledger.record(iteration, text, outcomes, numbers[:, 0].long())
        return noted
