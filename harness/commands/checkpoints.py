"""Checkpoints: scored, drawn from, exported."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from harness.commands import Where, command, say
from harness.foundation.errors import ConfigError
from harness.foundation.places import WORK, from_here

if TYPE_CHECKING:
    from harness.trained.checkpoints import Checkpoint

Base = Annotated[str, "profile with base model and sampling settings, for a checkpoint that does not record its own"]
Pixels = Annotated[int | None, "size in pixels (default: the checkpoint's)"]
Steps = Annotated[int | None, "number of Euler steps (default: the checkpoint's)"]


@command
def evaluate(
    checkpoints: Annotated[
        Sequence[str], "run directory, exported folder, LoRA file, transformer folder, pipeline folder, or base"
    ],
    *,
    prompts: Annotated[str | None, "prompt list to score on (default: the first checkpoint's test list)"] = None,
    suite: Annotated[
        Literal["drawbench", "partiprompts", "geneval", "ocr"] | None,
        "benchmark that the list in --prompts belongs to; sets its rewards and its pictures per prompt",
    ] = None,
    rewards: Annotated[
        str | None, "comma-separated rewards, by name or as my.py:Reward (default: all that can score here)"
    ] = None,
    noises: Annotated[int | None, "pictures per prompt (default: the benchmark's, else the configuration's)", 1] = None,
    grid_prompts: Annotated[int, "number of prompts in grid.png", 0] = 4,
    output: Annotated[Path | None, "output folder (default: one in results/evaluations/)"] = None,
    profile: Base = "miniature",
    height: Pixels = None,
    width: Pixels = None,
    steps: Steps = None,
    device: Where = "auto",
) -> int:
    """Score checkpoints on a prompt list or a benchmark with every available reward, and make a contact sheet.

    Example: ``adagrpo evaluate base RUN``
    """
    from harness.config import RewardConfig
    from harness.config.plugins import declare
    from harness.prompts.lists import read_prompts
    from harness.rewards.readiness import choose_rewards
    from harness.trained.benchmark import Benchmark, default_folder, left_out, table
    from harness.trained.checkpoints import find_checkpoint
    from harness.trained.loading import device_of
    from harness.trained.suites import SUITES, Suite, geneval_metadata, read_suite

    where = device_of(device)
    chosen = SUITES[suite] if suite else Suite(None)
    if chosen.file and not prompts:
        raise ConfigError(f"--suite {suite}: give its list, {chosen.file}, by --prompts FILE")
    found = [_as_evaluated(find_checkpoint(name, profile)).sampled(height, width, steps) for name in checkpoints]
    config = found[0].config
    file = from_here(prompts) if prompts else config.prompts.test
    listed, repeated = read_suite(Path(file)) if chosen.file else (read_prompts(file), 0)
    if repeated:
        say(f"{repeated} of {repeated + len(listed.prompts)} prompts repeat an earlier one, and count once")
    metadata = geneval_metadata(Path(file), listed.prompts) if suite == "geneval" else []
    names = chosen.rewards if rewards is None else rewards.split(",")
    declared = declare({"evaluation": {"judges": list(names or ())}})
    settings = config.rewards | {name: RewardConfig(**own) for name, own in declared.get("rewards", {}).items()}
    wanted = None if names is None else declared["evaluation"]["judges"]
    size = config.model.height, config.model.width
    panel = choose_rewards(wanted, listed.prompts, *size, settings, config.runtime.threads)
    try:
        pictures = noises or chosen.num_noises or config.evaluation.test_noises
        benchmark = Benchmark(listed, panel, pictures, grid_prompts, suite or "Evaluation", metadata)
        folder = output or default_folder(benchmark, found, WORK / "results" / "evaluations")
        for line in left_out(panel):
            say(line)
        scores = benchmark.run(found, where, folder, say=say)
    finally:
        panel.close()
    print("\n".join(["", *table(scores), "", f"written to {folder}"]))
    if metadata:
        print(f"for GenEval's score run its evaluate_images.py, with its object detector, on {folder / 'geneval'}/*")
    return 0


def _as_evaluated(checkpoint: "Checkpoint") -> "Checkpoint":
    """The checkpoint with the size and number of steps of its configuration's evaluations."""
    settings = checkpoint.config.evaluation
    return checkpoint.sampled(settings.height, settings.width, settings.num_steps)


@command
def sample(
    checkpoint: Annotated[str, "run directory, exported folder, LoRA file, transformer or pipeline folder, or base"],
    *,
    prompt: Annotated[tuple[str, ...], "prompt to draw; may be repeated"] = (),
    prompts: Annotated[str | None, "prompt list to draw instead"] = None,
    seed: Annotated[tuple[int, ...], "seed of the initial noise; may be repeated (default: 3407)", 0, 2**63] = (),
    output: Annotated[Path, "folder to write to"],
    profile: Base = "miniature",
    height: Pixels = None,
    width: Pixels = None,
    steps: Steps = None,
    device: Where = "auto",
) -> int:
    """Draw pictures from a checkpoint and write them as PNG files.

    Example: ``adagrpo sample RUN --prompt 'the word "facet" in purple on pink' --output drawn``
    """
    from harness.models.pipelines.truncation import truncations
    from harness.prompts.lists import normalise, problem_with, read_prompts
    from harness.trained.checkpoints import find_checkpoint
    from harness.trained.loading import device_of, load_policy
    from harness.trained.pictures import SEEDS, write_pictures

    if bool(prompt) == bool(prompts):
        raise ConfigError("give prompts either by --prompt TEXT or by --prompts FILE")
    texts = read_prompts(from_here(prompts)).prompts if prompts else tuple(map(normalise, prompt))
    for text in texts:
        if problem := problem_with(text):
            raise ConfigError(f"--prompt {text[:40]!r}: is {problem}")
    where = device_of(device)
    found = find_checkpoint(checkpoint, profile).sampled(height, width, steps)
    policy = load_policy(found, where, texts)
    for line in truncations([policy], texts, "prompts"):
        print(f"warning: {line}", file=sys.stderr)
    for path in write_pictures(policy, texts, seed or SEEDS[:1], output, found.label):
        say(path)
    return 0


@command
def export(
    run: Annotated[Path, "directory of a finished run, or of any run with --latest"],
    *,
    output: Annotated[Path, "new folder to write to"],
    latest: Annotated[bool, "export the latest checkpoint of a run that is not finished"] = False,
    merge: Annotated[bool, "write the whole pipeline, with the trained weights merged in"] = False,
    license: Annotated[str | None, "licence identifier for the model card (default: the base model's)"] = None,
) -> int:
    """Export a run's LoRA or transformer for plain diffusers, with a model card.

    Example: ``adagrpo export RUN --output lora``
    """
    from harness.trained.checkpoints import find_run_checkpoint
    from harness.trained.export import export as written
    from harness.trained.export import latest_weights

    with latest_weights(run) if latest else nullcontext(find_run_checkpoint(run)) as checkpoint:
        form = written(checkpoint, output, merge=merge, licence=license)
    print(f"{form} with model card: {output}")
    return 0
