"""Checks of an update, of what it leaves behind, and of a run's parts: rewards, processes, checkpoints."""

import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import init_device_mesh
from transformers import CLIPModel

from harness.config import RewardConfig
from harness.experiments.gpu_check.bench import GIB, Bench, Outcome, distance
from harness.foundation.errors import StopRun
from harness.models.pipelines.policy import Policy
from harness.prompts.lists import generator_for
from harness.rewards import build_reward
from harness.rewards.native.open_clip import twin_of_clip, vit_h_14
from harness.runs.directory import prepare_run
from harness.training.session import Session
from harness.training.sharded import shard

_LORA = ("optimizer.tuning=lora", "optimizer.lora.merge_while_sampling=false", "optimizer.learning_rate=1e-4")


def on_policy(bench: Bench) -> Outcome:
    """Whole iterations: the ratio of rollout and first update, for all weights and for adapters."""
    figures: dict[str, Any] = {}
    for tuning, more in (("all weights", ()), ("adapters", _LORA)):
        record = bench.trainer(bench.config("adagrpo_flux", *more)).iterate()
        figures |= {f"{tuning}: ratio - 1": record["ratio_max_deviation"], f"{tuning}: gradient": record["grad_norm"]}
        bench.free()
    return Outcome(figures, all(abs(v) < 1e-3 for name, v in figures.items() if "ratio" in name))


def recomputed(bench: Bench) -> Outcome:
    """Log-probabilities computed anew make the first update's ratio 1."""
    few = ("objective.updates_per_iteration=1", "rollout.branch_indices=[0, 1]", "optimizer.weight_ema=null")
    record = bench.trainer(bench.config("flow_grpo_flux", *_LORA, *few)).iterate()
    found = record["ratio_max_deviation"]
    return Outcome({"ratio - 1": found, "of the rollout": record["rollout_ratio_max_deviation"]}, found < 1e-6)


def gradients(bench: Bench) -> Outcome:
    """Gradients of all weights: float32, finite; and how many AdamW's epsilon decides on."""
    policy = bench.policy(tuning="full", checkpointing=True)
    _backward(bench, policy)
    found = [p.grad for p in policy.trainable().values() if p.grad is not None]
    sample = torch.cat([g.flatten()[::97] for g in found]).abs()
    figures = {
        "tensors": len(found),
        "root mean square": float(sample.square().mean().sqrt()),
        "share below 10 epsilon": float((sample < 1e-7).float().mean()),
    }
    return Outcome(figures, all(g.dtype == torch.float32 and bool(g.isfinite().all()) for g in found))


def moved_weights(bench: Bench) -> Outcome:
    """Share of weights whose bf16 value has changed after 1 and 4 steps at 2e-6; AdamW's memory; gradients after."""
    policy = bench.policy(tuning="full", checkpointing=True)
    weights = policy.trainable()
    start = {name: w.detach().bfloat16() for name, w in weights.items()}
    optimizer, figures = torch.optim.AdamW(weights.values(), lr=2e-6), dict[str, Any]()
    for step in range(1, 5):
        _backward(bench, policy)
        _, more = bench.peak(optimizer.step)
        figures |= {"GiB of a step": more} if step == 2 else {}
        before = torch.cuda.memory_allocated() if bench.on_gpu else 0
        optimizer.zero_grad(set_to_none=True)
        figures["GiB of gradients"] = (before - torch.cuda.memory_allocated()) / GIB if bench.on_gpu else 0.0
        if step in (1, 4):
            moved = sum(int((w.detach().bfloat16() != start[name]).sum()) for name, w in weights.items())
            figures[f"share moved after {step}"] = moved / sum(w.numel() for w in weights.values())
    return Outcome(figures, 0 < figures["share moved after 1"] < figures["share moved after 4"])


