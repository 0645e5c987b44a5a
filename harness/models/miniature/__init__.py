"""The miniature: a complete FLUX pipeline of a few megabytes that draws words, and how it was made.

After ``import harness.models.miniature``, ``FluxPipeline.from_pretrained("harness/models/miniature/base")`` works in
plain diffusers, which takes a class from outside its own library only from a module that has been imported already. The
class itself is loaded at the first look.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    # ModelMixin too: diffusers finds out how to load a class by asking the class's module for its base class.
    if name in ("PatchAutoencoder", "ModelMixin"):
        from harness.models.miniature import autoencoder

        return getattr(autoencoder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def imported_by_torch() -> None:
    """Does nothing. Installs made before 2026-12 name it as an entry point, and without it torch would not import."""
