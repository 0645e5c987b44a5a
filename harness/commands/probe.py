"""``adagrpo probe``: can choosing prompts matter, with this model, reward and prompt list?"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from harness.commands import Commands
from harness.foundation.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "probe",
        help="how much of the reward is the prompt's, how prompts and groups spread: without training",
        usage="adagrpo probe [--profile PROFILE] [KEY=VALUE ...] [options]",
        description="Sample an untrained model on validation prompts, write probe-MODEL.json and probe.md.",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as in adagrpo train")
    parser.add_argument("--profile", default="miniature", help="of the run (default: miniature)")
    parser.add_argument(
        "--models", nargs="+", metavar="MODEL", help="files in experiments/models/ (default: the profile's own)"
    )
    parser.add_argument("--prompts", type=int, default=64, help="from the validation list's start (default: 64)")
    parser.add_argument("--noises", type=int, default=8, help="deterministic samples a prompt (default: 8)")
    parser.add_argument("--output", type=Path, help="folder (default: results/probes/PROFILE)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.set_defaults(command=probe)


def probe(options: argparse.Namespace) -> int:
    """Measure each model, write its numbers, and one table of all."""
    if options.prompts < 2 or options.noises < 2:
        raise ConfigError("--prompts and --noises must be at least 2: a variance needs two values")

    import torch

    from analysis.probing import summary, table
    from harness.config import ROOT, compose
    from harness.foundation.files import write_atomically
    from harness.prompts.lists import read_prompts
    from harness.runs.directory import environment
    from harness.trained import probe as probing
    from harness.trained.loading import device_of

    configs = {
        model: compose(options.profile, overrides=options.overrides, model=model) for model in options.models or [None]
    }
    lists = {model: read_prompts(config.prompts.validation) for model, config in configs.items()}
    for config, found in zip(configs.values(), lists.values(), strict=True):
        if len(found.prompts) < options.prompts:
            raise ConfigError(
                f"--prompts {options.prompts}: {config.prompts.validation} has {len(found.prompts)} prompts"
            )
    folder = options.output or ROOT / "results" / "probes" / Path(options.profile).stem
    device = device_of(options.device)
    summaries = {}
    for model, config in configs.items():
        torch.set_num_threads(config.runtime.threads)
        name = model or Path(config.model.path).name
        pictures = probing.num_pictures(config, options.prompts, options.noises)
        print(f"{name}: {pictures:,} pictures", flush=True)
        prompts = lists[model].prompts[: options.prompts]
        probed = probing.probe(config, prompts, options.noises, device, lambda line: print(line, flush=True))
        judged = {judge: values.tolist() for judge, values in probed.judged.items()}
        summaries[name] = summary(probed.rewards, probed.groups, judged)
        content = {
            "profile": options.profile,
            "overrides": options.overrides,
            "model": config.model.path,
            "prompts_sha256": lists[model].sha256,
            "summary": summaries[name],
            "environment": environment(),
            "prompts": prompts,
            "rewards": _rounded(probed.rewards),
            "groups": _rounded(probed.groups),
        }
        write_atomically(folder / f"probe-{name}.json", json.dumps(content, indent=1) + "\n")
    lines = table(summaries)
    write_atomically(folder / "probe.md", "\n".join(lines) + "\n")
    print("\n".join(["", *lines, "", f"written to {folder}"]))
    return 0


def _rounded(values: "Tensor") -> list[object]:
    """As nested lists, to the fourth digit: what a score holds."""
    rounded: list[object] = (values * 1e4).round().div(1e4).tolist()
    return rounded
