"""Signs of reward hacking, computed from a run's own logs at each validation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from harness.config import RunConfig
from harness.config.run import FEWEST_PROMPTS
from harness.foundation.records import read_lines
from harness.runs.directory import RunDirectory

JUDGE, TEXTURE, DIVERSITY = "judge", "texture", "diversity"

_STANDARD_ERRORS = 2.0
_MUCH_TEXTURE = 1.5
_LITTLE_SPREAD = 0.5


def warn(run: RunDirectory, say: Callable[[str], None]) -> str | None:
    """Report the signs that the latest validation shows; returns the message of the first in ``stop.on``, or None."""
    config = run.config
    found = list(signs(config, *(read_lines(run.folder / name) for name in ("eval.jsonl", "metrics.jsonl"))))
    for name, words in found:
        say(f"warning: {name}: {words}")
    return next((words for name, words in found if name in config.stop.on), None)


def signs(
    config: RunConfig, evaluations: Sequence[Mapping[str, Any]], iterations: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, str]]:
    """Yield name and message of each sign in a run's logs that the latest validation shows, beside the untrained model.

    ``judge``: the trained reward has risen, and a reward that is not trained on has fallen, each by more than two
    standard errors of the paired differences over prompts. ``texture``: the miniature's pictures have more than 1.5
    times the texture, and more by over two standard errors. ``diversity``: pictures of a training group differ at the
    latest two validations by less than half of what they did at the first two.
    """
    validations = [line for line in evaluations if line["split"] == "validation"]
    if len(validations) > 1 and validations[0]["num_prompts"] >= FEWEST_PROMPTS:
        yield from _of_prompts(config, validations[0]["per_prompt"], validations[-1]["per_prompt"])
    spreads = [line["group"]["pixel_spread"] for line in iterations if "pixel_spread" in line.get("group", {})]
    if len(spreads) >= 4 and fmean(spreads[-2:]) < _LITTLE_SPREAD * fmean(spreads[:2]):
        first, last = fmean(spreads[:2]), fmean(spreads[-2:])
        yield DIVERSITY, f"pictures of a group differ by {last:.3g}, at first by {first:.3g}: diversity collapses"


def _of_prompts(
    config: RunConfig, first: Mapping[str, Sequence[float]], last: Mapping[str, Sequence[float]]
) -> Iterator[tuple[str, str]]:
    totals = [[config.trained_reward(dict(zip(per, row, strict=True))) for row in zip(*per.values(), strict=True)]
              for per in (first, last)]  # fmt: skip
    rises = {name: _standard_errors(first[name], last[name]) for name in first.keys() & last.keys()}
    means = {name: (fmean(first[name]), fmean(last[name])) for name in rises}
    if _standard_errors(*totals) > _STANDARD_ERRORS:
        for name in config.evaluation.judges:
            if name not in config.reward and rises.get(name, 0) < -_STANDARD_ERRORS:
                before, now = means[name]
                fall = f"{name}, which is not trained on, falls from {before:.3g} to {now:.3g}"
                yield JUDGE, f"{fall} while the trained reward rises: it may be hacked"
    if rises.get("pictures/texture", 0) > _STANDARD_ERRORS:
        before, now = means["pictures/texture"]
        if now > _MUCH_TEXTURE * before:
            yield TEXTURE, f"pictures have {now:.3g} of texture, untrained {before:.3g}: the reward may be hacked"


def _standard_errors(before: Sequence[float], now: Sequence[float]) -> float:
    """Mean of paired differences in units of its standard error; 0 if the error is 0."""
    differences = [b - a for a, b in zip(before, now, strict=True)]
    error = stdev(differences) / len(differences) ** 0.5
    return fmean(differences) / error if error else 0.0
