"""Time that a model's arithmetic and its exchange of weights take, computed from its layers without its weights."""

import json
import re
from pathlib import Path

from torch import nn

from harness.config import ConfigError, ModelConfig, RunConfig
from harness.experiments.doctor.sizes import Architecture, bytes_of
from harness.foundation.files import read_text
from harness.training.accounting import expected_cost

PEAK_TERAFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "RTX 4090": 165, "RTX 3090": 71, "A10": 125}
"""Dense bf16 TFLOP/s as the manufacturer states them, by a part of the GPU's name; an unknown GPU counts as H100."""
UTILISATION = 0.4
"""Share of the peak that a transformer's forward pass reaches: typical of attention in bf16 without compilation."""
LINKS = {"NVLink": 375e9, "PCIe": 22e9}
"""Bytes per second that a process gathers from others on its machine: typical of NCCL on 8 GPUs."""

_ONCE = re.compile(r"(^|\.)(norm|time|t_embedder|img_mod|txt_mod)|modulation")  # of time or guidance: once per sample
_OF_TEXT = re.compile(r"context|\.add_|to_add_out|txt_|cap_")
_OF_BOTH = re.compile(r"^(single_|layers\.)")


def operations(architecture: Architecture, model: ModelConfig) -> int:
    """Floating-point operations of the network for one sample.

    2 T per weight of a linear layer that acts on T tokens, and 4 T^2 d in each attention of width d.
    """
    both, text = architecture.tokens(model), architecture.text_tokens(model)
    total = 0
    for name, module in architecture.transformer.named_modules():
        if isinstance(module, nn.Linear):
            tokens = both if _OF_BOTH.search(name) else text if _OF_TEXT.search(name) else both - text
            total += 2 * (1 if _ONCE.search(name) else tokens) * module.in_features * module.out_features
        elif name.endswith((".attn", ".attn2", ".attention")):
            is_apart = name.endswith(".attn2") or "_refiner" in name  # within the picture or the text alone
            tokens = both if not is_apart else text if _OF_TEXT.search(name) else both - text
            total += 4 * tokens**2 * architecture.width
    return total


def seconds_per_forward(
    architecture: Architecture, config: RunConfig, gpu: str, flops: float | None = None
) -> tuple[float, str]:
    """Time that one sample takes in the network: its operations over the GPU's measured or estimated throughput.

    Returns:
        Seconds, and the key of ``PEAK_TERAFLOPS`` that the estimate is for.
    """
    known = max((key for key in PEAK_TERAFLOPS if key in gpu), key=len, default="H100")
    achieved = flops or PEAK_TERAFLOPS[known] * 1e12 * UTILISATION
    each = operations(architecture, config.model) / achieved
    return architecture.forwards_per_velocity(config.model) * each, known


def read_measured(file: Path) -> dict[str, float]:
    """Read the measurements of a GPU: ``flops`` per second, and ``activations`` relative to the doctor's estimate.

    Raises:
        ConfigError: the file is not from ``adagrpo gpu-check``, has no speed, or is of tiny widths, unlike real models.
    """
    text = read_text(file)
    try:
        content = json.loads(text)
        measured: dict[str, float] = content["measured"]
        is_tiny, flops = content["tiny"], measured.get("flops")
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ConfigError(f"--measured {file}: was not written by adagrpo gpu-check") from None
    if is_tiny:
        raise ConfigError(
            f"--measured {file}: is of tiny widths, which say nothing of a real model; measure without --tiny"
        )
    if not flops:
        raise ConfigError(f"--measured {file}: has no speed of a forward; run that check")
    return measured


def gathered_bytes(architecture: Architecture, config: RunConfig) -> float:
    """Bytes of weights that a process gathers from others per iteration: all weights in each forward and backward."""
    count, model = config.runtime.processes, config.model
    if config.runtime.engine != "fsdp2":
        return 0.0
    cost = expected_cost(config)
    forwards = -(-cost.sample_forwards // (count * model.max_batch))
    trained = -(-cost.train_forwards // (count * (model.execution.max_train_batch or model.max_batch)))
    element = 4 if config.optimizer.tuning == "full" else bytes_of(model)
    return (forwards + 2 * trained) * architecture.parameters * element * (count - 1) / count
