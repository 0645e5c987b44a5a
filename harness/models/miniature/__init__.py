"""The miniature: a complete FLUX pipeline of a few megabytes that draws words, and how it was made.

``FluxPipeline.from_pretrained("harness/models/miniature/base")`` works without an import by the caller: diffusers takes
a class from outside its own library only from a module that has been imported already, and this package has been, by
torch, through the entry point in pyproject.toml. The class itself is loaded at the first look.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    # ModelMixin too: diffusers finds out how to load a class by asking the class's module for its base class.
    if name in ("PatchAutoencoder", "ModelMixin"):
        from harness.models.miniature import autoencoder

        return getattr(autoencoder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def imported_by_torch() -> None:
    """The entry point's target. Nothing is left to do: the import of this package was the point."""
