"""Checks of a network's numbers against the pipeline's and the CPU's, of its memory and speed, and of a run's parts."""

import math
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import torch
from torch import Tensor
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPModel

from harness.config import RewardConfig
from harness.experiments.doctor.sizes import find_architecture, sampling_bytes
from harness.experiments.doctor.speed import PEAK_TERAFLOPS, operations
from harness.experiments.gpu_check.bench import GIB, Bench, Outcome, RandomHpsV3, distance, qwen2_vl
from harness.foundation.errors import StopRun
from harness.foundation.places import WORK
from harness.models.pipelines.blocks import blocks_of
from harness.prompts.lists import generator_for
from harness.rewards.native.open_clip import twin_of_clip, vit_h_14
from harness.rollout import ode_trajectory
from harness.runs.directory import RUNS, prepare_run
from harness.training.session import Session
from harness.training.sharded import shard

_LORA = ("optimizer.tuning=lora", "optimizer.lora.merge_while_sampling=false", "optimizer.learning_rate=1e-4")


def parity(bench: Bench) -> Outcome:
    """Sampling in float32 equals the pipeline's own within 1e-4; the distance of bf16 from float32 is 1e-4 to 5e-2."""
    policy = bench.policy("model.precision=fp32")
    x, sigma, embedding = bench.inputs(policy, 2)
    pipe = policy._pipeline
    pipe.scheduler = policy._scheduler()
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        ours = ode_trajectory(policy.velocity, x, embedding, policy.sigmas(4)).final
        size = {"height": policy.config.height, "width": policy.config.width, "num_inference_steps": 4}
        given = {"prompt_embeds": embedding.states, "pooled_prompt_embeds": embedding.pooled, "latents": x}
        theirs = pipe(**given, **size, guidance_scale=3.5, output_type="latent").images
        exact = policy.velocity(x, sigma, embedding)
        low = bench.policy()
        rounded = low.velocity(*bench.inputs(low, 2))
    noise = distance(rounded, exact)
    apart = float((ours - theirs).abs().max())
    return Outcome({"float32": apart, "bf16": noise}, apart < 1e-4 and 1e-4 < noise < 5e-2)


def kept_change(bench: Bench) -> Outcome:
    """A small change of the adapters shows fully in sampling."""
    policy = bench.policy()
    inputs = bench.inputs(policy)
    with torch.no_grad():
        for parameter in policy.trainable().values():  # factors B start at 0
            torch.nn.init.normal_(parameter, std=0.02)
    trained = policy.velocity(*inputs).detach()
    with policy.sampling():
        sampled = policy.velocity(*inputs)
    with policy.reference():
        base = policy.velocity(*inputs)
    kept = float(((trained - base) * (sampled - base)).sum() / (trained - base).square().sum())
    return Outcome({"share": kept}, abs(kept - 1) < 0.01)


def iterations(bench: Bench) -> Outcome:
    """Whole iterations, of all weights and of adapters: the ratio of rollout and first update is 1; times of phases."""
    figures: dict[str, Any] = {}
    for tuning, more in (("all weights", ()), ("adapters", _LORA)):
        trainer = bench.trainer(bench.config(*more))
        trainer.iterate()
        record, peak = bench.peak(trainer.iterate)
        bench.noted |= {f"{tuning}: seconds of {phase}": value for phase, value in record["seconds"].items()}
        said = {"ratio - 1": record["ratio_max_deviation"], "gradient": record["grad_norm"], "GiB": peak}
        said |= {phase: value for phase, value in record["seconds"].items() if value > 0}
        figures |= {f"{tuning}: {name}": value for name, value in said.items()}
        bench.free()
    well = all(abs(v) < 1e-3 for name, v in figures.items() if "ratio" in name)
    return Outcome(figures, well and all(math.isfinite(v) for v in figures.values()))


