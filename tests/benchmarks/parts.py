"""What is timed beside the iteration against the plain loop: variants, the recogniser, evaluations, scaling, costs."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator

from harness.config.selection import needs_of
from harness.rules.ledger import prompt_number
from harness.rules.selection import RULES
from harness.training.choosing import Choosing
from harness.training.trainer import Trainer
from tests.benchmarks.iteration import START, make_trainer, spread

VARIANTS: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "sampling not compiled": ("model.execution.compile=never",),
    "LoRA not merged while sampling": ("optimizer.lora.merge_while_sampling=false", "model.execution.compile=never"),
    "at most 8 samples a forward": ("model.max_batch=8",),
    "a trained step a forward": ("model.execution.max_train_batch=1",),
    "recogniser in bfloat16": ("rewards.ocr.precision=bf16",),
    "network in bfloat16": ("model.precision=bf16", "optimizer.lora.merge_while_sampling=false"),
}
"""The project's iteration with one of its ways to be fast left out, or one more that is not its default."""


def measure_variants(rounds: int) -> dict[str, Any]:
    """Seconds per iteration of each variant, in turn, one thread, four branch indices."""
    trainers = {name: make_trainer(1, (*START, *overrides)) for name, overrides in VARIANTS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for attempt in range(rounds + 1):
        for name, trainer in trainers.items():
            taken = seconds_of(trainer.iterate)
            if attempt:  # the first is a warm-up
                seconds[name].append(taken)
    measured = {name: spread(values) for name, values in seconds.items()}
    for name, values in measured.items():
        ratio = median(a / b for a, b in zip(seconds[name], seconds["as it is"], strict=True))
        measured[name]["ratio"] = ratio
        print(f"  {name:32} {values['median']:.3f} s ({values['low']:.3f} - {values['high']:.3f})  x {ratio:.2f}")
    return measured


def measure_rules(rounds: int) -> dict[str, Any]:
    """What rules without samples add to an iteration of random prompts, with a full ledger: processor time, in turn."""
    first = make_trainer(1, ("selection=random", "fusion.enabled=false"))
    first.prompts = first.prompts[:48]  # which come back
    trainers = {"random": first}
    for rule in sorted(rule for rule in RULES if rule != "random" and not needs_of(rule).samples):
        level = {"choice": first.config.choice.model_copy(update={"level": 0.5})} if needs_of(rule).level else {}
        config = first.config.model_copy(update={"selection": rule, **level})
        trainer = Trainer(config, first.policy, first.reward, first.prompts, Accelerator(cpu=True))
        _fill(trainer)
        trainers[rule] = trainer
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    choosing: dict[str, list[float]] = {name: [] for name in trainers}
    for attempt in range(rounds + 1):
        for name, trainer in trainers.items():
            own: list[float] = []
            with (
                _timed(trainer.choosing, own),
                patch.object(trainer.policy, "encode", timed(trainer.policy.encode, own)),
            ):
                began = time.process_time()
                trainer.iterate()
                taken = time.process_time() - began
            if attempt:  # the first is a warm-up
                seconds[name].append(taken)
                choosing[name].append(sum(own))
    measured: dict[str, Any] = {}
    for name, values in seconds.items():
        share = (median(choosing[name]) - median(choosing["random"])) / median(seconds["random"])
        ratio = median(a / b for a, b in zip(values, seconds["random"], strict=True))
        measured[name] = {"share": share, "ratio": ratio}
        print(f"  {name:20} text, choice and ledger {share:+.2%} of an iteration at random, the whole x {ratio:.3f}")
    return measured


def _fill(trainer: Trainer) -> None:
    """A full ledger: 256 visits of 48 prompts, with random outcomes."""
    ledger, generator = trainer.choosing.ledger, torch.Generator().manual_seed(0)
    assert ledger is not None
    prompts = list(trainer.prompts)
    embeddings, numbers = trainer.policy.encode(prompts).summary, torch.tensor([prompt_number(one) for one in prompts])
    for iteration in range(ledger.capacity // 2):
        rows = torch.randint(len(prompts), (2,), generator=generator)
        outcomes = torch.cat([torch.rand(2, 2, generator=generator), torch.tensor([[8.0, 8.0, -1.0]] * 2)], dim=1)
        ledger.record(iteration - ledger.capacity // 2, embeddings[rows], outcomes.double(), numbers[rows])


@contextmanager
def _timed(choosing: Choosing, own: list[float]) -> Iterator[None]:
    with ExitStack() as stack:
        for name in ("draw", "choose", "record"):
            stack.enter_context(patch.object(choosing, name, timed(getattr(choosing, name), own)))
        yield


def timed(call: Callable[..., Any], own: list[float]) -> Callable[..., Any]:
    """The same, noting what processor time it takes."""

    def measured(*arguments: Any) -> Any:
        began = time.process_time()
        found = call(*arguments)
        own.append(time.process_time() - began)
        return found

    return measured


def seconds_of(call: Callable[[], Any]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
