"""The miniature: a complete FLUX pipeline of a few megabytes that draws words, and the code that pretrained it.

After ``import harness.models.miniature``, ``FluxPipeline.from_pretrained("harness/models/miniature/base")`` works in
plain diffusers, which accepts a class from another library only if its module has been imported already. The class
itself is loaded at its first use.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    # ModelMixin too: diffusers looks a class's base class up in its module to find out how to load it.
    if name in ("PatchAutoencoder", "ModelMixin"):
        from harness.models.miniature import autoencoder

        return getattr(autoencoder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
