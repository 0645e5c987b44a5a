"""Worker for the hpsv3 package, which scores by its ``HPSv3RewardInferencer.reward``."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL.Image import Image
from torch import Tensor

from harness.rewards.remote.workers.shims import Scorer


def load(settings: dict[str, Any]) -> Scorer:
    """Load the package with the checkpoint ``settings["path"]`` and the Qwen2-VL weights in ``settings["base"]``.

    Its own configuration is used except for the path of the base, the precision, and FlashAttention, which is off.
    """
    import hpsv3
    from hpsv3 import HPSv3RewardInferencer

    low = settings["precision"] == "bf16"
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
        inferencer = HPSv3RewardInferencer(str(path), settings["path"], device=settings["device"])

    def score(pictures: Sequence[Image], prompts: Sequence[str]) -> dict[str, Tensor]:
        rated = inferencer.reward(list(pictures), list(prompts))
        return {"hpsv3": rated[:, 0], "hpsv3/log_sigma": rated[:, 1]}

    return score
