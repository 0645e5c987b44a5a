"""How well picture and prompt agree by a CLIP model: CLIP score and PickScore."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from harness.config import RewardConfig
from harness.foundation.names import REWARDS
from harness.models.pipelines.truncation import TextReader, all_tokens
from harness.rewards.files.checkpoints import (
    check_weights,
    load_weights,
    locate,
    readable,
    sha256_of,
    torch_dtype,
    weights_file,
)
from harness.rewards.native.network import NetworkReward

_PREPROCESSOR = "preprocessor_config.json"
_BASE_FILES = (_PREPROCESSOR, "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")


@dataclass(frozen=True)
class Towers:
    """A CLIP model, and what turns pictures and prompts into its inputs."""

    model: CLIPModel
    pixels: Callable[[Tensor], Tensor]
    """``[b, 3, H, W]`` uint8 -> ``[b, 3, S, S]`` float32, normalised."""
    tokens: Callable[[Sequence[str]], dict[str, Tensor]]
    """n texts -> ``input_ids`` and, where texts are padded, ``attention_mask``, each ``[n, L]``."""


def build_clip(
    reward: str, path: Path, weights: dict[str, Tensor], config: CLIPConfig, dtype: torch.dtype, device: torch.device
) -> CLIPModel:
    """A CLIPModel of these weights and no other.

    Raises:
        RewardError: a tensor is missing, unknown, or of another shape.
    """
    with torch.device("meta"):
        wanted = {name: list(value.shape) for name, value in CLIPModel(config).state_dict().items()}
    # Older versions of transformers saved these two counters with the weights.
    weights = {name: value for name, value in weights.items() if not name.endswith(".position_ids")}
    check_weights(reward, path, weights, wanted)
    model = CLIPModel.from_pretrained(None, config=config, state_dict=weights, dtype=dtype)
    return model.eval().requires_grad_(False).to(device)


COSINE_RESOLUTION = {"fp32": 2e-6, "bf16": 2e-3}
"""Of a cosine, by the precision of the network."""


class ClipCosine(NetworkReward):
    """factor x cosine of a CLIP model's embeddings of picture and prompt."""

    def __init__(self, name: str, settings: RewardConfig) -> None:
        super().__init__(name, settings)
        self._precision = settings.precision or "fp32"
        self.resolution = COSINE_RESOLUTION[self._precision]

    @cached_property
    @abstractmethod
    def _towers(self) -> Towers: ...

    @property
    def _network(self) -> CLIPModel:
        return self._towers.model

    def _factor(self, model: CLIPModel) -> Tensor | float:
        return 1.0

    @torch.no_grad()
    def _measure_batch(self, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        towers = self._towers
        device, dtype = towers.model.device, towers.model.dtype
        pixels = towers.pixels(levels).to(device, dtype)
        pictures = F.normalize(towers.model.get_image_features(pixel_values=pixels).pooler_output.float(), dim=-1)
        # The images of a group share a prompt: each text is embedded once.
        distinct = list(dict.fromkeys(prompts))
        inputs = {key: value.to(device) for key, value in towers.tokens(distinct).items()}
        texts = F.normalize(towers.model.get_text_features(**inputs).pooler_output.float(), dim=-1)
        rows = torch.tensor([distinct.index(prompt) for prompt in prompts], device=device)
        return {self.name: self._factor(towers.model) * (pictures * texts[rows]).sum(-1)}


class _ModelFolder(ClipCosine):
    """A CLIP model in transformers' own format."""

    _version: str

    @property
    def _place(self) -> str:
        return self._settings.path or REWARDS[self.name].path

    @cached_property
    def _folder(self) -> Path:
        return locate(self.name, "path", self._place, ("config.json",))

    @cached_property
    def _base(self) -> Path:
        """Where tokenizer and preprocessing are: a folder of one's own is complete, a published one may not be."""
        base = self._settings.base or (None if self._settings.path else REWARDS[self.name].base)
        key, place = ("path", self._place) if base is None else ("base", base)
        return locate(self.name, key, place, (_PREPROCESSOR,), weights=key == "path")

    @cached_property
    def _weights_file(self) -> Path:
        return weights_file(self.name, "path", self._folder, self._place)

    @cached_property
    def _architecture(self) -> CLIPConfig:
        with readable(self.name, "path", self._folder):
            return CLIPConfig.from_pretrained(self._folder)

    @cached_property
    def _tokenizer(self) -> Any:
        with readable(self.name, "base", self._base):
            return AutoTokenizer.from_pretrained(self._base)

    def text_readers(self) -> Sequence[TextReader]:
        """CLIP's text tower."""
        length = self._architecture.text_config.max_position_embeddings
        return [TextReader(f"reward {self.name}", length, partial(all_tokens, self._tokenizer))]

    @cached_property
    def _towers(self) -> Towers:
        config, tokenizer = self._architecture, self._tokenizer
        with readable(self.name, "base", self._base):
            processor = CLIPImageProcessorPil.from_pretrained(self._base)
        weights = load_weights(self.name, self._weights_file)
        model = build_clip(self.name, self._weights_file, weights, config, torch_dtype(self._precision), self._home)
        length = config.text_config.max_position_embeddings

        def tokens(texts: Sequence[str]) -> dict[str, Tensor]:
            found = tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
            return {"input_ids": found.input_ids, "attention_mask": found.attention_mask}

        def pixels(levels: Tensor) -> Tensor:
            pictures = list(levels.permute(0, 2, 3, 1).numpy())
            return processor(pictures, return_tensors="pt", input_data_format="channels_last").pixel_values

        return Towers(model, pixels, tokens)

    def fingerprint(self) -> str:
        own = [self._weights_file, self._folder / "config.json"]
        files = own + [path for name in _BASE_FILES if (path := self._base / name).is_file()]
        return f"{sha256_of(files)}:{self._precision}:{self._version}"


class ClipScore(_ModelFolder):
    """CLIP score: the cosine itself, of OpenAI's ViT-L/14 unless another model is given."""

    _version = "cosine-1"
    low, high = -1.0, 1.0

    def __init__(self, settings: RewardConfig) -> None:
        super().__init__("clip", settings)


class PickScore(_ModelFolder):
    """PickScore: exp(logit scale) x cosine, as its release scores a single picture; about 18 to 24."""

    _version = "scaled-cosine-1"
    low, high = -100.0, 100.0

    def __init__(self, settings: RewardConfig) -> None:
        super().__init__("pickscore", settings)
        self.resolution *= self.high  # the release's logit scale

    def _factor(self, model: Any) -> Tensor:
        return model.logit_scale.float().exp()
