"""HPS-v2 (Wu et al. 2023), versions 2.0 and 2.1: a CLIP ViT-H/14 trained on human preferences."""

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from harness.models.pipelines.locate import TWIN_PREFIX
from harness.models.pipelines.truncation import TextReader
from harness.rewards.files.checkpoints import load_weights
from harness.rewards.native import open_clip
from harness.rewards.native.clip import ClipCosine

SIDE = 224


def preprocess(levels: Tensor) -> Tensor:
    """Preprocess pictures as the hpsv2 package does: the whole picture, in the middle of a black square.

    The longer side is resized to 224 (bicubic, antialiased), and the rest of the square is zero before normalisation;
    nothing is cropped. Resizing is done in floats, which may leave [0, 1] slightly, as in the package.

    ``[b, 3, H, W]`` uint8 -> ``[b, 3, 224, 224]`` float32, normalised by CLIP's mean and std.
    """
    height, width = levels.shape[-2:]
    scale = SIDE / max(height, width)
    size = round(height * scale), round(width * scale)
    pixels = levels.float() / 255
    if scale != 1:
        pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)
    down, right = SIDE - size[0], SIDE - size[1]
    pixels = F.pad(pixels, (right // 2, right - right // 2, down // 2, down - down // 2))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (pixels - mean) / std


class HpsV2(ClipCosine):
    """Human preference score v2: the cosine of picture and prompt, about 0.2 to 0.4."""

    version = "hpsv2-1"

    @property
    def architecture(self) -> CLIPConfig:
        """Configuration of ViT-H/14, or of its twin."""
        return open_clip.twin_of_clip() if self._place.startswith(TWIN_PREFIX) else open_clip.vit_h_14()

    def text_readers(self) -> Sequence[TextReader]:
        """CLIP's text tower."""
        return [TextReader(f"reward {self.name}", open_clip.CONTEXT_LENGTH, open_clip.encode)]

    @cached_property
    def _network(self) -> CLIPModel:
        weights = open_clip.to_transformers(load_weights(self.name, self._checkpoint))
        return self._build(self.architecture, weights, self._checkpoint)

    def pixels(self, levels: Tensor) -> Tensor:
        return preprocess(levels)

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return {"input_ids": open_clip.tokens(texts)}
