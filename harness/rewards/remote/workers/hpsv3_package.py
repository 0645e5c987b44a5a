"""The hpsv3 package, scoring by its own ``HPSv3RewardInferencer.reward``."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from harness.rewards.remote.workers.shims import Scorer, allow_torchvision, device_of, to_pictures


def load(settings: dict[str, Any]) -> Scorer:
    """The package with ``settings["path"]``, a checkpoint, and ``settings["base"]``, a Qwen2-VL folder with weights.

    Its own configuration is used but for the place of the base, the precision, and FlashAttention, which is left out.
    """
    allow_torchvision()
    import hpsv3
    from hpsv3 import HPSv3RewardInferencer

    device, low = device_of(settings), settings["precision"] == "bf16"
    config = yaml.safe_load((Path(hpsv3.__file__).parent / "config" / "HPSv3_7B.yaml").read_text(encoding="utf-8"))
    config |= {
        "model_name_or_path": settings["base"],
        "disable_flash_attn2": True,
        "bf16": low,
        "torch_dtype": "bfloat16" if low else "float32",
        "report_to": "none",
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump({**config, "output_dir": folder}), encoding="utf-8")
        inferencer = HPSv3RewardInferencer(str(path), settings["path"], device=device)

    def score(levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        rated = inferencer.reward(to_pictures(levels), list(prompts))
        return {"hpsv3": rated[:, 0], "hpsv3/log_sigma": rated[:, 1]}

    return score
