"""Where a training run's time goes, from stacks that py-spy has sampled of it.

py-spy record --nonblocking --rate 40 --duration 600 --format raw --output stacks.txt --pid PID
python -m tests.benchmarks.profile stacks.txt results/benchmarks/profile.csv
"""

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from analysis.formats import write_frame

PARTS = {
    "recogniser": ("onnxruntime_inference_collection.py", "openvino"),
    "recogniser: its input and output": ("OcrReward.",),
    "other judges": ("ColourReward.",),
    "optimiser": ("Engine._step",),
    "update: forward, backward": ("Learner.update",),
    "network, sampling": ("_Compiled.__call__", "Policy.velocity"),
    "text": ("Policy.encode", "Policy.check_prompts"),
    "adapters merged and put back": ("Policy.sampling",),
    "pictures decoded": ("Policy.decode", "Trainer._decode"),
    "steps of the ODE and of siblings": ("ode_trajectory", "anchor_branch"),
    "checks": ("check_images", "require_finite"),
    "observation, log": ("Observer.add", "Trainer._group_spreads", "Session._"),
}
"""Parts by words of their stacks; the first that fits counts."""
WHERE = {"evaluation": ("evaluate (", "Session._validate"), "iterations": ("Session._iterate",)}
OTHER = "other"


def profile(lines: Iterable[str]) -> pd.DataFrame:
    """Seconds' shares in per cent, a row per part: within iterations, within evaluations, and of the whole run.

    Args:
        lines: of py-spy's format ``raw``: frames with semicolons between them, a space, how often they were seen.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for line in lines:
        stack, _, times = line.rpartition(" ")
        if "worker.py" in stack:
            counts[_first(WHERE, stack), _first(PARTS, stack)] += int(times)
    table = pd.Series(counts).unstack(level=0, fill_value=0)
    table = table.reindex(index=[*PARTS, OTHER], columns=[*WHERE, OTHER], fill_value=0)
    shares = {name: 100 * table[name] / max(table[name].sum(), 1) for name in WHERE}
    shares["run"] = 100 * table.sum(axis=1) / table.to_numpy().sum()
    return pd.DataFrame(shares).round(1).rename_axis("part").reset_index()


def _first(named: dict[str, tuple[str, ...]], stack: str) -> str:
    return next((name for name, words in named.items() if any(word in stack for word in words)), OTHER)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    found = profile(source.read_text(encoding="utf-8").splitlines())
    write_frame(found, target)
    print(found.to_string(index=False))
