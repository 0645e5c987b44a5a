"""Fingerprints and other facts about a model folder that need none of its classes, and cached folders."""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from harness.foundation.errors import ConfigError
from harness.foundation.files import file_sha256, lock, read_text, write_atomically
from harness.foundation.places import cache_folder

# Weights, configurations, vocabularies in old and new formats, and chat templates.
_SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".jinja")

_SHA256 = re.compile("[0-9a-f]{64}")

_FIRST_FINGERPRINTS = {
    # The miniature's base and weak, whose configurations used to contain the folder in which they were made.
    "e096d566b07f0dc3": "f38a44a8b63273d444d149e95c2a928caf355d221f0f0e357e3a4d68458a857e",
    "5ca7258bc04f2aa2": "180ccc3b3cb83f66baf7a5d0ef0028f09c26b6517235535b579376c2406676ac",
}
"""Fingerprints that runs recorded before models changed without effect on results, by the start of present ones."""


def build_once(folder: Path, build: Callable[[Path], object]) -> Path:
    """Return a folder, filled by ``build`` (the same bytes each time) if it is new; concurrent processes are safe."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            built = Path(scratch) / folder.name
            built.mkdir()
            build(built)
            try:
                built.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
    return folder


def component_folders(pipeline: Path) -> dict[str, tuple[str, str]]:
    """Library and class of each of a pipeline's component folders, from its model_index.json."""
    index = json.loads(read_text(pipeline / "model_index.json"))
    return {name: tuple(entry) for name, entry in index.items() if isinstance(entry, list) and entry[1] is not None}


def pipeline_settings(pipeline: Path) -> dict[str, Any]:
    """Settings of a pipeline beside its components, from its model_index.json, such as FLUX.2's ``is_distilled``."""
    index = json.loads(read_text(pipeline / "model_index.json"))
    return {name: value for name, value in index.items() if not name.startswith("_") and not isinstance(value, list)}


def model_fingerprint(pipeline: Path) -> str:
    """sha256 over the names and bytes of a pipeline's weights and configuration files.

    The model card and files outside the components, such as single-file copies of the weights, are not included.
    """
    files = _files(pipeline, list(component_folders(pipeline)))
    digest = _fingerprint(pipeline, [pipeline / "model_index.json", *files])
    return _FIRST_FINGERPRINTS.get(digest[:16], digest)


def text_fingerprint(pipeline: Path) -> str:
    """sha256 over the names and bytes of a pipeline's text encoders and tokenizers."""
    parts = [name for name in component_folders(pipeline) if name.startswith(("text_encoder", "tokenizer"))]
    return _fingerprint(pipeline, _files(pipeline, parts))


def _files(pipeline: Path, components: list[str]) -> list[Path]:
    return [p for name in components for p in (pipeline / name).rglob("*") if p.suffix in _SUFFIXES]


def _fingerprint(pipeline: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.relative_to(pipeline).as_posix().encode())
        digest.update(bytes.fromhex(remembered_sha256(file)))
    return digest.hexdigest()


def remembered_sha256(file: Path) -> str:
    """sha256 of a file, computed at most once on a machine, because weights take minutes.

    In the hub's cache it is the name of the file; for others it is cached on disk by path, size and modification time.
    """
    real = file.resolve()
    if real.parent.name == "blobs" and _SHA256.fullmatch(real.name):
        return real.name
    facts = real.stat()
    key = hashlib.sha256(f"{real}|{facts.st_size}|{facts.st_mtime_ns}".encode()).hexdigest()
    remembered = cache_folder("fingerprints") / key
    if (digest := _read_digest(remembered)) is None:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        # Of processes that start together one computes the sum, and the others wait and read its result.
        with lock(remembered.with_name("lock"), wait=True) or nullcontext():
            if (digest := _read_digest(remembered)) is None:
                digest = file_sha256(real)
                write_atomically(remembered, digest)
    return digest


def _read_digest(file: Path) -> str | None:
    digest = file.read_bytes().decode(errors="replace") if file.is_file() else ""
    return digest if _SHA256.fullmatch(digest) else None


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """Open a safetensors file, as a context manager. Raises ConfigError if it is missing or damaged."""
    if not file.is_file():
        raise ConfigError(f"{file} is missing; fetch it")
    try:
        with safe_open(file, framework="pt") as content:
            yield content
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{file} is damaged or was cut off ({error}); fetch or export it again") from None
