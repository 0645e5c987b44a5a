"""Twins of the published reward models: the same classes with random weights, small enough for a dry run on a CPU.

A configuration names one by ``rewards.hpsv2.path: twin:hpsv2``; ``twin:hpsv3`` is a path and a base, ``twin:clip`` is
for CLIP score and PickScore. Their scores mean nothing; they only show that a configuration runs. The layouts are the
published ones, and the scales are chosen so that scores differ between pictures and prompts by far more than rounding:
``make check-reward-parity`` uses them to compare this project with the published packages.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPConfig

from harness.foundation.places import cache_folder
from harness.models.pipelines.files import build_once
from harness.models.pipelines.locate import TWIN_PREFIX
from harness.rewards.base import RewardError
from harness.rewards.files.assets import hpsv3_question
from harness.rewards.native import open_clip

_VERSION = 3
"""Version of the twins; increase it with any change, so that old ones in the cache are not used any more."""


def find_twin(reward: str, key: str, name: str) -> Path:
    """File or folder of a twin for the setting ``rewards.REWARD.KEY``, built at the first call.

    Raises:
        RewardError: no twin of this name has this key, ``path`` or ``base``.
    """
    build, places = _TWINS.get(name, (None, {}))
    if build is None or key not in places:
        known = ", ".join(f"{TWIN_PREFIX}{twin}" for twin, (_, of) in _TWINS.items() if key in of)
        raise RewardError(f"reward {reward!r}: rewards.{reward}.{key}: there is no twin {name!r}, there are {known}")
    return build_once(cache_folder("twins") / f"reward-{name}-{_VERSION}", build) / places[key]


class _Random:
    """Generator of random weights from one seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, std: float) -> Tensor:
        return std * torch.randn(shape, generator=self._generator)

    def linear(self, name: str, rows: int, columns: int, gain: float = 1.0, bias: bool = True) -> dict[str, Tensor]:
        weights = {f"{name}.weight": self.normal(rows, columns, std=gain / math.sqrt(columns))}
        return weights | ({f"{name}.bias": self.normal(rows, std=0.1)} if bias else {})

    def norm(self, name: str, width: int, bias: bool = True) -> dict[str, Tensor]:
        weights = {f"{name}.weight": 1 + self.normal(width, std=0.1)}
        return weights | ({f"{name}.bias": self.normal(width, std=0.1)} if bias else {})


# --- HPS-v2: open_clip's ViT-H-14 -----------------------------------------------------------------------------------


def write_hpsv2(path: Path, sizes: CLIPConfig) -> None:
    """Write a checkpoint of float16 weights under open_clip's names, like HPS-v2's releases."""
    torch.save({"state_dict": _open_clip_weights(sizes)}, path)


