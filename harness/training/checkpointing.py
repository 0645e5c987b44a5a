"""Training state on disk: one file, and for engines that shard weights a folder beside it that all processes write.

A sharded tensor is an empty tensor on the device "meta" in ``state.pt``; its values are in ``shards/``, in the format
of torch.distributed.checkpoint, which any number of processes can read.
"""

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict_loader import load as read_shares
from torch.distributed.checkpoint.state_dict_saver import save as write_shares
from torch.distributed.tensor import DTensor, distribute_tensor

from harness.foundation.errors import ConfigError
from harness.foundation.records import last_logged
from harness.runs.checkpoints import folder_of, newest_whole, partial_of
from harness.runs.directory import RunDirectory
from harness.training.engine import Engine, flat
from harness.training.processes import Processes

_FOLDER, _SHARDS = "folder of shards", "shards"


def save_state(
    run: RunDirectory, state: Mapping[str, Any], processes: Processes, validation: float | None = None
) -> None:
    """Save the trainer's state as a checkpoint; if killed at any moment, it is complete or absent. Collective.

    ``validation`` is that of ``RunDirectory.save_checkpoint``.
    """
    shares = {path: tensor for path, tensor in flat(dict(state)).items() if isinstance(tensor, DTensor)}
    if shares:
        partial = partial_of(folder_of(run.checkpoints, state["iteration"]))
        if processes.is_main:
            shutil.rmtree(partial, ignore_errors=True)  # left by an interrupted save
            partial.mkdir(parents=True)
        processes.wait("beginning a checkpoint")
        with processes.at(f"the checkpoint of iteration {state['iteration']}"):
            write_shares(shares, checkpoint_id=partial / _SHARDS)
    if processes.is_main:
        run.save_checkpoint({**_hollow(state), _FOLDER: _SHARDS} if shares else state, validation)


def load_state(
    run: RunDirectory, engine: Engine, processes: Processes, before: int | None = None
) -> dict[str, Any] | None:
    """Load a run's checkpoint, saved by any number of processes, into an engine's tensors. Collective.

    The newest checkpoint that the log reaches is loaded, or the newest of an iteration before ``before``, whatever was
    logged. Its state is returned for the trainer's own part of it; None before the first checkpoint. Raises ConfigError
    if the shards are missing, or if the checkpoint is of another model.
    """
    # One process compares checksums and tells the others which checkpoint is complete.
    file = None
    if processes.is_main:
        file = newest_whole(run.checkpoints, before, last_logged(run.folder) if before is None else None)
    file = processes.broadcast(file, "choosing a checkpoint")
    state = None if file is None else run.load_checkpoint(file)
    if file is None or state is None:
        return None
    live, saved = engine.tensors(), _tensors_of(state)
    # Only moments may be missing: those of weights that have not been trained yet.
    apart = (saved.keys() - live.keys()) | {path for path in live.keys() - saved.keys() if "optimizer/" not in path}
    if apart:
        raise ConfigError(f"{file}: is of another model or setting; {min(apart)} is not in both")
    with torch.no_grad(), processes.at("loading the checkpoint"):
        for path, tensor in saved.items():
            if not tensor.is_meta:
                _put(live[path], tensor)
        _read_shards(file, state, {p: live[p] for p, tensor in saved.items() if tensor.is_meta})
    return state


def read_weights(run: RunDirectory) -> dict[str, Tensor] | None:
    """Unsharded weights of a run's newest checkpoint, by name; their averages if the run has any. For one process.

    None before the first checkpoint. Raises ConfigError if shards are missing.
    """
    file = newest_whole(run.checkpoints)
    state = None if file is None else run.load_checkpoint(file)
    if file is None or state is None:
        return None
    kind = "averages" if state["averages"] else "parameters"
    weights = {
        f"{kind}/{name}": torch.empty_like(tensor, device="cpu") if tensor.is_meta else tensor
        for name, tensor in state[kind].items()
    }
    _read_shards(file, state, {p: t for p, t in weights.items() if state[kind][p.partition("/")[2]].is_meta})
    return {path.partition("/")[2]: tensor for path, tensor in weights.items()}


def _tensors_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return flat({key: state[key] for key in ("parameters", "averages", "optimizer")})


def _hollow(state: Any) -> Any:
    """The same state, with an empty tensor on the device "meta" in place of each sharded one."""
    if isinstance(state, Mapping):
        return {key: _hollow(value) for key, value in state.items()}
    return torch.empty(state.shape, dtype=state.dtype, device="meta") if isinstance(state, DTensor) else state


def _put(target: Tensor, value: Tensor) -> None:
    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)


def _read_shards(path: Path, state: Mapping[str, Any], targets: dict[str, Tensor]) -> None:
    if not targets:
        return
    folder = path.with_name(state[_FOLDER])
    if not (folder / ".metadata").is_file():
        raise ConfigError(f"{folder}: is missing or not whole, but {path} needs it; copy both together")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is .* in a single process")
        read_shares(targets, checkpoint_id=folder)
