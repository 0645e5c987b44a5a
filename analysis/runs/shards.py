"""Shards: finished runs as small Parquet files, from which all tables, figures and galleries can be made."""

import hashlib
import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.runs.gallery import NUM_PROMPTS, Gallery, Picture, read_gallery
from analysis.runs.runlog import (
    NUMBERS,
    RunLog,
    Series,
    check_config,
    find_paths,
    numbers_table,
    read_directory,
)
from harness.foundation.errors import ConfigError
from harness.foundation.files import write_atomically

SUFFIX = ".parquet"
_FORMAT = "1"
_NUMBER_GROUP, _PICTURE_GROUP = 0, 1  # Separate row groups, since reports of many runs read few pictures.
_DOCUMENTS = ("config", "status", "environment")
_NO_MATTER = ("runtime", "logging")
"""Sections of a configuration that change no number."""
_NO_CHECKSUM = "0" * 64
_SIGNED = re.compile(rb"adagrpo\.sha256.{2}([0-9a-f]{64})", re.DOTALL)
"""Pattern of a shard's checksum, which is that of the file with ``_NO_CHECKSUM`` in its place. Old shards have none."""


def write_shards(runs_folder: Path, output: Path, num_pictures: int = NUM_PROMPTS) -> list[Path]:
    """Write each finished run to ``output/<experiment>/<run id>.parquet``; the same run gives the same bytes.

    An existing file that would not change is left alone; one that would is replaced atomically. Unfinished runs get no
    shard.

    Args:
        runs_folder: folder with run directories at any depth.
        output: folder to write to; created if missing.
        num_pictures: prompts whose pictures before and after training are kept, for each cell's first finished seed
            only, since a page shows no others and pictures would take most of the space.

    Returns:
        The shards of all finished runs, sorted.

    Raises:
        ConfigError: a folder or file, named in the message, cannot be read, or a finished run has lost one; the other
            runs' shards are written before.
    """
    written, damaged = [], []
    directories = find_paths(runs_folder)
    shown: set[str] = set()
    for directory in sorted(directories, key=_seed):
        try:
            log = read_directory(directory)
            if log.state == "incomplete":
                raise ConfigError(f"{directory}: {log.status['reason']}")
            if log.state != "finished":
                continue
            cell = _cell(log)
            content = _to_parquet(log, read_gallery(directory, 0 if cell in shown else num_pictures))
            shown.add(cell)
        except ConfigError as error:
            damaged.append(error)
            continue
        path = output / str(log.config["experiment"]) / f"{log.run_id}{SUFFIX}"
        if not path.is_file() or path.read_bytes() != content:
            write_atomically(path, content)
        written.append(path)
    if damaged:
        raise damaged[0]
    return sorted(written)


def _seed(directory: Path) -> int:
    """Seed in a run directory's name; 0 if it names none."""
    seed = directory.name.rpartition("-seed")[2].partition("-")[0]
    return int(seed) if seed.isdecimal() else 0


def _cell(log: RunLog) -> str:
    """Key of the runs that differ by seed alone: folder, and settings that numbers depend on."""
    settings = log.environment.get("settings") or {k: v for k, v in log.config.items() if k not in _NO_MATTER}
    own = {key: value for key, value in settings.items() if key != "seed"}
    return json.dumps([str(log.path.parent), own], sort_keys=True, default=str)


def read_shard(path: Path) -> RunLog:
    """Read a shard; the result equals that of ``read_directory`` for the original run, except for its path.

    Raises:
        ConfigError: the file is not a shard, or is damaged; the message names it.
    """
    table, documents = _read(path, _NUMBER_GROUP, [*NUMBERS.names, "millionths"])
    numbers = _decode(table)
    iteration = pc.max(numbers.filter(pc.equal(numbers["split"], "train"))["iteration"]).as_py() or 0
    config, status, environment = (documents[name] for name in _DOCUMENTS)
    return RunLog(path, path.stem, check_config(config, path), status, environment, iteration, numbers)


def read_shard_environment(path: Path) -> dict[str, Any]:
    """Read the environment.json in a shard, without its numbers.

    Raises:
        ConfigError: the file is not a shard; the message names it.
    """
    try:
        environment = json.loads(pq.read_metadata(path).metadata[b"adagrpo.environment"])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: is no shard ({error})") from None
    return dict(environment)


