"""Text recognisers in ONNX files, run by onnxruntime in float32 or by OpenVINO in bfloat16."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from harness.foundation.processor import has_bf16
from harness.rewards.base import RewardError

Precision = Literal["fp32", "bf16"]
Read = Callable[[np.ndarray], np.ndarray]
"""Function from pixels ``[B, 3, H, W]`` float32 to a distribution per time step, ``[B, T, V]``."""


def require_bf16(name: str) -> None:
    """Raise RewardError, which says what to do, if this machine cannot compute in bfloat16.

    OpenVINO would silently compute in float32 there, and the run would be labelled wrongly.
    """
    if not has_bf16():
        raise RewardError(f"reward {name!r}: this processor has no bfloat16; set rewards.{name}.precision=fp32")
    if find_spec("openvino") is None:
        raise RewardError(
            f"reward {name!r}: bfloat16 needs OpenVINO: pip install 'adagrpo[fast]', or set "
            f"rewards.{name}.precision=fp32"
        )


def open_recogniser(path: Path, num_threads: int, precision: Precision) -> tuple[Read, list[str]]:
    """Open a recogniser; returns it and the characters of its output's columns from column 1 on (0 is the blank).

    Args:
        path: ONNX file with PaddleOCR's metadata.
        num_threads: CPU threads of one forward pass, >= 1.
        precision: precision of the network's arithmetic; pixels and probabilities are float32.
    """
    return (_in_bf16 if precision == "bf16" else _in_fp32)(path, num_threads)


def _in_fp32(path: Path, num_threads: int) -> tuple[Read, list[str]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    # Runs share the machine, and a thread that spins while it waits takes a core from the others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    [pixels] = session.get_inputs()
    characters = session.get_modelmeta().custom_metadata_map["character"].split("\n")
    return lambda batch: session.run(None, {pixels.name: batch})[0], characters


def _in_bf16(path: Path, num_threads: int) -> tuple[Read, list[str]]:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    settings = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": num_threads, "NUM_STREAMS": 1}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    characters = model.get_rt_info(["framework", "character"]).astype(str).split("\n")
    # Copied, because the output is memory of the request that the next batch overwrites.
    return lambda batch: request.infer([batch])[0].copy(), characters
