"""What open_clip's models need to run in transformers: their text tokens, and their weights under other names."""

import gzip
import html
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor

from harness.rewards.base import RewardError
from harness.rewards.files.architectures import END_OF_TEXT
from harness.rewards.files.assets import asset_path

CONTEXT_LENGTH = 77
START, END = 49_406, END_OF_TEXT

_VOCABULARY = "CLIP-BPE"
_NUM_MERGES = START - 2 * 256
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_MENDED = re.compile(r"[^\x00-\x7f]|[\x00-\x08\x0b\x0e-\x1f\x7f]|&#?\w{1,24};")
"""What ftfy changes: nothing in plain ASCII without control characters and HTML entities."""


class ClipTokenizer:
    """open_clip's text tokens: byte-pair encoding of the cleaned lower-case text, cut to 77 and padded with zeros."""

    def __init__(self, vocabulary: Path | None = None) -> None:
        """Read the merges.

        Args:
            vocabulary: ``bpe_simple_vocab_16e6.txt.gz``; None for the one that ``adagrpo fetch-assets`` keeps.

        Raises:
            AssetError: it has not been fetched.
        """
        lines = gzip.decompress((vocabulary or asset_path(_VOCABULARY)).read_bytes()).decode().split("\n")
        merges = [(first, second) for first, second in (line.split() for line in lines[1 : _NUM_MERGES + 1])]
        letters = _byte_letters()
        symbols = [*letters, *(f"{letter}</w>" for letter in letters), *(first + second for first, second in merges)]
        self._tokenizer = Tokenizer(
            models.BPE({symbol: i for i, symbol in enumerate(symbols)}, merges, end_of_word_suffix="</w>")
        )
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Token ids ``[n, 77]`` int64; a text that is too long keeps its start.

        Raises:
            RewardError: a text needs mending (it is not plain ASCII), and ftfy is not installed.
        """
        ids = torch.zeros(len(texts), CONTEXT_LENGTH, dtype=torch.long)
        for row, found in enumerate(self.encode(texts)):
            tokens = torch.tensor([*found[:-1][: CONTEXT_LENGTH - 1], END])
            ids[row, : len(tokens)] = tokens
        return ids

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """All tokens of each text, however many; raises as a call does."""
        return [[START, *found.ids, END] for found in self._tokenizer.encode_batch([clean(text) for text in texts])]


def clean(text: str) -> str:
    """Text as open_clip reads it: mended by ftfy, HTML entities resolved twice, single spaces, lower case.

    Raises:
        RewardError: the text needs mending, and ftfy is not installed.
    """
    if _MENDED.search(text):
        try:
            import ftfy
        except ImportError:
            raise RewardError(
                f"prompt {text!r}: has characters that HPS-v2's tokenizer mends with ftfy; `pip install ftfy`"
            ) from None
        text = ftfy.fix_text(text)
    return " ".join(html.unescape(html.unescape(text)).split()).lower()


@cache
def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte, in the order of CLIP's vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


# --- weights --------------------------------------------------------------------------------------------------------

_NAMES = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "transformer.resblocks": "text_model.encoder.layers",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_IN_A_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK = re.compile(r"(.*resblocks)\.(\d+)\.(.+)")


def to_transformers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's names and layouts of a CLIP model as transformers' ``CLIPModel`` has them.

    The joint query-key-value projection is cut in three, and the two final projections are transposed. Names that are
    not open_clip's stay as they are.
    """
    converted: dict[str, Tensor] = {}
    for name, value in weights.items():
        block = _BLOCK.fullmatch(name)
        if name in _TRANSPOSED:
            converted[_TRANSPOSED[name]] = value.T.contiguous()
        elif block and block[3].startswith("attn.in_proj_"):
            kind = block[3].removeprefix("attn.in_proj_")
            for part, third in zip("qkv", value.chunk(3), strict=True):
                converted[f"{_NAMES[block[1]]}.{block[2]}.self_attn.{part}_proj.{kind}"] = third
        elif block:
            inner, _, kind = block[3].rpartition(".")
            converted[f"{_NAMES[block[1]]}.{block[2]}.{_IN_A_BLOCK.get(inner, inner)}.{kind}"] = value
        else:
            stem, _, kind = name.rpartition(".")
            converted[_NAMES.get(name) or (f"{_NAMES[stem]}.{kind}" if stem in _NAMES else name)] = value
    return converted
