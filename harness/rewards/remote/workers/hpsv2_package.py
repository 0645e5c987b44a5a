"""Worker for the hpsv2 package, which scores by its ``img_score.score``."""

import functools
import shutil
from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from harness.rewards.remote.workers.shims import Scorer, package_folder, stub


def load(settings: dict[str, Any]) -> Scorer:
    """Load the package with ``settings["path"]``, a checkpoint in its own format.

    The package is used unchanged, with two exceptions: its model is built without the LAION weights, which it would
    download and then overwrite, and the checkpoint is read once instead of at every call. It chooses its precision
    itself: fp32 on a CPU, autocast on a GPU.
    """
    stub("turtle", forward=None)  # imported by accident, and needs tkinter
    vocabulary = package_folder("hpsv2") / "src/open_clip/bpe_simple_vocab_16e6.txt.gz"
    if not vocabulary.exists():  # the wheel lacks it
        shutil.copy(package_folder("open_clip") / vocabulary.name, vocabulary)
    from hpsv2 import img_score

    img_score.device = settings["device"]
    model, _, preprocess = img_score.create_model_and_transforms(
        "ViT-H-14", None, precision="amp", device=img_score.device, light_augmentation=True, output_dict=True
    )
    img_score.model_dict.update(model=model, preprocess_val=preprocess)
    read = functools.cache(torch.load)
    img_score.torch.load = read
    # Loaded here so that a checkpoint that does not fit is an error now; the package loads it again.
    model.load_state_dict(read(settings["path"], map_location=img_score.device)["state_dict"])

    def score(pictures: Sequence[Image], prompts: Sequence[str]) -> dict[str, Tensor]:
        scores = torch.zeros(len(prompts))
        for prompt in dict.fromkeys(prompts):
            rows = [row for row, other in enumerate(prompts) if other == prompt]
            found = img_score.score([pictures[row] for row in rows], prompt, cp=settings["path"])
            scores[rows] = torch.tensor([float(value) for value in found])
        return {"hpsv2": scores}

    return score
