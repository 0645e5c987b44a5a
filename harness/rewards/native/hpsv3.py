"""HPS-v3 (Ma et al. 2025): Qwen2-VL-7B with a small head, which rates a picture for its prompt."""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from harness.foundation.names import REWARDS
from harness.rewards.files.assets import hpsv3_question
from harness.rewards.files.checkpoints import fill, load_weights, locate, read
from harness.rewards.native.network import NetworkReward

PIXELS = 256 * 28 * 28
"""Approximate area to which pictures are resized, in whole cells of 28 x 28: 200,704 pixels, 256 tokens."""
REWARD_TOKEN = "<|Reward|>"
_SPECIAL = re.compile(r"<\|[^|<>\s]+\|>")
_BASE_FILES = ("config.json", "tokenizer_config.json")
_TOKENIZER_FILES = (*_BASE_FILES, "tokenizer.json", "vocab.json", "merges.txt", "chat_template.jinja")


def refuse_special_tokens(prompt: str) -> None:
    """Raise ValueError if a prompt contains one of the model's special tokens."""
    if match := _SPECIAL.search(prompt):
        raise ValueError(f"prompt {prompt!r}: the reward 'hpsv3' cannot score prompts with tokens as {match[0]}")


class RewardModel(nn.Module):
    """Qwen2-VL without its language head, with a rating head: hidden -> 1024 -> 16 -> (mu, log sigma)."""

    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__()
        self.backbone = Qwen2VLModel(config)
        # Dropout has no effect here, but the layer numbers of the published checkpoint include it.
        first = nn.Linear(config.text_config.hidden_size, 1024)
        self.rm_head = nn.Sequential(
            first, nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
        )

    def positions(self, ids: Tensor, grid: Tensor) -> Tensor:
        """Position ids ``[3, b, L]``: the token's index on all three axes, also for picture tokens.

        Qwen2-VL itself gives picture tokens two-dimensional positions; the package that trained HPS-v3 never does.
        """
        return torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)

    def forward(self, ids: Tensor, mask: Tensor, patches: Tensor, grid: Tensor, reward_id: int) -> Tensor:
        """Rate b conversations, each with one reward token.

        Args:
            ids: token ids ``[b, L]``, padded on the right.
            mask: ``[b, L]``, 1 for tokens and 0 for padding.
            patches: patches of all pictures, from Qwen2-VL's image processor.
            grid: ``[b, 3]``, number of patches of each picture in time, height and width.
            reward_id: id of the reward token, whose last hidden state is rated.

        Returns:
            ``[b, 2]`` float32: mu, which is the score, and the logarithm of sigma.
        """
        hidden = self.backbone(
            input_ids=ids,
            attention_mask=mask,
            position_ids=self.positions(ids, grid),
            pixel_values=patches,
            image_grid_thw=grid,
            use_cache=False,
        ).last_hidden_state
        return self.rm_head(hidden[ids == reward_id].float())


def to_transformers_5(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights from transformers 4.45, HPS-v3's published format, for ``RewardModel``; drop the language head."""
    kept = {name: value for name, value in weights.items() if name != "lm_head.weight"}
    moved = {"model.": "backbone.language_model.", "visual.": "backbone.visual."}
    return {re.sub(r"^(model|visual)\.", lambda start: moved[start[0]], name): value for name, value in kept.items()}


class HpsV3(NetworkReward):
    """Human preference score v3: the mean mu of the predicted score; about 0 to 15 for pictures of real models."""

    resolutions: ClassVar = {"bf16": 2e-2, "fp32": 2e-5}
    version = "hpsv3-1"
    model_class: type[RewardModel] = RewardModel

    def check_prompt(self, prompt: str) -> None:
        refuse_special_tokens(prompt)

    def _files(self) -> Iterable[Path]:
        return [self._checkpoint, *(path for name in _TOKENIZER_FILES if (path := self._base / name).is_file())]

    @cached_property
    def _base(self) -> Path:
        place = self._settings.base or str(REWARDS[self.name].base)
        return locate(self.name, "base", place, _BASE_FILES, weights=False)

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = read(self.name, "base", self._base, partial(AutoTokenizer.from_pretrained, padding_side="right"))
        tokenizer.add_special_tokens({"additional_special_tokens": [REWARD_TOKEN]})
        return tokenizer

    @cached_property
    def _network(self) -> RewardModel:
        config = read(self.name, "base", self._base, Qwen2VLConfig.from_pretrained)
        # The checkpoint's embedding table has one row per token; the base's own is longer.
        config.text_config.vocab_size = len(self._tokenizer)
        with torch.device("meta"):
            model = self.model_class(config)
        weights = to_transformers_5(load_weights(self.name, self._checkpoint))
        fill(self.name, self._checkpoint, model, weights)
        # The backbone has the configured precision, the head float32. The backbone is built anew, because no checkpoint
        # has its buffers, which are still on the meta device.
        weights = model.backbone.state_dict()
        model.backbone = Qwen2VLModel.from_pretrained(None, config=config, state_dict=weights, dtype=self._dtype)
        model.rm_head.float()
        return model.eval().requires_grad_(False).to(self._home)

    def conversation(self, prompt: str) -> str:
        """Text for the model about a prompt, in its chat format, with one placeholder for the picture."""
        self.check_prompt(prompt)
        content = [{"type": "image"}, {"type": "text", "text": hpsv3_question().format(text_prompt=prompt)}]
        messages = [{"role": "user", "content": content}]
        return self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    @torch.no_grad()
    def _measure_batch(self, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        model, tokenizer = self._network, self._tokenizer
        device = next(model.parameters()).device
        processor = Qwen2VLImageProcessorPil(size={"shortest_edge": PIXELS, "longest_edge": PIXELS})
        processed = processor(
            list(levels.permute(0, 2, 3, 1).numpy()), return_tensors="pt", input_data_format="channels_last"
        )
        num_tokens = (processed.image_grid_thw.prod(-1) // 4).tolist()
        place = "<|image_pad|>"
        texts = [self.conversation(p).replace(place, place * n) for p, n in zip(prompts, num_tokens, strict=True)]
        encoded = tokenizer(texts, padding=True, return_tensors="pt")
        rated = model(
            encoded.input_ids.to(device),
            encoded.attention_mask.to(device),
            processed.pixel_values.to(device, model.backbone.dtype),
            processed.image_grid_thw.to(device),
            tokenizer.convert_tokens_to_ids(REWARD_TOKEN),
        )
        return {self.name: rated[:, 0], f"{self.name}/log_sigma": rated[:, 1]}
