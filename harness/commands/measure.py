"""Measurements without training: gradients at fixed checkpoints, and whether choosing prompts can matter."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from harness.commands import Where, command, say
from harness.foundation.errors import ConfigError
from harness.foundation.places import WORK


@command
def oracle(
    overrides: Annotated[Sequence[str], "settings of the run, as in adagrpo train"] = (),
    *,
    profile: Annotated[str, "profile of the run"] = "miniature",
    checkpoint: Annotated[str, "run directory, or base for the untrained model"] = "base",
    references: Annotated[int, "number of training prompts behind the reference direction", 2] = 512,
    prompts: Annotated[int, "number of training prompts to choose from", 2] = 96,
    noises: Annotated[int, "number of initial noises per prompt", 2] = 6,
    output: Annotated[Path | None, "output folder (default: results/oracle)"] = None,
) -> int:
    """Estimate an upper bound of what choosing prompts could gain, one update ahead; resumable.

    Example: ``adagrpo oracle --profile miniature``
    """
    from harness.experiments.gradients.oracle import load_oracle, measure
    from harness.experiments.upper_bound import write_upper_bound
    from harness.foundation.files import make_folder, read_text, write_atomically

    loaded = load_oracle(profile, overrides, checkpoint, references, prompts, noises)
    folder = output or WORK / "results" / "oracle"
    table = folder / f"{loaded.name}.json"
    if not table.exists():
        make_folder(folder)
        table_of = {key: json.dumps(value) for key, value in measure(loaded, say).items()}
        write_atomically(table, "{" + ",\n".join(f'"{key}": {value}' for key, value in table_of.items()) + "}\n")
    elif json.loads(read_text(table))["identity"] != loaded.identity:
        raise ConfigError(f"{table}: is of another measurement; name a folder with --output, or delete it")
    print(f"{write_upper_bound(folder)}\nwritten to {folder}")
    return 0


@command
def probe(
    overrides: Annotated[Sequence[str], "settings of the run, as in adagrpo train"] = (),
    *,
    profile: Annotated[str, "profile of the run"] = "miniature",
    models: Annotated[Sequence[str], "names of files in experiments/models/ (default: the profile's own)"] = (),
    prompts: Annotated[int, "number of prompts, from the start of the validation list", 2] = 64,
    noises: Annotated[int, "number of deterministic samples per prompt", 2] = 8,
    # Seven blocks of rounds: of fewer, some resample has one alone, and no interval is defined.
    gradients: Annotated[
        int | None, "also measure how parallel strategies' updates are, over this many rounds of candidates", 42
    ] = None,
    output: Annotated[Path | None, "output folder (default: results/probes/PROFILE)"] = None,
    device: Where = "auto",
) -> int:
    """Estimate whether choosing prompts is worth it with this model, reward and prompts, without training; resumable.

    Example: ``adagrpo probe --profile miniature``
    """
    from analysis.probing.summary import choices_table, table
    from analysis.report.probe import probe_page
    from harness.experiments.gradients.parallel import load_parallel, measure_parallel
    from harness.experiments.probe import gradients_kept, load_probe, measure
    from harness.foundation.files import make_folder, write_atomically
    from harness.trained.loading import device_of

    named: Sequence[str | None] = models or [None]
    probes = [load_probe(profile, overrides, model, prompts, noises) for model in named]
    parallel = [load_parallel(profile, overrides, model) for model in named if gradients]
    folder, where = output or WORK / "results" / "probes" / Path(profile).stem, device_of(device)
    make_folder(folder)
    summaries: dict[str, dict[str, Any]] = {}
    for number, one in enumerate(probes):
        say(f"{one.name}: {one.num_pictures:,} pictures")
        content = measure(one, where, say)
        path = folder / f"probe-{one.name}.json"
        if gradients:
            content["gradients"] = measure_parallel(parallel[number], gradients, where, say)
        else:
            content |= gradients_kept(path, content)
        summaries[one.name] = content["summary"]
        text = json.dumps(content, indent=1)
        write_atomically(path, f"{text}\n")
        write_atomically(folder / f"probe-{one.name}.html", probe_page(one.name, json.loads(text)))
    tables = f"{table(summaries)}\n{choices_table(summaries)}"
    write_atomically(folder / "probe.md", tables)
    print(f"\n{tables}")
    for name, found in summaries.items():
        print("{}: {answer}: {reason}".format(name, **found["verdict"]))
    print(f"written to {folder}")
    return 0
