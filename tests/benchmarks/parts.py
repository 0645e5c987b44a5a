"""What is timed beside the iteration against the plain loop: variants, the recogniser, evaluations, scaling, costs."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor

from harness.config import compose
from harness.config.selection import needs_of
from harness.rewards import build_rewards
from harness.rewards.native.ocr import OcrReward
from harness.rules.ledger import prompt_number
from harness.rules.selection import RULES
from harness.runs.directory import prepare_run
from harness.training.accounting import expected_cost
from harness.training.choosing import Choosing
from harness.training.evaluation import evaluate
from harness.training.session import Session
from harness.training.trainer import Trainer
from tests.benchmarks.iteration import START, make_trainer, spread

VARIANTS: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "sampling not compiled": ("model.execution.compile=never",),
    "LoRA not merged while sampling": ("optimizer.lora.merge_while_sampling=false", "model.execution.compile=never"),
    "at most 8 samples a forward": ("model.max_batch=8",),
    "a trained step a forward": ("model.execution.max_train_batch=1",),
    "network in bfloat16": ("model.precision=bf16",),
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


def measure_precision() -> dict[str, Any]:
    """The network in bfloat16 against float32: forwards per second, and the velocity's relative error."""
    measured: dict[str, Any] = {}
    velocities: dict[str, Tensor] = {}
    for precision in ("fp32", "bf16"):
        trainer = make_trainer(1, (f"model.precision={precision}", "model.execution.compile=never"))
        prompts = trainer.prompts[:12]
        text = trainer.policy.encode(prompts)
        x = trainer.policy.noise(torch.Generator().manual_seed(0), len(prompts))
        with trainer.policy.sampling():
            velocities[precision] = trainer.policy.velocity(x, 0.7, text)
            taken = min(seconds_of(lambda: trainer.policy.velocity(x, 0.7, text)) for _ in range(3))  # noqa: B023
        measured[precision] = {"forwards a second": len(prompts) / taken}
    error = (velocities["bf16"] - velocities["fp32"]).norm() / velocities["fp32"].norm()
    measured["bf16"]["relative error of the velocity"] = float(error)
    for precision, values in measured.items():
        print(f"  network in {precision}  " + "  ".join(f"{name} {value:.3g}" for name, value in values.items()))
    return measured


def measure_recogniser(num_groups: int) -> dict[str, Any]:
    """Pictures per second by batch and by input width, and what a narrower input does to the order within groups."""
    trainer = make_trainer(1)
    groups = [_group(trainer) for _ in range(num_groups)]
    pictures = torch.cat([images for images, _ in groups])
    prompts = [prompt for images, prompt in groups for _ in range(len(images))]
    measured: dict[str, Any] = {}
    for batch in (4, 8, 16, 32):
        measured[f"batch {batch}"] = _pictures_a_second(OcrReward(batch_size=batch), pictures, prompts)
    reference = OcrReward().score(pictures, prompts).reshape(num_groups, -1)
    for width in (128, 112, 96):
        with patch("harness.rewards.native.ocr.INPUT_WIDTH", width):
            rate = _pictures_a_second(OcrReward(), pictures, prompts)
            scores = OcrReward().score(pictures, prompts).reshape(num_groups, -1)
        measured[f"width {width}"] = rate | {"rank correlation within groups": _rank_correlation(reference, scores)}
    for name, values in measured.items():
        print(f"  recogniser, {name:10} " + "  ".join(f"{key} {value:.3g}" for key, value in values.items()))
    return measured


def _group(trainer: Trainer) -> tuple[Tensor, str]:
    """The siblings' pictures of the next iteration's first branch index, and their prompt."""
    seen: list[tuple[Tensor, str]] = []
    score = trainer.reward.submit

    def keep(images: Tensor, prompts: Any) -> Any:
        seen.append((images, prompts[0]))
        return score(images, prompts)

    with patch.object(trainer.reward, "submit", keep):
        trainer.iterate()
    images, prompt = seen[-1]
    return images[: trainer.config.rollout.group_size], prompt


def _pictures_a_second(reward: OcrReward, pictures: Tensor, prompts: list[str]) -> dict[str, float]:
    reward.score(pictures[:16], prompts[:16])
    return {"pictures a second": len(pictures) / min(seconds_of(lambda: reward.score(pictures, prompts)) for _ in "ab")}


