"""Facts about a model folder that need none of its classes."""

import hashlib
from functools import cache
from pathlib import Path


@cache
def model_fingerprint(folder: Path) -> str:
    """sha256 over the names and bytes of a pipeline folder's weights and configs (not its model card)."""
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".json")):
        digest.update(file.relative_to(folder).as_posix().encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