def adamw_memory(bench: Bench) -> Outcome:
    """An iteration's fullest moment, by the engine that a run has."""
    trainer = bench.trainer(bench.config("adagrpo_flux"))
    record, peak = bench.peak(trainer.iterate)
    left = [name for name, p in trainer.parameters.items() if p.grad is not None]
    bench.noted |= {f"seconds of {phase}": value for phase, value in record["seconds"].items()}
    return Outcome({"GiB": peak, "gradients left": len(left)}, not left)


def phases(bench: Bench) -> Outcome:
    """Where an iteration's seconds go, the second of two."""
    trainer = bench.trainer(bench.config("adagrpo_flux"))
    trainer.iterate()
    seconds = trainer.iterate()["seconds"]
    total = sum(seconds.values())
    figures = {phase: value / total for phase, value in seconds.items()}
    return Outcome(figures | {"seconds": total}, seconds["reward"] < total)


def hpsv2(bench: Bench) -> Outcome:
    """ViT-H of random weights: the device's scores against the CPU's."""
    config = twin_of_clip() if bench.is_tiny else vit_h_14()
    torch.manual_seed(0)
    model = CLIPModel(config).eval().requires_grad_(False)
    pixels = torch.randn(4, 3, 224, 224, generator=generator_for(3))
    tokens = torch.randint(1, 1000, (4, 77), generator=generator_for(4))

    def scores(device: torch.device) -> Tensor:
        out = model.to(device)(input_ids=tokens.to(device), pixel_values=pixels.to(device))
        return (out.image_embeds * out.text_embeds).sum(-1).cpu()

    on_cpu, here = scores(torch.device("cpu")), scores(bench.device)
    apart = float((on_cpu - here).abs().max())
    return Outcome({"difference": apart, "seconds of 4": bench.seconds(lambda: scores(bench.device))}, apart < 1e-4)


def hpsv3(bench: Bench) -> Outcome:
    """Qwen2-VL at a twin's width: the device's scores against the CPU's, and bf16's distance."""
    pictures = torch.rand(4, 3, 64, 64, generator=generator_for(5)).mul(255).round() / 255
    prompts = [f"a fox, {i} times" for i in range(4)]

    def scores(precision: str, device: str) -> Tensor:
        places = {"path": "twin:hpsv3", "base": "twin:hpsv3", "precision": precision, "device": device}
        return build_reward("hpsv3", settings=RewardConfig.model_validate(places)).score(pictures, prompts)

    on_cpu, here, low = scores("fp32", "cpu"), scores("fp32", bench.device.type), scores("bf16", bench.device.type)
    apart = float((on_cpu - here).abs().max())
    return Outcome({"difference": apart, "of bf16": float((low - here).abs().max())}, apart < 1e-3)


def pictures(bench: Bench) -> Outcome:
    """Seconds of the CPU's part of scoring 48 pictures: those of a rollout."""
    reward, model = build_reward("hpsv2", settings=RewardConfig(path="twin:hpsv2")), bench.model()
    images = torch.rand(48, 3, model.height, model.width, generator=generator_for(6)).mul(255).round() / 255
    reward.score(images[:1], ["a fox"])
    began = time.perf_counter()
    reward.score(images, ["a fox"] * 48)
    took = time.perf_counter() - began
    return Outcome({"seconds": took}, took < 15)


def sharded(bench: Bench) -> Outcome:
    """FSDP2 on one device: the velocity of the whole network, bit for bit, and gradients as shares."""
    policy = bench.policy(tuning="full", checkpointing=True)
    inputs = bench.inputs(policy, 2)
    with torch.no_grad():
        whole = policy.velocity(*inputs)
    store = HashStore()
    torch.distributed.init_process_group("nccl" if bench.on_gpu else "gloo", store=store, rank=0, world_size=1)
    try:
        shard(policy.transformer, init_device_mesh(bench.device.type, (1,)))
        with torch.no_grad():
            shared, memory = bench.peak(lambda: policy.velocity(*inputs))
        _backward(bench, policy)
        kinds = {type(p.grad).__name__ for p in policy.trainable().values() if p.grad is not None}
    finally:
        torch.distributed.destroy_process_group()
    return Outcome(
        {"distance": distance(shared, whole), "GiB": memory}, torch.equal(shared, whole) and kinds == {"DTensor"}
    )


