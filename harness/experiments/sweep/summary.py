"""What a study has found so far, in lines for the terminal."""

import time
from collections import Counter

import optuna
from optuna.trial import FrozenTrial, TrialState

from harness.experiments.sweep.definition import Sweep
from harness.experiments.sweep.study import REFERENCE
from harness.experiments.sweep.tables import best_trials, importance, listed_trials, violated
from harness.experiments.sweep.trial import NOT_VALID

_SHOWN = 5


class Progress:
    """A line whenever the study has got on.

    Args:
        sweep: the sweep.
        study: its study.
    """

    def __init__(self, sweep: Sweep, study: optuna.Study) -> None:
        self.sweep, self.study = sweep, study
        self.began, self.first = time.monotonic(), num_finished(study)
        self.last = self.first

    def line(self) -> str | None:
        """What has changed since the last line; None if nothing has."""
        finished = num_finished(self.study)
        if finished == self.last:
            return None
        self.last = finished
        best = best_trials(self.sweep, self.study)
        found = f"; best so far {describe(self.sweep, best[0])}" if best else ""
        return f"{counts(self.sweep, self.study)}{found}{self._left(finished)}"

    def _left(self, finished: int) -> str:
        if self.sweep.num_trials is None or self.sweep.is_full(finished):
            return ""
        seconds = (time.monotonic() - self.began) / (finished - self.first) * (self.sweep.num_trials - finished)
        return f"; about {seconds / 60:.0f} min left"


def num_finished(study: optuna.Study) -> int:
    """Trials that count for the budget."""
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))


def counts(sweep: Sweep, study: optuna.Study) -> str:
    """How many trials there are, by state, and of how many."""
    trials = listed_trials(study)
    states = Counter(trial.state.name.lower() for trial in trials)
    infeasible = [names for names in map(violated, trials) if names]
    refused = sum(NOT_VALID in names for names in infeasible)
    collapsed = len(infeasible) - refused
    parts = [f"{states[name]} {name}" for name in ("complete", "pruned", "running", "waiting") if states[name]]
    parts += [f"{states['fail']} failed"] if states["fail"] else []
    parts += [f"{collapsed} of them collapsed"] if collapsed else []
    parts += [f"{refused} that no run can have"] if refused else []
    budget = "" if sweep.num_trials is None else f" of {sweep.num_trials}"
    return f"{num_finished(study)}{budget} trials ({', '.join(parts) or 'none begun'})"


def describe(sweep: Sweep, trial: FrozenTrial) -> str:
    """A trial's values and point."""
    values = ", ".join(
        f"{metric} {value:,.4g}" for metric, value in zip(sweep.file.objectives, trial.values or (), strict=True)
    )
    point = ", ".join(f"{p.column} {_short(trial.params[p.path])}" for p in sweep.parameters)
    return f"{values} (trial {trial.number}: {point})"


def summary(sweep: Sweep, study: optuna.Study) -> list[str]:
    """Counts, the best trials beside the reference, and which parameters matter."""
    objectives = ", ".join(f"{direction} {metric}" for metric, direction in sweep.file.objectives.items())
    seeds = ", ".join(map(str, sweep.file.seeds))
    lines = [
        f"study {sweep.name}: {counts(sweep, study)}",
        f"{objectives}: mean over the paired seeds {seeds}, validation prompts",
        "",
    ]
    best = best_trials(sweep, study)
    title = "best" if len(sweep.file.objectives) == 1 else "Pareto front"
    shown = best if len(sweep.file.objectives) > 1 else best[:_SHOWN]
    lines += [f"{title}: {describe(sweep, trial)}" for trial in shown]
    references = [t for t in listed_trials(study) if t.user_attrs.get("origin") == REFERENCE and t.values]
    lines += [f"reference: {describe(sweep, trial)}" for trial in references]
    shares = importance(sweep, study)
    for metric in sweep.file.objectives:
        own = [f"{row['parameter']} {row['importance']:.2f}" for row in shares if row["objective"] == metric]
        lines += [f"importance for {metric} (PED-ANOVA): {', '.join(own)}"] if own else []
    return lines


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
