"""Checks of one network: its numbers against the pipeline's and the CPU's, its memory and its speed."""

import copy
import re
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from harness.experiments.doctor.sizes import find_architecture, sampling_bytes
from harness.experiments.doctor.speed import PEAK_TERAFLOPS, operations
from harness.experiments.gpu_check.bench import GIB, Bench, Outcome, distance, with_adapters_that_count
from harness.models.pipelines.blocks import blocks_of
from harness.models.pipelines.loading import load_component
from harness.rollout import ode_trajectory


def environment(bench: Bench) -> Outcome:
    """Versions and settings that numbers and speed depend on."""
    cuda = torch.backends.cuda
    found: dict[str, Any] = {"torch": torch.__version__, "matmul in TF32": cuda.matmul.allow_tf32}
    if bench.on_gpu:
        found |= {"GPU": torch.cuda.get_device_name(), "GPUs": torch.cuda.device_count(), "CUDA": torch.version.cuda}
        found |= {"bf16": torch.cuda.is_bf16_supported(), "flash attention": cuda.flash_sdp_enabled()}
        found |= {"NCCL": ".".join(map(str, torch.cuda.nccl.version()))}
    return Outcome(found, not bench.on_gpu or bool(found["bf16"] and found["flash attention"]))


def loading(bench: Bench) -> Outcome:
    """Main memory that float32 weights take on their way to the GPU."""
    folder = bench.pipeline("flux")
    before = _private()
    network = load_component(folder, "transformer", bench.device, torch.float32)
    grown = (_private() - before) / (4 * sum(p.numel() for p in network.parameters()))
    return Outcome({"share of the weights in main memory": round(grown, 2)}, grown < 0.3 if bench.on_gpu else None)


def text(bench: Bench) -> Outcome:
    """A prompt's conditioning, alone and among others."""
    policy = bench.policy()
    prompts = [f"a fox, {i} times" for i in range(8)]
    together, alone = policy._encode_text(prompts), policy._encode_text(prompts[:1])
    apart = distance(together.states[:1].float(), alone.states.float())
    return Outcome({"dtype": str(alone.states.dtype), "distance": apart}, apart < 1e-2)


def parity(bench: Bench) -> Outcome:
    """Sampling in float32 is the pipeline's own; bf16's distance from it is the yardstick of what follows."""
    policy = bench.policy(precision="fp32")
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
        rounded = low.velocity(x, sigma, low.encode([f"picture number {i} of a red fox" for i in range(2)]))
    bench.noted["bf16"] = noise = distance(rounded, exact)
    apart = float((ours - theirs).abs().max())
    return Outcome({"float32": apart, "bf16": noise}, apart < 1e-4 and 1e-4 < noise < 5e-2)


def batches(bench: Bench) -> Outcome:
    """A sample's velocity in a batch and alone: other kernels, the same up to rounding."""
    policy = bench.policy()
    x, sigma, embedding = bench.inputs(policy)
    with torch.no_grad():
        together = policy.velocity(x, sigma, embedding)
        alone = torch.cat([policy.velocity(x[i : i + 1], sigma, embedding[i : i + 1]) for i in range(len(x))])
    apart = distance(alone, together)
    return Outcome({"distance": apart}, apart < max(bench.noted.get("bf16", 0), 1e-2))


def gradient_mode(bench: Bench) -> Outcome:
    """With gradient and checkpointing as without: else recomputed ratios are not 1."""
    policy = bench.policy(checkpointing=True)
    inputs = bench.inputs(policy)
    with torch.no_grad():
        without = policy.velocity(*inputs)
    apart = float((policy.velocity(*inputs).detach() - without).abs().max())
    return Outcome({"difference": apart}, apart == 0)


def kept_change(bench: Bench) -> Outcome:
    """All of a small change of the adapters is in what is sampled."""
    with with_adapters_that_count(bench.policy()) as policy:
        inputs = bench.inputs(policy)
        trained = policy.velocity(*inputs).detach()
        with policy.sampling():
            sampled = policy.velocity(*inputs)
        with policy.reference():
            base = policy.velocity(*inputs)
    kept = float(((trained - base) * (sampled - base)).sum() / (trained - base).square().sum())
    return Outcome({"share": kept}, abs(kept - 1) < 0.01)


def dtypes(bench: Bench) -> Outcome:
    """Norms under autocast are float32 on a GPU; attention runs in a flash kernel."""
    policy, seen = bench.policy(), dict[str, Any]()
    block: Any = blocks_of(policy.transformer)[0]
    block.attn.norm_q.register_forward_hook(lambda module, given, out: seen.update(norm=str(out.dtype)))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.on_gpu else [])]
    with profile(activities=activities) as found, policy.sampling():
        policy.velocity(*bench.inputs(policy, 2))
    attention = sorted({e.key[:60] for e in found.key_averages() if re.search("flash|fmha|cudnn.*atten", e.key)})
    right = "torch.float32" if bench.on_gpu else "torch.bfloat16"
    return Outcome({**seen, "attention": attention[:3]}, seen["norm"] == right and bool(attention))