def _rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's, mean over groups."""
    ranks = [pd.DataFrame(values.double().numpy()).rank(axis=1).to_numpy() for values in (first, second)]
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(*ranks, strict=True)]))


def measure_evaluation() -> dict[str, Any]:
    """Seconds of a validation and of a test, with all judges and with the trained one alone."""
    trainer = make_trainer(1)
    measured = {}
    for judges in (trainer.config.evaluation.judges, ("ocr",)):
        built = build_rewards(trainer.config.reward, judges, trainer.config.rewards, 1)[1]
        prompts = trainer.prompts[:96]
        evaluate(trainer.policy, prompts[:16], built, 1)
        name = f"{len(prompts)} prompts, judges {' '.join(judges)}"
        measured[name] = seconds_of(lambda: evaluate(trainer.policy, prompts, built, 1))  # noqa: B023
        print(f"  {name:44} {measured[name]:.2f} s")
    return measured


def measure_run() -> dict[str, Any]:
    """A whole run of few iterations in this process: seconds outside training and evaluation."""
    outside = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(3):
            settings = [f"seed={seed}", "iterations=4", "evaluation.validation_prompts=8", "evaluation.base_test=false"]
            config = compose("miniature-luck", overrides=[*settings, "evaluation.test=false"])
            began = time.perf_counter()
            run = prepare_run(config, Path(folder))
            Session(run, say=lambda line: None).execute()
            total = time.perf_counter() - began
            iterations = pd.read_json(run.folder / "metrics.jsonl", lines=True)["seconds"].map(lambda s: s["iteration"])
            evaluations = pd.read_json(run.folder / "eval.jsonl", lines=True)["seconds"]
            outside.append(total - iterations.sum() - evaluations.sum())
    print(f"  outside training and evaluation: first run of a process {outside[0]:.2f} s, later ones", end=" ")
    print(" ".join(f"{seconds:.2f}" for seconds in outside[1:]) + " s")
    return {"first": outside[0], "later": outside[1:]}


def measure_scaling(rounds: int) -> dict[str, Any]:
    """Seconds per iteration against B, G and N, one thread, two branch indices as in the miniature."""
    settings = [f"rollout.candidates={n}" for n in (4, 8, 12, 24)]
    settings += [f"rollout.group_size={n}" for n in (4, 8, 16)]
    settings += [f"model.num_steps={n}" for n in (6, 8, 16)]
    measured: dict[str, Any] = {}
    for setting in settings:
        trainer = make_trainer(1, (setting,))
        trainer.iterate()
        measured[setting] = spread([seconds_of(trainer.iterate) for _ in range(rounds)])
        print(f"  {setting:24} {measured[setting]['median']:.3f} s per iteration")
    return measured


def measure_candidates(rounds: int) -> dict[str, Any]:
    """What AdaGRPO's candidates cost on top of the base method: by counts and, on the miniature, by time."""
    measured: dict[str, Any] = {}
    for profile in ("miniature", "paper"):
        counts = {}
        for name, selection, fusion in (("base", "random", "false"), ("+ AdaGRPO", "curriculum", "true")):
            cost = expected_cost(compose(profile, overrides=[f"selection={selection}", f"fusion.enabled={fusion}"]))
            counts[name] = {"forwards": cost.forwards, "reward calls": cost.reward_calls}
        extra = {key: counts["+ AdaGRPO"][key] / counts["base"][key] - 1 for key in counts["base"]}
        measured[profile] = {"counts": counts, "extra": extra}
        print(f"  {profile:10} " + "  ".join(f"{key} {share:+.0%}" for key, share in extra.items()))
    base = make_trainer(1, ("selection=random", "fusion.enabled=false"))
    ada = make_trainer(1)
    pairs = [(seconds_of(base.iterate), seconds_of(ada.iterate)) for _ in range(rounds + 1)][1:]
    measured["miniature"]["extra"]["seconds"] = median(b / a for a, b in pairs) - 1
    print(f"  miniature  seconds {measured['miniature']['extra']['seconds']:+.0%}")
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