def _open_clip_weights(sizes: CLIPConfig) -> dict[str, Tensor]:
    draw = _Random(2)
    picture, text, out = sizes.vision_config, sizes.text_config, sizes.projection_dim
    patch, patches = picture.patch_size, (picture.image_size // picture.patch_size) ** 2
    weights = {
        "logit_scale": torch.tensor(math.log(100.0)),
        "token_embedding.weight": draw.normal(49_408, text.hidden_size, std=1.0),
        "positional_embedding": draw.normal(77, text.hidden_size, std=0.1),
        "text_projection": draw.normal(text.hidden_size, out, std=1 / math.sqrt(text.hidden_size)),
        "visual.class_embedding": draw.normal(picture.hidden_size, std=0.5),
        "visual.positional_embedding": draw.normal(patches + 1, picture.hidden_size, std=0.1),
        "visual.conv1.weight": draw.normal(picture.hidden_size, 3, patch, patch, std=1 / math.sqrt(3 * patch**2)),
        "visual.proj": draw.normal(picture.hidden_size, out, std=1 / math.sqrt(picture.hidden_size)),
    }
    weights |= draw.norm("ln_final", text.hidden_size)
    weights |= draw.norm("visual.ln_pre", picture.hidden_size) | draw.norm("visual.ln_post", picture.hidden_size)
    for prefix, tower in (("transformer", text), ("visual.transformer", picture)):
        width, inner = tower.hidden_size, tower.intermediate_size
        for layer in range(tower.num_hidden_layers):
            block = f"{prefix}.resblocks.{layer}"
            weights |= draw.norm(f"{block}.ln_1", width) | draw.norm(f"{block}.ln_2", width)
            joint = draw.linear("joint", 3 * width, width)
            weights |= {f"{block}.attn.in_proj_{kind}": joint[f"joint.{kind}"] for kind in ("weight", "bias")}
            weights |= draw.linear(f"{block}.attn.out_proj", width, width)
            weights |= draw.linear(f"{block}.mlp.c_fc", inner, width)
            weights |= draw.linear(f"{block}.mlp.c_proj", width, inner)
    return {name: value.half() for name, value in weights.items()}


# --- HPS-v3: a small Qwen2-VL ---------------------------------------------------------------------------------------

PROMPTS = (
    "a photo of a cat",
    'the word "Harbor" in red on yellow, hand-painted sign, 1920s',
    "Two astronauts; one rides a horse & the other doesn't!  (oil on canvas)",
    "macro shot of dew on a spider's web, 85mm f/1.8, bokeh, golden hour",
    "caf\u00e9 terrace at night \u2014 in the style of Van Gogh\u2019s \u201cStarry Night\u201d",
    "<b>bold</b> &amp; bright 3D letters: GRPO",
    "\u4e00\u53ea\u72d0\u72f8 in the snow",
    "an endless library " + "with shelves of leather-bound books, ladders and lamps, " * 12,
)
"""Training text of the tokenizer: short, quoted, punctuated, accented, HTML, Chinese, and longer than CLIP reads."""

_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
_WIDTH, _HEADS, _KEY_HEADS, _INNER, _LAYERS = 64, 4, 2, 128, 2
_VISION_WIDTH, _VISION_DEPTH = 32, 2
_SPARE_ROWS = 7
"""Rows of the base's embedding table without a token, as in Qwen2-VL; HPS-v3's checkpoints lack them."""
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_hpsv3(folder: Path) -> tuple[Path, Path]:
    """Write a small HPS-v3 and its base folder, with transformers 4.45's names; returns checkpoint and base."""
    base = folder / "base"
    base.mkdir(parents=True, exist_ok=True)
    rows = _write_tokenizer(base) + 1  # plus the reward token, which is added when the model is loaded
    config = _qwen_config(rows)
    (base / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    processor = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor"}
    (base / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    weights = _hpsv3_weights(rows)
    # The package loads a base model before it replaces all weights by the checkpoint's.
    original = {name: value for name, value in weights.items() if not name.startswith("rm_head")}
    for table in ("model.embed_tokens.weight", "lm_head.weight"):
        original[table] = torch.cat([weights[table], weights[table][:_SPARE_ROWS]])
    save_file(original, base / "model.safetensors", metadata={"format": "pt"})
    save_file(weights, folder / "HPSv3.safetensors", metadata={"format": "pt"})
    return folder / "HPSv3.safetensors", base


def _write_tokenizer(base: Path) -> int:
    """Train and write a byte-level tokenizer on the question and the prompts; returns its number of tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([hpsv3_question(), *PROMPTS], trainer)
    tokenizer.model.save(str(base))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _SPECIALS])
    added = {
        str(tokenizer.token_to_id(token)): {"content": token, "special": True, "normalized": False, "lstrip": False,
                                            "rstrip": False, "single_word": False}
        for token in _SPECIALS
    }  # fmt: skip
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": added,
        "additional_special_tokens": list(_SPECIALS[1:]),
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "model_max_length": 32_768,
        "chat_template": _CHAT,
    }
    (base / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    (base / "chat_template.json").write_text(json.dumps({"chat_template": _CHAT}), encoding="utf-8")
    return tokenizer.get_vocab_size()


def _qwen_config(rows: int) -> dict[str, object]:
    ids = {token: rows - 1 - len(_SPECIALS) + number for number, token in enumerate(_SPECIALS)}
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "hidden_size": _WIDTH,
        "intermediate_size": _INNER,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KEY_HEADS,
        "vocab_size": rows + _SPARE_ROWS,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": rows + 5,
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "eos_token_id": ids["<|im_end|>"],
        "bos_token_id": ids["<|endoftext|>"],
        "torch_dtype": "float32",
        "vision_config": {
            "model_type": "qwen2_vl",
            "depth": _VISION_DEPTH,
            "embed_dim": _VISION_WIDTH,
            "hidden_size": _WIDTH,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 14,
            "spatial_patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "in_chans": 3,
        },
    }


def _hpsv3_weights(rows: int) -> dict[str, Tensor]:
    draw = _Random(3)
    head = _WIDTH // _HEADS
    weights = {"model.embed_tokens.weight": draw.normal(rows, _WIDTH, std=1.0)}
    weights["lm_head.weight"] = draw.normal(rows, _WIDTH, std=0.1)
    for layer in range(_LAYERS):
        block = f"model.layers.{layer}"
        weights |= draw.norm(f"{block}.input_layernorm", _WIDTH, bias=False)
        weights |= draw.norm(f"{block}.post_attention_layernorm", _WIDTH, bias=False)
        # Keys and queries are large, so that attention selects tokens by content and position.
        weights |= draw.linear(f"{block}.self_attn.q_proj", _WIDTH, _WIDTH, gain=2)
        weights |= draw.linear(f"{block}.self_attn.k_proj", _KEY_HEADS * head, _WIDTH, gain=2)
        weights |= draw.linear(f"{block}.self_attn.v_proj", _KEY_HEADS * head, _WIDTH)
        weights |= draw.linear(f"{block}.self_attn.o_proj", _WIDTH, _WIDTH, bias=False)
        for name, shape in (("gate", (_INNER, _WIDTH)), ("up", (_INNER, _WIDTH)), ("down", (_WIDTH, _INNER))):
            weights |= draw.linear(f"{block}.mlp.{name}_proj", *shape, bias=False)
    weights |= draw.norm("model.norm", _WIDTH, bias=False)
    inner, merged = 2 * _VISION_WIDTH, 4 * _VISION_WIDTH
    patch = 3 * 2 * 14 * 14
    weights["visual.patch_embed.proj.weight"] = draw.normal(_VISION_WIDTH, 3, 2, 14, 14, std=2 / math.sqrt(patch))
    for layer in range(_VISION_DEPTH):
        block = f"visual.blocks.{layer}"
        weights |= draw.norm(f"{block}.norm1", _VISION_WIDTH) | draw.norm(f"{block}.norm2", _VISION_WIDTH)
        weights |= draw.linear(f"{block}.attn.qkv", 3 * _VISION_WIDTH, _VISION_WIDTH)
        weights |= draw.linear(f"{block}.attn.proj", _VISION_WIDTH, _VISION_WIDTH)
        weights |= draw.linear(f"{block}.mlp.fc1", inner, _VISION_WIDTH)
        weights |= draw.linear(f"{block}.mlp.fc2", _VISION_WIDTH, inner)
    weights |= draw.norm("visual.merger.ln_q", _VISION_WIDTH)
    weights |= draw.linear("visual.merger.mlp.0", merged, merged) | draw.linear("visual.merger.mlp.2", _WIDTH, merged)
    weights |= draw.linear("rm_head.0", 1024, _WIDTH) | draw.linear("rm_head.3", 16, 1024)
    return weights | draw.linear("rm_head.5", 2, 16)


# --- CLIP score and PickScore ---------------------------------------------------------------------------------------


def _write_clip(folder: Path) -> None:
    """Write the weights of HPS-v2's twin in transformers' format."""
    sizes = open_clip.twin_of_clip()
    sizes.save_pretrained(folder)
    weights = {name: value.float() for name, value in _open_clip_weights(sizes).items()}
    save_file(open_clip.to_transformers(weights), folder / "model.safetensors", metadata={"format": "pt"})
    open_clip.clip_tokenizer().save_pretrained(folder)
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")


_HPSV2 = "HPS_v2.1_compressed.pt"
_TWINS: dict[str, tuple[Callable[[Path], object], dict[str, str]]] = {
    "hpsv2": (lambda folder: write_hpsv2(folder / _HPSV2, open_clip.twin_of_clip()), {"path": _HPSV2}),
    "hpsv3": (write_hpsv3, {"path": "HPSv3.safetensors", "base": "base"}),
    "clip": (_write_clip, {"path": ""}),
}
"""Function that builds each twin, and the path in its folder for each setting."""
