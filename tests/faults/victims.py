"""What is killed: real commands on the miniature, each in a process of its own: ``python -m tests.faults.victims``."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import harness.foundation.places as places
from harness.cli import main
from harness.config import ROOT
from harness.foundation.records import LOGS, read_lines
from harness.runs.directory import RunDirectory
from tests.harness.conftest import begin

SHORT = [
    "iterations=8",
    "reward={colour: 1}",
    "rollout.candidates=3",
    "rollout.group_size=4",
    "rollout.branch_indices=[1, 2]",
    "evaluation.interval=4",
    "evaluation.judges=[colour]",
    "evaluation.validation_prompts=8",
    "evaluation.gallery=2",
    "runtime.checkpoint_interval=2",
    "runtime.device=cpu",
    "model.execution={compile: never}",
]
KINDS = {
    "plain": ["selection=curriculum", "fusion.enabled=true"],
    "weight EMA": ["optimizer.weight_ema=0.9"],
    "clipped, two updates": [
        "objective.clip_range=1e-4",
        "objective.updates_per_iteration=2",
        "objective.update_on=steps",
    ],
    "two processes": ["runtime.processes=2", "rollout.prompts_per_iteration=2", "model.max_batch=2"],
}


def prepared(folder: Path, *overrides: str) -> RunDirectory:
    """A short run in a folder of its own."""
    return begin(folder, *SHORT, *overrides)


def train(folder: Path, kind: str, *overrides: str) -> None:
    """``adagrpo train``, or ``launch`` for several processes."""
    run = prepared(folder, *KINDS[kind], *overrides)
    if kind == "two processes":
        command = [sys.executable, "-m", "harness.cli", "launch", "--resume", str(run.folder)]
        sys.exit(subprocess.run(command, cwd=ROOT, check=False).returncode)
    main(["train", "--resume", str(run.folder)])


def train_remote(folder: Path, url: str) -> None:
    """The plain run with its reward at a server."""
    served = ["rewards.colour.backend=url", f"rewards.colour.url={url}", "rewards.colour.timeout_seconds=120"]
    main(["train", "--resume", str(prepared(folder, *KINDS["plain"], *served).folder)])


def grid(folder: Path) -> None:
    """Three runs by two workers, as ``adagrpo grid`` does."""
    from harness.experiments.runs import run_all

    runs = [prepared(folder, *KINDS["plain"], f"seed={seed}") for seed in range(3)]
    sys.exit(1 if run_all(runs, 2, lambda line: print(line, flush=True)).failed else 0)


def sweep(folder: Path) -> None:
    """Four trials by two workers."""
    name, storage = f"faults-{folder.parent.parent.name}-{folder.name}", f"sqlite:///{folder}/study.db"
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--name", name, "--storage", storage, "--slots", "2", "--trials", "4"]
    words = ["experiments/sweeps/smoke.yaml", *options, "--output", str(folder / "report")]
    main(["sweep", *words, *SHORT])


def gradients(folder: Path) -> None:
    """Parts of a measurement of gradients, kept in its folder, and its table."""
    from harness.experiments.gradients import oracle

    oracle.RUNS = folder / "parts"
    size = ["--references", "4", "--prompts", "3", "--noises", "2", "--output", str(folder / "out")]
    small = ["reward={colour: 1}", "rollout={candidates: 2, group_size: 2, branch_indices: [1, 2]}"]
    small += ["evaluation.judges=[colour]", "model.execution={compile: never}"]
    main(["oracle", "--profile", "miniature-luck", *size, *small])


def export(folder: Path, run: str) -> None:
    """A finished run's weights, merged into a pipeline."""
    if not (folder / "out").exists():
        main(["export", run, "--output", str(folder / "out"), "--merge"])


def shards(folder: Path, runs: str) -> None:
    """Finished runs as small files."""
    main(["shards", runs, "--output", str(folder / "out")])


def pretraining(folder: Path) -> None:
    """Two stages, of which the second is saved on the way, too."""
    from harness.models.miniature.defects import Strikes
    from harness.models.miniature.pretrain import pretrain
    from harness.models.miniature.recipes import Recipe, Stage

    stages = (Stage("clean", 40, 1e-3, Strikes()), Stage("mixed", 30, 1e-3, Strikes(0.5), kept=((10, "weak"),)))
    for line in pretrain(Recipe(stages, batch_size=8, warmup_steps=4, pictures=64, save_every=5), folder / "out"):
        print(line, flush=True)


def outcome(folder: Path) -> dict[str, str]:
    """Hashes of what must be the same after any kills: weights, pictures, tables, and logs without seconds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name in LOGS:
            lines = [{k: v for k, v in line.items() if k not in ("seconds",)} for line in read_lines(path)]
            found[name] = hashlib.sha256(json.dumps(lines).encode()).hexdigest()
        elif path.is_file() and _is_lasting(name):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _is_lasting(name: str) -> bool:
    if "/final/" in name or "/images/" in name:
        return True
    beside = name.endswith(("-state.pt", ".md", "about.json", "environment.json", ".html", ".lock"))
    return name.startswith("out/") and not beside


VICTIMS: dict[str, Callable[..., None]] = {
    "train": train, "train_remote": train_remote, "grid": grid, "sweep": sweep, "gradients": gradients,
    "export": export, "shards": shards, "pretraining": pretraining,
}  # fmt: skip


if __name__ == "__main__":
    assert places.IS_CHECKOUT
    VICTIMS[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