def two_processes(bench: Bench) -> Outcome:
    """A run of two iterations shared out to two GPUs by torchrun and NCCL; nothing where there are none."""
    if not (bench.on_gpu and torch.cuda.device_count() > 1):
        return Outcome({"GPUs": torch.cuda.device_count()}, None)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "harness.cli",
    ]
    settings = [f"model.path={bench.pipeline('flux')}", "runtime.device=cuda", "runtime.processes=2"]
    command += ["train", "--profile", "paper-dry", *settings, "runtime.engine=fsdp2", "evaluation.test=false"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=bench.folder, timeout=300)
    return Outcome({"exit code": result.returncode, "last line": result.stderr[-200:]}, result.returncode == 0)


def resume(bench: Bench) -> Outcome:
    """Two iterations, and two with an end and a checkpoint between them: the adapters are the same."""
    config = bench.config(
        "adagrpo_flux", *_LORA, "iterations=2", "evaluation.interval=1", "evaluation.validation_prompts=1"
    )
    whole, broken = (prepare_run(config, bench.folder / "run" / name) for name in ("whole", "broken"))
    first = Session(whole, say=lambda line: None)
    first.execute()

    def stop(iteration: int, metrics: Any) -> None:
        if iteration == 1:
            raise StopRun("to be continued")

    with suppress(StopRun):
        Session(broken, say=lambda line: None, on_validation=stop).execute()
    second = Session(broken, say=lambda line: None)
    second.execute()
    ours, theirs = (session.trainer.parameters for session in (first, second))
    apart = max(float((ours[name] - theirs[name]).detach().abs().max()) for name in ours)
    return Outcome({"difference": apart}, apart < 4 * 1e-4 if bench.on_gpu else apart == 0)


def determinism(bench: Bench) -> Outcome:
    """The same iteration twice: bit for bit on a CPU; on a GPU within two learning rates a weight."""
    ends = []
    for _ in range(2):
        trainer = bench.trainer(bench.config("adagrpo_flux", *_LORA))
        trainer.iterate()
        ends.append([p.detach().clone() for p in trainer.parameters.values()])
    apart = max(float((ours - theirs).abs().max()) for ours, theirs in zip(*ends, strict=True))
    return Outcome({"difference": apart}, apart <= 2 * 4 * 1e-4 if bench.on_gpu else apart == 0)


def small_card(bench: Bench) -> Outcome:
    """The settings for one GPU, within 24 GB of this one."""
    if bench.on_gpu:
        torch.cuda.set_per_process_memory_fraction(min(1.0, 24e9 / torch.cuda.mem_get_info()[1]))
    try:
        model = f"model.path={bench.pipeline('sd3')}"
        few = ("objective.updates_per_iteration=1", "objective.kl_beta=0")
        size = [f"model.max_sequence_length={bench.model('sd3').max_sequence_length}", model]
        config = bench.config(
            "flow_grpo_sd35", *size, *_LORA, "rollout.branch_indices=[0]", "rollout.group_size=2", *few
        )
        config = config.model_copy(update={"model": config.model.model_copy(update={"guidance": 4.5})})
        record, memory = bench.peak(lambda: bench.trainer(config).iterate())
    finally:
        if bench.on_gpu:
            torch.cuda.set_per_process_memory_fraction(1.0)
    return Outcome({"GiB": memory, "reward": record["reward_mean"]}, memory < 20)


def _backward(bench: Bench, policy: Policy) -> None:
    """Gradients of a loss of one sample."""
    policy.velocity(*bench.inputs(policy, 1)).square().mean().backward()
