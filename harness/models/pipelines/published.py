"""Facts about published base models: licence, size of the download, architecture. Nothing here needs their weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

_COMPONENTS = (
    "scheduler",
    "transformer",
    "vae",
    *(f"text_encoder{suffix}" for suffix in ("", "_2", "_3")),
    *(f"tokenizer{suffix}" for suffix in ("", "_2", "_3")),
)
WANTED = ("model_index.json", *(f"{component}/*" for component in _COMPONENTS))
"""Patterns of the files of a hub repository that the harness reads."""
UNWANTED = ("*.fp16*", "*.bin", "*.msgpack", "*.onnx*")
"""Patterns of the same weights in half precision and for other frameworks: tens of GB."""


@dataclass(frozen=True)
class Licence:
    """As a model card's front matter names it."""

    identifier: str
    name: str | None = None
    link: str | None = None


@dataclass(frozen=True)
class PublishedModel:
    """A pipeline that somebody published."""

    repository: str
    """Hub id, or the folder in this repository."""
    licence: Licence
    gated: bool = False
    """Whether the licence must be accepted on the hub before a download."""
    gigabytes: float = 0.0
    """Of the pipeline folder, without the single-file copies that the repository also holds."""
    transformer: tuple[str, Mapping[str, Any]] | None = None
    """diffusers class, and its published configuration."""
    text_encoders: int = 0
    """Parameters."""
    vae: int = 0
    """Parameters."""
    vae_channels: int = 0
    """Of the decoder's widest feature map at full resolution."""

    @property
    def page(self) -> str:
        """Where the licence is accepted."""
        return f"https://huggingface.co/{self.repository}"


_CLIP_L, _CLIP_G, _T5_XXL = 123_060_480, 694_659_840, 4_762_310_656
_VAE_16 = 83_819_683  # 16 latent channels, blocks of 128, 256, 512, 512

FLUX_DEV = PublishedModel(
    repository="black-forest-labs/FLUX.1-dev",
    licence=Licence(
        "other",
        "flux-1-dev-non-commercial-license",
        "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
    ),
    gated=True,
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
    vae_channels=256,
)

SD35_MEDIUM = PublishedModel(
    repository="stabilityai/stable-diffusion-3.5-medium",
    licence=Licence(
        "other",
        "stabilityai-ai-community",
        "https://huggingface.co/stabilityai/stable-diffusion-3.5-medium/blob/main/LICENSE.md",
    ),
    gated=True,
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
    vae_channels=256,
)

PUBLISHED = (
    FLUX_DEV,
    SD35_MEDIUM,
    PublishedModel("harness/models/miniature/base", Licence("apache-2.0")),
    PublishedModel("harness/models/miniature/weak", Licence("apache-2.0")),
)


def find_published(path: str) -> PublishedModel | None:
    """The published model that a ``model.path`` is of: its hub id, or a folder called as the repository is."""
    parts = PurePath(path).parts
    for model in PUBLISHED:
        wanted = PurePath(model.repository).parts
        # A hub repository is often copied to a folder of its own name; three words of this repository are no accident.
        if parts[-len(wanted) :] == wanted or (len(wanted) == 2 and parts[-1:] == wanted[-1:]):
            return model
    return None


def download_command(repository: str) -> str:
    """The command that fetches what the harness needs of a hub repository into the hub's cache, and nothing else."""
    include = " ".join(f"--include '{pattern}'" for pattern in WANTED)
    exclude = " ".join(f"--exclude '{pattern}'" for pattern in UNWANTED)
    return f"hf download {repository} {include} {exclude}"


def how_to_fetch(repository: str) -> str:
    """What to do about a hub repository that is not here: the licence to accept, and the exact command."""
    model = find_published(repository)
    if model is None:
        page = f"https://huggingface.co/{repository}"
        return f"accept its licence at {page} if it has one, log in with  hf auth login  and run  " + download_command(
            repository
        )
    accept = f"accept {model.licence.name} at {model.page}, log in with  hf auth login  and " * model.gated
    return f"{accept}run  {download_command(repository)}  ({model.gigabytes:g} GB)"
