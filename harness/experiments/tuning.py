"""A study's tuning: what its runs choose for each method, and the method files that say so."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.cells.logs import load_logs
from analysis.cells.tuning import Tuned, chosen_settings, tuning_table
from analysis.claims import PILOT_SEEDS, VALIDATION_POINTS
from harness import config
from harness.config import ConfigError, read_experiment
from harness.experiments.study import Study
from harness.foundation.files import read_text, write_atomically


def write_tuned(study: Study) -> list[str]:
    """Write what tuning chose into the method files of the other experiments; returns a line about each.

    Raises:
        ConfigError: as ``_tuning``.
    """
    table, chosen = _tuning(study)
    mean = f"mean of the last {VALIDATION_POINTS} validations, over pilot seeds {', '.join(map(str, PILOT_SEEDS))}"
    lines = []
    for kernel, setting in chosen.items():
        of_setting = table[table["method"] == kernel].groupby(["eta", "learning_rate"], as_index=False)
        means = of_setting.agg(mean=("value", "mean"), seeds=("seed", "size")).sort_values("mean", ascending=False)
        evidence = [
            f"Chosen by adagrpo study tuning: {mean}",
            *(
                f"eta {row['eta']:g}, {row['learning_rate']:g}: {row['mean']:.4f} ({row['seeds']} seeds)"
                for row in means.to_dict("records")
            ),
        ]
        path, text = _file(kernel), tuned_text(kernel, *setting, evidence)
        if read_text(path) != text:
            write_atomically(path, text)
        lines.append(f"{kernel}: eta {setting.eta:g}, learning rate {setting.learning_rate:g} ({path})")
    return lines


def require_tuned(study: Study) -> None:
    """Raise ConfigError unless the method files have what tuning chose."""
    if study.file.tuning is None:
        return
    for kernel, setting in _tuning(study)[1].items():
        content = read_experiment(_file(kernel))
        if (content["method"]["eta"], content["optimizer"]["learning_rate"]) != setting:
            raise ConfigError(
                f"{_file(kernel)}: not what tuning chose, eta {setting.eta:g} and learning rate "
                f"{setting.learning_rate:g}; write it with  adagrpo study {study.file.tuning}"
            )


def tuned_text(kernel: str, eta: float, learning_rate: float, evidence: Sequence[str]) -> str:
    """Content of a method file that extends a kernel's with the settings chosen; ``evidence`` says why, in comments."""
    mantissa, e, exponent = f"{learning_rate:g}".partition("e")
    # YAML 1.1 knows a float by its dot, even before an exponent.
    rate = f"{mantissa}.0{e}{exponent}" if e and "." not in mantissa else f"{learning_rate:g}"
    comment = "".join(f"# {line}\n" for line in evidence)
    return f"{comment}extends: {kernel}\nmethod: {{eta: {eta:g}}}\noptimizer: {{learning_rate: {rate}}}\n"


def _file(kernel: str) -> Path:
    return config.EXPERIMENTS / "methods" / f"study_{kernel}.yaml"


def _tuning(study: Study) -> tuple[pd.DataFrame, dict[str, Tuned]]:
    """The values of all tuning runs and what they choose; ConfigError while one is left."""
    assert study.file.tuning is not None
    again = f"run  adagrpo study {study.file.tuning}"
    configs = study.configs(study.file.tuning)
    planned = study.planned(configs)
    # A run that diverged has no value; its setting is out.
    left = [one for one in planned if not one.is_kept and one.run.status()["state"] != "failed"]
    if left:
        raise ConfigError(f"tuning comes first, and {len(left)} of its {len(planned)} runs are left: {again}")
    folders = {one.shard.parent for one in planned if one.is_kept}
    if len(folders) != 1:
        raise ConfigError(f"tuning: no run of it has finished: {again}")
    table = tuning_table(load_logs(folders.pop(), ()))
    table = table[table["run_id"].isin([one.run.run_id for one in planned])]
    chosen = chosen_settings(table)
    if without := sorted({config.method.kernel for config in configs} - set(chosen)):
        raise ConfigError(f"tuning: no setting of {', '.join(without)} finished with every pilot seed")
    return table, chosen
