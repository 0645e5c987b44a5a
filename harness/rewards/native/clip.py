"""Agreement of picture and prompt by a CLIP model: CLIP score and PickScore."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from harness.foundation.names import REWARDS
from harness.models.pipelines.truncation import TextReader, all_tokens
from harness.rewards.files.checkpoints import fill, load_weights, locate, read, weights_file
from harness.rewards.native.network import NetworkReward

_PREPROCESSOR = "preprocessor_config.json"
_BASE_FILES = (_PREPROCESSOR, "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")


class ClipCosine(NetworkReward):
    """Cosine of a CLIP model's embeddings of picture and prompt, times a factor."""

    resolutions: ClassVar = {"fp32": 2e-6, "bf16": 2e-3}

    @cached_property
    @abstractmethod
    def _network(self) -> CLIPModel: ...

    @abstractmethod
    def pixels(self, levels: Tensor) -> Tensor:
        """Preprocess pictures ``[b, 3, H, W]`` uint8 to the model's input ``[b, 3, S, S]`` float32, normalised."""

    @abstractmethod
    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Tokenise n texts to ``input_ids`` and, if padding is masked, ``attention_mask``, each ``[n, L]``."""

    def _factor(self, model: CLIPModel) -> Tensor | float:
        return 1.0

    def _build(self, config: CLIPConfig, weights: dict[str, Tensor], path: Path) -> CLIPModel:
        """Build a model with these weights. Raises RewardError if one is missing, unknown, or of another shape."""
        # Older versions of transformers saved these two buffers with the weights.
        weights = {name: value for name, value in weights.items() if not name.endswith(".position_ids")}
        with torch.device("meta"):
            fill(self.name, path, CLIPModel(config), weights)
        model = CLIPModel.from_pretrained(None, config=config, state_dict=weights, dtype=self._dtype)
        return model.eval().requires_grad_(False).to(self._home)

    @torch.no_grad()
    def _measure_batch(self, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        model = self._network
        pixels = self.pixels(levels).to(model.device, model.dtype)
        pictures = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output.float(), dim=-1)
        # Each text is embedded once, because the pictures of a group share a prompt.
        distinct = list(dict.fromkeys(prompts))
        inputs = {key: value.to(model.device) for key, value in self.tokens(distinct).items()}
        texts = F.normalize(model.get_text_features(**inputs).pooler_output.float(), dim=-1)
        rows = torch.tensor([distinct.index(prompt) for prompt in prompts], device=model.device)
        return {self.name: self._factor(model) * (pictures * texts[rows]).sum(-1)}


class ClipScore(ClipCosine):
    """CLIP score: the cosine itself, by OpenAI's ViT-L/14 or another given model in transformers' format."""

    version = "cosine-1"

    def text_readers(self) -> Sequence[TextReader]:
        """CLIP's text tower."""
        return [TextReader(f"reward {self.name}", self._length, partial(all_tokens, self._tokenizer))]

    @cached_property
    def _folder(self) -> Path:
        return locate(self.name, "path", self._place, ("config.json",))

    @cached_property
    def _base(self) -> Path:
        """Folder of tokenizer and preprocessing; a published checkpoint may need another one for them, ``path`` not."""
        base = self._settings.base or (None if self._settings.path else REWARDS[self.name].base)
        key, place = ("path", self._place) if base is None else ("base", base)
        return locate(self.name, key, place, (_PREPROCESSOR,), weights=key == "path")

    @cached_property
    def _checkpoint(self) -> Path:
        return weights_file(self.name, "path", self._folder, self._place)

    def _files(self) -> Iterable[Path]:
        own = [self._checkpoint, self._folder / "config.json"]
        return [*own, *(path for name in _BASE_FILES if (path := self._base / name).is_file())]

    @cached_property
    def _config(self) -> CLIPConfig:
        return read(self.name, "path", self._folder, CLIPConfig.from_pretrained)

    @property
    def _length(self) -> int:
        return self._config.text_config.max_position_embeddings

    @cached_property
    def _tokenizer(self) -> Any:
        return read(self.name, "base", self._base, AutoTokenizer.from_pretrained)

    @cached_property
    def _processor(self) -> CLIPImageProcessorPil:
        return read(self.name, "base", self._base, CLIPImageProcessorPil.from_pretrained)

    @cached_property
    def _network(self) -> CLIPModel:
        return self._build(self._config, load_weights(self.name, self._checkpoint), self._checkpoint)

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        options = {"padding": True, "truncation": True, "max_length": self._length, "return_tensors": "pt"}
        found = self._tokenizer(list(texts), **options)
        return {"input_ids": found.input_ids, "attention_mask": found.attention_mask}

    def pixels(self, levels: Tensor) -> Tensor:
        pictures = list(levels.permute(0, 2, 3, 1).numpy())
        return self._processor(pictures, return_tensors="pt", input_data_format="channels_last").pixel_values


class PickScore(ClipScore):
    """PickScore: exp(logit scale) x cosine, as in its release for a single picture; about 18 to 24."""

    version = "scaled-cosine-1"
    resolutions: ClassVar = {precision: 100 * value for precision, value in ClipCosine.resolutions.items()}

    def _factor(self, model: Any) -> Tensor:
        return model.logit_scale.float().exp()
