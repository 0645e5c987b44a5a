"""The state of training on disk: one file, and where processes hold shares, a folder beside it that all of them write.

``checkpoints/latest.pt`` is what counts: it is replaced in one step, once all that belongs to it is there. A tensor
that is shared out is an empty one on the device "meta" in it; its numbers are in ``checkpoints/shards-ITERATION``, in
the format of torch.distributed.checkpoint, which any number of processes can read.
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
from harness.foundation.files import file_sha256
from harness.runs.directory import RunDirectory
from harness.training.engine import Engine, flat
from harness.training.processes import Processes

_FOLDER = "folder of shards"
_DIGESTS = "sha256 of shards"


def save_state(run: RunDirectory, state: Mapping[str, Any], processes: Processes) -> None:
    """Replace a run's checkpoint; a kill at any moment leaves the old one or the new one. An exchange.

    Args:
        run: whose.
        state: of a trainer.
        processes: all that train.
    """
    shares = {path: tensor for path, tensor in flat(dict(state)).items() if isinstance(tensor, DTensor)}
    folder = run.checkpoint_path.with_name(f"shards-{state['iteration']:05d}")
    if shares:
        if processes.is_main:
            shutil.rmtree(folder, ignore_errors=True)  # of a save that was cut off
        processes.wait("beginning a checkpoint")
        with processes.at(f"the checkpoint of iteration {state['iteration']}"):
            write_shares(shares, checkpoint_id=folder)
    if processes.is_main:
        content = dict(state)
        if shares:
            digests = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
            content = {**_hollow(state), _FOLDER: folder.name, _DIGESTS: digests}
        run.save_checkpoint(content)
        for old in run.checkpoint_path.parent.glob("shards-*"):
            if not shares or old != folder:
                shutil.rmtree(old)


def load_state(run: RunDirectory, engine: Engine, processes: Processes) -> dict[str, Any] | None:
    """Load a run's checkpoint into an engine, whoever saved it; the rest of a trainer's state. An exchange.

    Args:
        run: whose.
        engine: in whose tensors the checkpoint's are put.
        processes: all that train.

    Returns:
        The state, without what the engine has now; None before the first checkpoint.

    Raises:
        ConfigError: the shards are missing, or the checkpoint is of another model.
    """
    state = run.load_checkpoint()
    if state is None:
        return None
    live, saved = engine.tensors(), _tensors_of(state)
    # Moments alone may be missing: those of weights that have not been trained yet.
    apart = (saved.keys() - live.keys()) | {path for path in live.keys() - saved.keys() if "optimizer/" not in path}
    if apart:
        raise ConfigError(f"{run.checkpoint_path}: is of another model or setting; {min(apart)} is not in both")
    with torch.no_grad(), processes.at("loading the checkpoint"):
        for path, tensor in saved.items():
            if not tensor.is_meta:
                _put(live[path], tensor)
        # Once is enough: all processes read the same files.
        _read_shards(run, state, {p: live[p] for p, tensor in saved.items() if tensor.is_meta}, processes.is_main)
    return state


def read_weights(run: RunDirectory) -> dict[str, Tensor] | None:
    """The weights in training of a run's checkpoint, whole, by name; averaged, if the run averages. In one process.

    None before the first checkpoint. Raises ConfigError if shards are missing.
    """
    state = run.load_checkpoint()
    if state is None:
        return None
    kind = "averages" if state["averages"] else "parameters"
    weights = {
        f"{kind}/{name}": torch.empty_like(tensor, device="cpu") if tensor.is_meta else tensor
        for name, tensor in state[kind].items()
    }
    _read_shards(run, state, {p: t for p, t in weights.items() if state[kind][p.partition("/")[2]].is_meta})
    return {path.partition("/")[2]: tensor for path, tensor in weights.items()}


def _tensors_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return flat({key: state[key] for key in ("parameters", "averages", "optimizer")})


def _hollow(state: Any) -> Any:
    """The same state, with an empty tensor in place of each share."""
    if isinstance(state, Mapping):
        return {key: _hollow(value) for key, value in state.items()}
    return torch.empty(state.shape, dtype=state.dtype, device="meta") if isinstance(state, DTensor) else state


def _put(target: Tensor, value: Tensor) -> None:
    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)


def _read_shards(
    run: RunDirectory, state: Mapping[str, Any], targets: dict[str, Tensor], is_checked: bool = True
) -> None:
    if not targets:
        return
    folder: Path = run.checkpoint_path.with_name(state[_FOLDER])
    if not (folder / ".metadata").is_file():
        raise ConfigError(f"{folder}: is missing or not whole, but {run.checkpoint_path} needs it; copy both together")
    for name, digest in state.get(_DIGESTS, {}).items() if is_checked else ():
        if not (folder / name).is_file() or file_sha256(folder / name) != digest:
            raise ConfigError(
                f"{folder / name}: is damaged or missing; put back a copy, or delete {run.checkpoint_path}"
            )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is .* in a single process")
        read_shares(targets, checkpoint_id=folder)
