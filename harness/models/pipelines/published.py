"""Facts about published base models, known without their weights: licence, size of the download, architecture."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

_TEXT = tuple(f"{part}{suffix}" for part in ("text_encoder", "tokenizer") for suffix in ("", "_2", "_3"))
WANTED = ("model_index.json", *(f"{component}/*" for component in ("scheduler", "transformer", "vae", *_TEXT)))
"""Patterns of the files of a hub repository that the harness reads."""
UNWANTED = ("*.fp16*", "*.bin", "*.msgpack", "*.onnx*")
"""Patterns of files not to download: the same weights in half precision and for other frameworks, tens of GB."""


@dataclass(frozen=True)
class Licence:
    """Licence as named in a model card's front matter."""

    identifier: str
    name: str | None = None
    link: str | None = None


@dataclass(frozen=True)
class PublishedModel:
    """A published pipeline."""

    repository: str
    """Hub id, or folder in this repository."""
    terms: str | None = None
    """Name of its own licence, which must be accepted on the hub before a download; None for Apache 2.0."""
    gigabytes: float = 0.0
    """Size of the pipeline folder, without the single-file copies that the repository also holds; estimated as 2 bytes
    per parameter for models whose folder has not been measured."""
    transformer: tuple[str, Mapping[str, Any]] | None = None
    """diffusers class and its published configuration."""
    text_encoders: int = 0
    """Number of parameters of all text encoders."""
    vae: int = 0
    """Number of parameters of the autoencoder."""
    vae_channels: int = 256
    """Channels of the decoder's widest feature map at full resolution."""

    @property
    def licence(self) -> Licence:
        """The model's licence."""
        if self.terms is None:
            return Licence("apache-2.0")
        return Licence("other", self.terms, f"https://huggingface.co/{self.repository}/blob/main/LICENSE.md")


_CLIP_L, _CLIP_G, _T5_XXL = 123_060_480, 694_659_840, 4_762_310_656
_VAE_16 = 83_819_683  # 16 latent channels, blocks of 128, 256, 512, 512

FLUX_DEV = PublishedModel(
    "black-forest-labs/FLUX.1-dev",
    terms="flux-1-dev-non-commercial-license",
    gigabytes=33.8,
    transformer=(
        "FluxTransformer2DModel",
        {
            "patch_size": 1,
            "in_channels": 64,
            "num_layers": 19,
            "num_single_layers": 38,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "guidance_embeds": True,
        },
    ),
    text_encoders=_CLIP_L + _T5_XXL,
    vae=_VAE_16,
)

SD35_MEDIUM = PublishedModel(
    "stabilityai/stable-diffusion-3.5-medium",
    terms="stabilityai-ai-community",
    gigabytes=16.3,
    transformer=(
        "SD3Transformer2DModel",
        {
            "sample_size": 128,
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 24,
            "attention_head_dim": 64,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
            "qk_norm": "rms_norm",
        },
    ),
    text_encoders=_CLIP_L + _CLIP_G + _T5_XXL,
    vae=_VAE_16,
)

# The configurations of these three are the defaults of their diffusers classes, except FLUX.2-klein's depth and width.
# Their text encoders are Qwen2.5-VL-7B, Qwen3-8B and Qwen3-4B; a test counts their parameters.
QWEN_IMAGE = PublishedModel(
    "Qwen/Qwen-Image",
    gigabytes=57.7,
    transformer=("QwenImageTransformer2DModel", {}),
    text_encoders=8_292_166_656,
    vae=126_892_531,
    vae_channels=192,
)

FLUX2_KLEIN = PublishedModel(
    "black-forest-labs/FLUX.2-klein-base-9B",
    terms="flux-non-commercial-license",
    gigabytes=34.7,
    transformer=(
        "Flux2Transformer2DModel",
        {
            "num_layers": 8,
            "num_single_layers": 24,
            "num_attention_heads": 32,
            "joint_attention_dim": 12288,
            "guidance_embeds": False,
        },
    ),
    text_encoders=8_190_735_360,
    vae=84_046_115,
)

Z_IMAGE = PublishedModel(
    "Tongyi-MAI/Z-Image-Turbo",
    gigabytes=20.5,
    transformer=("ZImageTransformer2DModel", {}),
    text_encoders=4_022_468_096,
    vae=_VAE_16,
)

PUBLISHED = (
    FLUX_DEV,
    SD35_MEDIUM,
    QWEN_IMAGE,
    FLUX2_KLEIN,
    Z_IMAGE,
    *(PublishedModel(f"harness/models/miniature/{name}") for name in ("base", "weak", "letters", "letters-luck")),
)


def find_published(path: str) -> PublishedModel | None:
    """Published model that a ``model.path`` names: by its hub id, or by a folder with the repository's name."""
    parts = PurePath(path).parts
    for model in PUBLISHED:
        wanted = PurePath(model.repository).parts
        # Copies of a hub repository are often in a folder of its name alone; paths in this repository must match whole.
        if parts[-len(wanted) :] == wanted or (len(wanted) == 2 and parts[-1:] == wanted[-1:]):
            return model
    return None


def download_command(repository: str) -> str:
    """Shell command that downloads only the needed files of a hub repository into the hub's cache."""
    include = " ".join(f"--include '{pattern}'" for pattern in WANTED)
    exclude = " ".join(f"--exclude '{pattern}'" for pattern in UNWANTED)
    return f"hf download {repository} {include} {exclude}"


def how_to_fetch(repository: str) -> str:
    """Instructions for downloading a hub repository: the licence to accept and the exact command."""
    model, page = find_published(repository), f"https://huggingface.co/{repository}"
    licence = "its licence" if model is None else model.licence.name
    condition, size = (" if it has one", "") if model is None else ("", f"  ({model.gigabytes:g} GB)")
    accept = f"accept {licence} at {page}{condition}, log in with  hf auth login  and "
    return f"{accept * (model is None or model.terms is not None)}run  {download_command(repository)}{size}"