def read_shard_gallery(path: Path, num_prompts: int = NUM_PROMPTS) -> Gallery | None:
    """Read the pictures in a shard; None if it has none.

    Raises:
        ConfigError: the file is not a shard, or is damaged; the message names it.
    """
    table, _ = _read(path, _PICTURE_GROUP, ["iteration", "text", "png"])
    rows = table.to_pylist()
    if not rows:
        return None
    befores, afters = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    pictures = [Picture(b["text"], b["png"], a["png"]) for b, a in zip(befores, afters, strict=True)]
    return Gallery(befores[0]["iteration"], afters[0]["iteration"], pictures[:num_prompts])


def _to_parquet(log: RunLog, gallery: Gallery | None) -> bytes:
    numbers = _encode(log.numbers.append_column("png", pa.nulls(len(log.numbers), pa.binary())))
    documents = {name: json.dumps(getattr(log, name), sort_keys=True) for name in _DOCUMENTS}
    buffer = BytesIO()
    with pq.ParquetWriter(
        buffer,
        numbers.schema,
        compression="zstd",
        compression_level=19,
        use_dictionary=["split", "metric", "text"],
        use_byte_stream_split=["value", "millionths"],
        column_encoding={"iteration": "DELTA_BINARY_PACKED", "item": "DELTA_BINARY_PACKED"},
        write_statistics=False,
        store_schema=False,
        write_page_checksum=True,
    ) as writer:
        writer.write_table(numbers)
        if gallery is not None and gallery.pictures:
            writer.write_table(_encode(_picture_rows(gallery)))
        about = {"shard": _FORMAT, **documents, "sha256": _NO_CHECKSUM}
        writer.add_key_value_metadata({f"adagrpo.{key}": text for key, text in about.items()})
    content = buffer.getvalue()
    return content.replace(_NO_CHECKSUM.encode(), _sha256(content))


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _encode(table: pa.Table) -> pa.Table:
    """Store values of at most six decimals, such as those of single prompts, as integer millionths: 3 bytes, not 8."""
    values = table["value"].to_numpy()
    whole = np.rint(values * 1e6)
    exact = (np.abs(whole) < 2**31) & (whole / 1e6 == values)
    rest = pa.array(values, mask=exact | np.isnan(values))
    millionths = pa.array(np.where(exact, whole, 0).astype(np.int32), mask=~exact)
    place = table.schema.get_field_index("value")
    return table.set_column(place, "value", rest).append_column("millionths", millionths)


def _decode(table: pa.Table) -> pa.Table:
    """Invert ``_encode``; the result has columns ``NUMBERS``."""
    values = pc.coalesce(table["value"], pc.divide(table["millionths"].cast(pa.float64()), 1e6))
    return table.select(NUMBERS.names).set_column(NUMBERS.names.index("value"), "value", values)


def _picture_rows(gallery: Gallery) -> pa.Table:
    """Rows of a gallery's pictures: all before training, then all after it."""
    count = len(gallery.pictures)
    prompts = [picture.prompt for picture in gallery.pictures]
    ends = [
        Series("picture", [iteration] * count, np.full(count, np.nan), range(count), prompts)
        for iteration in (gallery.before, gallery.after)
    ]
    pngs = [picture.before for picture in gallery.pictures] + [picture.after for picture in gallery.pictures]
    return numbers_table("validation", ends).append_column("png", pa.array(pngs, type=pa.binary()))


def _read(path: Path, row_group: int, columns: list[str]) -> tuple[pa.Table, dict[str, Any]]:
    """Read columns of a row group, without rows if the file has no such group, and the run's documents."""
    no_shard = ConfigError(f"{path}: no shard of a run (version {_FORMAT}); write it with write_shards")
    try:
        content = path.read_bytes()
        # Verify the checksum before parsing, since the library trusts the sizes that a file declares.
        signed = _SIGNED.search(content)
        if signed and _sha256(content.replace(signed[1], _NO_CHECKSUM.encode())) != signed[1]:
            raise ConfigError(f"{path}: is damaged: its checksum is wrong; put back a copy of it")
        with pq.ParquetFile(
            pa.BufferReader(content), read_dictionary=["split", "metric"], page_checksum_verification=True
        ) as file:
            metadata = file.metadata.metadata or {}
            if metadata.get(b"adagrpo.shard") != _FORMAT.encode():
                raise no_shard
            groups = [row_group] if row_group < file.num_row_groups else []
            table = file.read_row_groups(groups, columns, use_threads=False)
        return table, {name: json.loads(metadata[f"adagrpo.{name}".encode()]) for name in _DOCUMENTS}
    except ConfigError:
        raise
    except KeyError:  # The file has other columns or no documents.
        raise no_shard from None
    except (OSError, ValueError, OverflowError, MemoryError, pa.ArrowException) as error:
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