def activations(bench: Bench) -> Outcome:
    """Memory of a forward pass against the doctor's estimate, within 15 %."""
    policy = bench.policy("optimizer.tuning=full")
    inputs = bench.inputs(policy)
    with torch.no_grad():
        policy.velocity(*inputs)
        _, measured = bench.peak(lambda: policy.velocity(*inputs))
    architecture = find_architecture(str(bench.pipeline("flux")), bench.pipeline("flux"))
    assert architecture is not None
    estimate = sampling_bytes(policy.config, architecture, bench.on_gpu) / GIB
    if bench.on_gpu:
        bench.noted["activations"] = measured / estimate
    return Outcome({"GiB": measured, "estimate": estimate}, 0.85 < measured / estimate < 1.15 if bench.on_gpu else None)


def speed(bench: Bench) -> Outcome:
    """Seconds of a sample's forward pass, and its operations: torch's count against the doctor's, within 5 %."""
    policy = bench.policy("optimizer.tuning=full")
    inputs = bench.inputs(policy)

    def forward() -> None:
        with torch.no_grad():
            policy.velocity(*inputs)

    each = bench.seconds(forward) / bench.batch
    with FlopCounterMode(display=False) as counter, nullcontext() if bench.on_gpu else sdpa_kernel(SDPBackend.MATH):
        forward()
    architecture = find_architecture(str(bench.pipeline("flux")), bench.pipeline("flux"))
    assert architecture is not None
    expected, counted = operations(architecture, policy.config), counter.get_total_flops() / bench.batch
    bench.noted |= {"flops": counted / each, "seconds per forward": each}
    figures = {
        "seconds a sample": each,
        "TFLOP/s": counted / each / 1e12,
        "operations by the doctor": expected / counted,
    }
    if bench.on_gpu:
        name = torch.cuda.get_device_name()
        peak = next((value for key, value in PEAK_TERAFLOPS.items() if key in name), None)
        figures["share of the peak"] = counted / each / 1e12 / peak if peak else float("nan")
    return Outcome(figures, abs(expected / counted - 1) < 0.05)


def hpsv2(bench: Bench) -> Outcome:
    """ViT-H with random weights: scores on this device against those on the CPU."""
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
    """Random weights at Qwen2-VL-7B's width: scores of 2 blocks against the CPU's; all blocks within 40 GB."""
    side = 64 if bench.is_tiny else 512
    pictures = torch.rand(4, 3, side, side, generator=generator_for(5)).mul(255).round() / 255
    prompts = [f"a fox, {i} times" for i in range(4)]

    def scores(layers: int | None, precision: str, device: str, drawn_on: str = "cpu") -> Tensor:
        settings = RewardConfig.model_validate({"base": "twin:hpsv3", "precision": precision, "device": device})
        return RandomHpsV3(qwen2_vl(bench.is_tiny, layers), drawn_on, settings).score(pictures, prompts)

    here, where = scores(2, "fp32", bench.device.type), bench.device.type
    on_cpu = scores(2, "fp32", "cpu") if bench.on_gpu else here
    apart, spread = float((on_cpu - here).abs().max()), float(on_cpu.max() - on_cpu.min())
    figures = {"difference": apart, "spread": spread, "of bf16": float((scores(2, "bf16", where) - here).abs().max())}
    well = apart < 1e-3 < spread
    if bench.on_gpu and not bench.is_tiny:
        whole, figures["GiB of all blocks"] = bench.peak(lambda: scores(None, "bf16", where, where))
        well = well and bool(whole.isfinite().all()) and figures["GiB of all blocks"] * GIB < 40e9
    return Outcome(figures, well)


def sharded(bench: Bench) -> Outcome:
    """FSDP2 on one device: the velocity equals the whole network's bit for bit, and gradients are sharded."""
    policy = bench.policy("optimizer.tuning=full")
    inputs = bench.inputs(policy, 2)
    with torch.no_grad():
        whole = policy.velocity(*inputs)
    store = HashStore()
    torch.distributed.init_process_group("nccl" if bench.on_gpu else "gloo", store=store, rank=0, world_size=1)
    try:
        shard(policy.transformer, init_device_mesh(bench.device.type, (1,)))
        with torch.no_grad():
            shared, memory = bench.peak(lambda: policy.velocity(*inputs))
        policy.velocity(*bench.inputs(policy, 1)).square().mean().backward()
        kinds = {type(p.grad).__name__ for p in policy.trainable().values() if p.grad is not None}
    finally:
        torch.distributed.destroy_process_group()
    return Outcome(
        {"distance": distance(shared, whole), "GiB": memory}, torch.equal(shared, whole) and kinds == {"DTensor"}
    )


