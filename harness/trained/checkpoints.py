"""Checkpoints to draw from: a run's final weights, LoRA or transformer files, an exported folder, a base model."""

from dataclasses import dataclass, replace
from pathlib import Path

from harness.config import ConfigError, ModelConfig, RunConfig, compose, load, validated
from harness.config.cells import cell_name
from harness.foundation.records import require_sealed
from harness.runs.directory import RunDirectory

LORA_FILE = "pytorch_lora_weights.safetensors"
"""File to which diffusers' ``save_lora_weights`` writes adapters, and from which ``load_lora_weights`` reads them."""

BASE = "base"
"""Name of the untrained model of a profile."""

_KINDS = (
    f"{BASE!r}, a run directory, an exported folder, a LoRA file or folder, a transformer folder, or a pipeline folder"
)


@dataclass(frozen=True)
class Checkpoint:
    """A base model, weights that were trained on it, and how pictures are sampled from it."""

    label: str
    """Name in tables and pictures."""
    config: RunConfig
    """Its ``model`` names the base and the sampling settings; prompts and rewards are defaults for an evaluation."""
    weights: Path | None = None
    """LoRA file or transformer folder; None for the base itself."""
    run: RunDirectory | None = None

    @property
    def is_lora(self) -> bool:
        """Whether the weights are adapters."""
        return self.weights is not None and self.weights.suffix == ".safetensors"

    def sampled(
        self, height: int | None = None, width: int | None = None, num_steps: int | None = None
    ) -> "Checkpoint":
        """The same checkpoint with another size (pixels) or number of steps; None keeps the configuration's.

        Raises:
            ConfigError: a value is out of range.
        """
        given = {"height": height, "width": width, "num_steps": num_steps}
        changes = {key: value for key, value in given.items() if value is not None}
        model = validated(ModelConfig, self.config.model.model_dump() | changes, self.label)
        return replace(self, config=self.config.model_copy(update={"model": model}))


def find_checkpoint(name: str, profile: str) -> Checkpoint:
    """Find the checkpoint that a name on the command line refers to.

    Args:
        name: ``base``, or a path. Run directories and exported folders have their own base model and sampling settings.
        profile: profile with these for other checkpoints.

    Raises:
        ConfigError: there is no such checkpoint, its run has not finished, or the profile is unknown.
    """
    if name == BASE:
        return Checkpoint(f"base ({profile})", compose(profile))
    path = Path(name).resolve()
    if (path / "status.json").is_file():
        return find_run_checkpoint(path)
    if not path.exists():
        raise ConfigError(f"checkpoint {name}: no such file or folder; it can be {_KINDS}")
    is_export = (path / "config.yaml").is_file()
    config = load(path / "config.yaml") if is_export else compose(profile)
    label = label_of(config) if is_export else path.stem if path.is_file() else path.name
    if (path / "model_index.json").is_file():
        # Trained weights may be merged into the transformer: in 16 or 4 bits they would be rounded away.
        exact = {"precision": "fp32", "quantise": "none"} if is_export else {}
        model = config.model.model_copy(update={"path": str(path), **exact})
        return Checkpoint(label, config.model_copy(update={"model": model}))
    weights = weights_in(path)
    if weights is None:
        raise ConfigError(f"checkpoint {name}: has no weights to load; it can be {_KINDS}")
    return Checkpoint(label, config, weights)


def find_run_checkpoint(folder: Path) -> Checkpoint:
    """Checkpoint of a run's final weights. Raises ConfigError if it is no run directory, or the run is not finished."""
    run = run_in(folder)
    config, status = run.config, run.status()
    weights = weights_in(run.folder / "checkpoints" / "final")
    if weights is None:
        raise ConfigError(
            f"run {run.folder}: has no final weights yet (iteration {status['iteration']} of {config.iterations}, "
            f"{status['state']}); finish it with  adagrpo train --resume {run.folder}  or use  adagrpo export --latest"
        )
    for file in [weights] if weights.is_file() else sorted(weights.iterdir()):
        require_sealed(file, status.get("files", {}), file.relative_to(run.folder).as_posix())
    return Checkpoint(label_of(config), config, weights, run)


def run_in(folder: Path) -> RunDirectory:
    """Run in a directory. Raises ConfigError if it is not a run directory."""
    run = RunDirectory(folder.resolve())
    if not (run.folder / "config.yaml").is_file() or not (run.folder / "status.json").is_file():
        raise ConfigError(f"{folder}: is no run directory (it needs config.yaml and status.json)")
    return run


def label_of(config: RunConfig) -> str:
    """Name of a run's weights in tables and pictures."""
    return f"{cell_name(config)}, seed {config.seed}"


def weights_in(path: Path) -> Path | None:
    """LoRA file or transformer folder that a path is or contains; None if there is neither."""
    if path.is_file():
        return path if path.suffix == ".safetensors" else None
    if (path / LORA_FILE).is_file():
        return path / LORA_FILE
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    return folder if any(folder.glob("diffusion_pytorch_model*.safetensors")) else None
