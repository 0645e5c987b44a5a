"""Export of a run's weights: files that plain diffusers loads, with a model card."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from harness.config import ConfigError, dump
from harness.foundation.files import write_atomically
from harness.models.pipelines.files import component_folders
from harness.models.pipelines.loading import DTYPES
from harness.models.pipelines.locate import find_pipeline
from harness.models.pipelines.lora_files import read_lora, write_lora
from harness.models.pipelines.policy import with_shift
from harness.models.pipelines.published import Licence, find_published
from harness.models.pipelines.registry import build_policy
from harness.models.pipelines.weights import copy_weights, filling, put_lora
from harness.trained.checkpoints import LORA_FILE, Checkpoint, label_of, run_in, weights_in
from harness.trained.model_card import Form, model_card
from harness.training.checkpointing import read_weights


def export(checkpoint: Checkpoint, folder: Path, *, merge: bool = False, licence: str | None = None) -> Form:
    """Write a run's weights, its configuration (config.yaml) and a model card (README.md).

    Args:
        checkpoint: checkpoint of a run.
        folder: new or empty folder.
        merge: write the whole pipeline with the trained weights merged in, instead of adapters or a transformer alone.
            The transformer is then float32, whatever the precision of training.
        licence: licence in the card; None for the base model's, if it is known.

    Returns:
        Kind of the export.

    Raises:
        ConfigError: the checkpoint is not of a run, the folder is in use, the licence is not known, the base model is
            missing, or the weights are damaged or do not fit it.
    """
    run, weights = checkpoint.run, checkpoint.weights
    if run is None or weights is None:
        raise ConfigError(f"{checkpoint.label}: only a run can be exported, since the card reports what it measured")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"--output {folder}: is in use; choose a new folder")
    terms = _licence_of(checkpoint, licence)
    form: Form = "pipeline" if merge else "lora" if checkpoint.is_lora else "transformer"
    with filling(folder) as partial:
        if merge:
            _merged_pipeline(checkpoint, weights).save_pretrained(partial)
        elif checkpoint.is_lora:
            write_lora(read_lora(weights), partial / LORA_FILE)
        else:
            shutil.copytree(weights, partial / "transformer")
        write_atomically(partial / "config.yaml", dump(checkpoint.config))
        write_atomically(partial / "README.md", model_card(run, form, terms))
    return form


@contextmanager
def latest_weights(folder: Path) -> Iterator[Checkpoint]:
    """Context with the weights of a run's latest checkpoint, gathered from all shards and in diffusers' format.

    Raises:
        ConfigError: the folder is no run directory, nothing has been saved yet, shards are missing, or the run is
            finished and so has final weights.
    """
    run = run_in(folder)
    if run.status()["state"] == "finished":
        raise ConfigError(f"--latest: run {run.folder} is finished; export its final weights, without --latest")
    weights = read_weights(run)
    if weights is None:
        raise ConfigError(f"--latest: run {run.folder} has no checkpoint yet")
    config = run.config
    policy = build_policy(config.model, config.optimizer, torch.device("cpu"), config.seed)
    with TemporaryDirectory(dir=run.checkpoints, prefix=".export-") as scratch:
        policy.save(Path(scratch), weights)
        yield Checkpoint(label_of(config), config, weights_in(Path(scratch)), run)


def _licence_of(checkpoint: Checkpoint, licence: str | None) -> Licence:
    if licence is not None:
        return Licence(licence)
    path = checkpoint.config.model.path
    base = find_published(path)
    if base is None:
        raise ConfigError(
            f"the licence of {path} is not known here: name it with  --license, as in --license apache-2.0"
        )
    return base.licence


def _merged_pipeline(checkpoint: Checkpoint, weights: Path) -> Any:
    from diffusers import DiffusionPipeline

    import harness.models.miniature  # noqa: F401 - diffusers takes its class only from a module that was imported

    model = checkpoint.config.model
    folder = find_pipeline(model.path)
    # As in training, text encoders alone are of lower precision. In bf16 the rounding of a weight is larger than what a
    # short training adds to it.
    encoders = [name for name in component_folders(folder) if name.startswith("text_encoder")]
    dtypes = {"default": torch.float32, **dict.fromkeys(encoders, DTYPES[model.precision])}
    try:
        pipeline = DiffusionPipeline.from_pretrained(folder, dtype=dtypes, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model.path: {folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    put = put_lora if checkpoint.is_lora else copy_weights
    put(pipeline.transformer, weights)
    pipeline.scheduler = with_shift(pipeline.scheduler, model.shift)
    return pipeline