def two_processes(bench: Bench) -> Outcome:
    """A run of two iterations, sharded over two GPUs with NCCL; skipped with fewer GPUs."""
    if not (bench.on_gpu and torch.cuda.device_count() > 1):
        return Outcome({"GPUs": torch.cuda.device_count()}, None)
    experiment = f"gpu-check-{secrets.token_hex(4)}"  # a run of an earlier check would be finished already
    settings = [f"experiment={experiment}", f"model.path={bench.pipeline('flux').resolve()}"]
    settings += ["evaluation.test=false", "evaluation.base_test=false"]
    settings += ["runtime.device=cuda", "runtime.processes=2", "runtime.engine=fsdp2"]
    command = [sys.executable, "-m", "harness.cli", "launch", "--profile", "paper-dry", *settings]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=WORK, timeout=300)
    finally:
        shutil.rmtree(RUNS / experiment, ignore_errors=True)
    return Outcome({"exit code": result.returncode, "last line": result.stderr[-200:]}, result.returncode == 0)


def resume(bench: Bench) -> Outcome:
    """Two iterations, at once and with a checkpoint and a restart between them: equal adapters (GPU: within 4e-4)."""
    config = bench.config(*_LORA, "iterations=2", "evaluation.interval=1", "evaluation.validation_prompts=1")
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


def small_card(bench: Bench) -> Outcome:
    """Memory of the settings for one small GPU: below 20 GiB, with this GPU limited to 24 GB."""
    if bench.on_gpu:
        torch.cuda.set_per_process_memory_fraction(min(1.0, 24e9 / torch.cuda.mem_get_info()[1]))
    try:
        few = ("rollout.branch_indices=[0]", "rollout.group_size=2", "objective.updates_per_iteration=1")
        config = bench.config(*_LORA, *few, "objective.kl_beta=0", method="flow_grpo_sd35", pipeline="sd3")
        record, memory = bench.peak(lambda: bench.trainer(config).iterate())
    finally:
        if bench.on_gpu:
            torch.cuda.set_per_process_memory_fraction(1.0)
    return Outcome({"GiB": memory, "reward": record["reward_mean"]}, memory < 20 if bench.on_gpu else None)


def graphs(bench: Bench) -> Outcome:
    """torch.compile makes one graph of a block, without breaks; a forward pass does not wait for the GPU."""
    policy = bench.policy()
    inputs, calls = bench.inputs(policy, 2), dict[str, Any]()
    block = blocks_of(policy.transformer)[0]
    hook = block.register_forward_pre_hook(lambda module, args, given: calls.update(given), with_kwargs=True)
    with torch.no_grad():
        policy.velocity(*inputs)
    hook.remove()
    with torch.no_grad(), torch.autocast(bench.device.type, torch.bfloat16, cache_enabled=False):
        explained = torch._dynamo.explain(block)(**calls)
    torch._dynamo.reset()
    figures = {"graphs": explained.graph_count, "breaks": explained.graph_break_count, "waits": 0}
    if bench.on_gpu:
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.no_grad():
                policy.velocity(*inputs)
        except RuntimeError:
            figures["waits"] = 1
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return Outcome(figures, figures["breaks"] == figures["waits"] == 0)


CHECKS: dict[str, Callable[[Bench], Outcome]] = {
    "sampling is the pipeline's": parity,
    "iterations": iterations,
    "adapters are sampled with": kept_change,
    "memory of a forward": activations,
    "speed of a forward": speed,
    "graphs and waits": graphs,
    "HPS-v2": hpsv2,
    "HPS-v3": hpsv3,
    "FSDP2 on one device": sharded,
    "FSDP2 on two GPUs": two_processes,
    "checkpoint and resume": resume,
    "SD3.5 within 24 GB": small_card,
}
