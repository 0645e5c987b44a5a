"""What pictures can be drawn from: a run's final weights, LoRA or transformer files, an exported folder, a base."""

from dataclasses import dataclass, replace
from pathlib import Path

from harness.config import ConfigError, ModelConfig, RunConfig, compose, load
from harness.config.cells import cell_name
from harness.foundation.records import require_sealed
from harness.runs.directory import RunDirectory

LORA_FILE = "pytorch_lora_weights.safetensors"
"""Where diffusers' ``save_lora_weights`` puts adapters and ``load_lora_weights`` looks for them."""

BASE = "base"
"""Names the untouched model of a profile."""

_KINDS = (
    f"{BASE!r}, a run directory, an exported folder, a LoRA file or folder, a transformer folder, or a pipeline folder"
)


@dataclass(frozen=True)
class Checkpoint:
    """A base model, what was trained on it, and how its pictures are drawn."""

    label: str
    """How tables and pictures call it."""
    config: RunConfig
    """Whose ``model`` names the base and how to sample from it; prompts and rewards are defaults for an evaluation."""
    weights: Path | None = None
    """A LoRA file, or a transformer folder; None is the base itself."""
    run: RunDirectory | None = None

    @property
    def is_lora(self) -> bool:
        """Whether the weights are adapters."""
        return self.weights is not None and self.weights.suffix == ".safetensors"

    def sampled(
        self, height: int | None = None, width: int | None = None, num_steps: int | None = None
    ) -> "Checkpoint":
        """The same, drawn at another size (pixels) or with another number of steps; None keeps the configuration's.

        Raises:
            ConfigError: a value out of range, or a size that is no multiple of 16 pixels.
        """
        given = {"height": height, "width": width, "num_steps": num_steps}
        changes = {key: value for key, value in given.items() if value is not None}
        for key, value in changes.items():
            # Eight pixels per latent, two latents per token; a smaller rest would be cut off in silence.
            needed = "at least 2" if key == "num_steps" else "a multiple of 16"
            if value < 2 or (key != "num_steps" and value % 16):
                raise ConfigError(f"{key}={value}: must be {needed}")
        model = ModelConfig.model_validate(self.config.model.model_dump() | changes)
        return replace(self, config=self.config.model_copy(update={"model": model}))


def find_checkpoint(name: str, profile: str) -> Checkpoint:
    """The checkpoint that a name on the command line means.

    Args:
        name: ``base``, or a path. Run directories and exported folders know their base model and how to sample.
        profile: names these for the others.

    Raises:
        ConfigError: nothing of the kind is there, a run has not finished, or the profile is unknown.
    """
    if name == BASE:
        return Checkpoint(f"base ({profile})", compose(profile))
    path = Path(name).resolve()
    if (path / "status.json").is_file():
        return find_run_checkpoint(path)
    if not path.exists():
        raise ConfigError(f"checkpoint {name}: no such file or folder; it can be {_KINDS}")
    if (path / "config.yaml").is_file():
        config = load(path / "config.yaml")
        label = label_of(config)
    else:
        config, label = compose(profile), path.stem if path.is_file() else path.name
    if (path / "model_index.json").is_file():
        # Trained weights may be merged into its own: in bf16 they would be rounded away.
        is_merged = (path / "config.yaml").is_file()
        precision = "fp32" if is_merged else config.model.precision
        model = config.model.model_copy(update={"path": str(path), "precision": precision})
        return Checkpoint(label, config.model_copy(update={"model": model}))
    weights = weights_in(path)
    if weights is None:
        raise ConfigError(f"checkpoint {name}: has no weights to load; it can be {_KINDS}")
    return Checkpoint(label, config, weights)


def find_run_checkpoint(folder: Path) -> Checkpoint:
    """The final weights of a run. Raises ConfigError if the folder is no run directory, or the run not finished."""
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
    """The run of a directory. Raises ConfigError if it is none."""
    run = RunDirectory(folder.resolve())
    if not (run.folder / "config.yaml").is_file() or not (run.folder / "status.json").is_file():
        raise ConfigError(f"{folder}: is no run directory (it needs config.yaml and status.json)")
    return run


def label_of(config: RunConfig) -> str:
    """How tables and pictures call a run's weights."""
    return f"{cell_name(config)}, seed {config.seed}"


def weights_in(path: Path) -> Path | None:
    """The LoRA file or transformer folder that a path is or holds."""
    if path.is_file():
        return path if path.suffix == ".safetensors" else None
    if (path / LORA_FILE).is_file():
        return path / LORA_FILE
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    return folder if any(folder.glob("diffusion_pytorch_model*.safetensors")) else None