def autocast_copies(bench: Bench) -> Outcome:
    """No copy of the float32 weights outlives its layer, and numbers are as with one."""
    policy = bench.policy(tuning="full", checkpointing=True)
    inputs, ours = bench.inputs(policy, 1), torch.autocast
    with torch.no_grad():
        without, memory = bench.peak(lambda: policy.velocity(*inputs))
        torch.autocast = lambda kind, dtype, cache_enabled: ours(kind, dtype)  # type: ignore[assignment,misc]
        try:
            with_copies, more = bench.peak(lambda: policy.velocity(*inputs))
        finally:
            torch.autocast = ours  # type: ignore[misc]
    copies = 2 * sum(p.numel() for p in policy.transformer.parameters()) / GIB
    is_equal = torch.equal(without, with_copies)
    return Outcome(
        {"GiB": memory, "GiB with copies": more, "weights in bf16": copies, "equal": is_equal},
        is_equal and (not bench.on_gpu or more - memory > 0.5 * copies),
    )


def activations(bench: Bench) -> Outcome:
    """Memory of a forward against the doctor's estimate, within 15 %."""
    policy = bench.policy(tuning="full")
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
    """Seconds of a sample's forward, and arithmetic per second: torch's count against the doctor's."""
    policy = bench.policy(tuning="full")
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


def adapters_cost(bench: Bench) -> Outcome:
    """What adapters beside the weights cost a forward, and what peft's casts of their inputs would."""
    with with_adapters_that_count(bench.policy()) as policy:
        inputs = bench.inputs(policy)
        layers = [m for m in policy.transformer.modules() if isinstance(m, LoraLayer)]

        def forward() -> torch.Tensor:
            with torch.no_grad():
                return policy.velocity(*inputs)

        ours, seconds = forward(), bench.seconds(forward)
        for layer in layers:
            layer.cast_input_dtype_enabled = True
        theirs, with_casts = forward(), bench.seconds(forward)
        with policy.reference():
            base = bench.seconds(forward)
    is_equal = torch.equal(ours, theirs)
    costs = {"adapters": seconds / base, "with casts": with_casts / base, "layers": len(layers), "equal": is_equal}
    return Outcome(costs, is_equal)


def decoding(bench: Bench) -> Outcome:
    """Pictures: seconds and memory in float32, levels that bf16 moves."""
    policy = bench.policy()
    x, _, _ = bench.inputs(policy)
    images, memory = bench.peak(lambda: policy.decode(x))
    began = time.perf_counter()
    policy.decode(x)
    each = (time.perf_counter() - began) / len(x)
    policy._pipeline.vae = copy.deepcopy(policy._pipeline.vae)
    with torch.autocast(bench.device.type, torch.bfloat16):
        low = policy.decode(x)
    levels = float((images - low).abs().max() * 255)
    return Outcome({"seconds a picture": each, "GiB": memory, "levels that bf16 moves": levels}, memory < 1)


def guidance(bench: Bench) -> Outcome:
    """Classifier-free guidance: both halves in one forward are two forwards, up to rounding."""
    policy = bench.policy("sd3")
    x, sigma, embedding = bench.inputs(policy, 2)
    with torch.no_grad():
        ours = policy.velocity(x, sigma, embedding)
        policy.config = policy.config.model_copy(update={"guidance": 1.0})
        empty, full = (policy.velocity(x, sigma, e) for e in (policy.encode([""]).repeat(2), embedding))
    apart = distance(ours, empty + 4.5 * (full - empty))
    return Outcome({"distance": apart}, apart < 3e-2)


def graphs(bench: Bench) -> Outcome:
    """What torch.compile would break a block into, and whether a forward waits for the GPU."""
    policy = bench.policy()
    inputs, calls = bench.inputs(policy, 2), dict[str, Any]()
    block = blocks_of(policy.transformer)[0]
    hook = block.register_forward_pre_hook(lambda m, a, given: calls.update(given), with_kwargs=True)
    with torch.no_grad():
        policy.velocity(*inputs)
    hook.remove()
    with torch.no_grad(), torch.autocast(bench.device.type, torch.bfloat16, cache_enabled=False):
        explained = torch._dynamo.explain(block)(**calls)
    torch._dynamo.reset()
    figures = {"graphs": explained.graph_count, "breaks": explained.graph_break_count}
    if bench.on_gpu:
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.no_grad():
                policy.velocity(*inputs)
            figures["waits"] = 0
        except RuntimeError:
            figures["waits"] = 1
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return Outcome(figures, True)


def _private() -> int:
    """Bytes of this process that no file is behind."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(found[1]) * 1024 if found else 0
