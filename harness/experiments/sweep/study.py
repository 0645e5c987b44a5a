"""A sweep's study in its storage: opened, made, compared with the sweep; its sampler and pruner."""

import hashlib
import math
import re
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, StorageInternalError
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from harness.config import ConfigError
from harness.experiments.sweep.definition import Sweep

HEARTBEAT_SECONDS = 15
GRACE_SECONDS = 90
"""A trial whose worker has been silent for so long is given to another."""
MAX_RETRIES = 3
"""How often a trial is tried again after its worker died or failed."""
MAX_FAILURES = 10
"""Failures one after another that end a worker: more than two points account for."""
_CONNECT_SECONDS, _BUSY_SECONDS = 10, 60
_DEFINITION, _IDENTITY = "definition", "model, prompt lists and rewards"

with warnings.catch_warnings():
    # Experimental as far as its name goes.
    warnings.simplefilter("ignore", ExperimentalWarning)
    RETRY = RetryHeartbeatStaleTrialCallback(max_retry=MAX_RETRIES)
    """Puts a failed trial's point back into the queue."""

REFERENCE, PLANNED = "reference", "planned"
"""Origin of a trial that no sampler chose, in its user attribute ``origin``."""


class _QuickConnection(sqlite3.Connection):
    """Writes ahead: a commit waits for no disk, which a killed process does not need, and readers wait for no writer.

    Only a machine that loses power can lose the last commits; the file stays sound.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.execute("PRAGMA journal_mode=WAL")
        self.execute("PRAGMA synchronous=NORMAL")


def open_storage(
    url: str, heartbeat_seconds: int = HEARTBEAT_SECONDS, grace_seconds: int = GRACE_SECONDS
) -> RDBStorage:
    """A database of studies, whose tables are made if they are missing.

    Args:
        url: as SQLAlchemy has it, such as sqlite:///study.db or postgresql://user:password@host/database.
        heartbeat_seconds: how often a worker says that it lives.
        grace_seconds: silence after which its trial is given to another.

    Raises:
        ConfigError: it cannot be reached, or is no such database.
    """
    parsed, shown = _parsed(url), shown_url(url)
    arguments = {
        # SQLite has one writer at a time; the others wait instead of failing.
        "sqlite": {"timeout": _BUSY_SECONDS, "factory": _QuickConnection},
        "postgresql": {"connect_timeout": _CONNECT_SECONDS},
    }.get(parsed.get_backend_name(), {})
    for attempt in (1, 2):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                return RDBStorage(
                    url,
                    engine_kwargs={"connect_args": arguments, "pool_pre_ping": True},
                    heartbeat_interval=heartbeat_seconds,
                    grace_period=grace_seconds,
                    heartbeat_stale_trial_callback=RETRY,
                )
        except (ImportError, NoSuchModuleError) as error:
            raise ConfigError(f"storage {shown}: needs a driver that is not installed: {_first_line(error)}") from None
        except DBAPIError as error:
            # Two that make the tables of an empty database at once get into each other's way, once.
            if attempt == 1 and any(word in str(error) for word in ("already exists", "locked")):
                continue
            raise ConfigError(f"storage {shown}: cannot be reached: {_first_line(error.orig)}") from None
        except RuntimeError as error:
            raise ConfigError(f"storage {shown}: another version of Optuna made it: {_first_line(error)}") from None
    raise AssertionError("unreachable")


def _first_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        shown = re.sub("//.*@", "//***@", url)
        raise ConfigError(f"storage {shown!r}: no database URL; write sqlite:///FILE or postgresql://...") from None


def shown_url(url: str) -> str:
    """A storage's URL without its password."""
    parsed = _parsed(url)
    return url if parsed.password is None else parsed.render_as_string(hide_password=True)


def shared_url(url: str) -> str:
    """A storage's URL as every process can use it, whatever folder it is in.

    Raises:
        ConfigError: it is no URL, or of a database in memory, which is one process's own.
    """
    parsed = _parsed(url)
    if parsed.get_backend_name() != "sqlite" or (parsed.database or "").startswith("file:"):
        return url
    if parsed.database in (None, "", ":memory:"):
        raise ConfigError(f"--storage {url}: workers cannot share a database in memory; write sqlite:///FILE")
    return parsed.set(database=str(Path(parsed.database).absolute())).render_as_string(hide_password=False)


@contextmanager
def lost_storage_is_one_line(url: str) -> Iterator[None]:
    """Raises ConfigError where a database is lost in the middle."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        # Optuna wraps what the driver said.
        cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
        cause = cause.orig if isinstance(cause, DBAPIError) and cause.orig else cause
        raise ConfigError(
            f"storage {shown_url(url)}: lost: {_first_line(cause)}; the same command continues when it is back"
        ) from None


def open_study(sweep: Sweep, storage: RDBStorage, identity: str) -> optuna.Study:
    """The study of a sweep, made if it is not there, with what is planned in its queue.

    Args:
        sweep: the sweep.
        storage: where the study is.
        identity: of the sweep's first run: names what all its numbers depend on.

    Raises:
        ConfigError: a study of this name is of another sweep.
    """
    directions = list(sweep.file.objectives.values())
    try:
        study = optuna.create_study(storage=storage, study_name=sweep.name, directions=directions)
    except DuplicatedStudyError:
        study = optuna.load_study(study_name=sweep.name, storage=storage)
        if not _is_half_made(study, sweep):
            study = find_study(sweep, storage, identity)
            _queue_planned(study, sweep)
            return study
    _queue_planned(study, sweep)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(list(sweep.file.objectives))
    # Last: a study with a definition is complete.
    study.set_user_attr(_DEFINITION, _definition(sweep) | {_IDENTITY: identity})
    return study


def _is_half_made(study: optuna.Study, sweep: Sweep) -> bool:
    """Whether a study's maker was killed: it gets no definition, and there is nothing in it but what is queued."""
    directions = [direction.name.lower() for direction in study.directions]
    states = {trial.state for trial in study.get_trials(deepcopy=False)}
    is_new = directions == list(sweep.file.objectives.values()) and states <= {TrialState.WAITING}
    return is_new and _await_definition(study) is None


def _queue_planned(study: optuna.Study, sweep: Sweep) -> None:
    """Queue what is planned and neither there nor done: all of it in a new study, failed points in one that goes on."""
    there = [
        # A trial that has just begun has not all its parameters yet.
        trial.system_attrs.get("fixed_params", trial.params)
        for trial in study.get_trials(deepcopy=False)
        if trial.state != TrialState.FAIL
    ]
    for index, point in enumerate(sweep.planned_points()):
        if not any(_is_same_point(point, other) for other in there):
            is_reference = index == 0 and sweep.file.reference is not None
            study.enqueue_trial(point, user_attrs={"origin": REFERENCE if is_reference else PLANNED})


def _is_same_point(point: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two points are equal but for the rounding of what a step or a logarithm gives."""
    return point.keys() == other.keys() and all(
        math.isclose(value, other[path]) if isinstance(value, float) else value == other[path]
        for path, value in point.items()
    )


def find_study(sweep: Sweep, storage: RDBStorage, identity: str | None = None) -> optuna.Study:
    """The study of a sweep that has been begun.

    Args:
        sweep: the sweep.
        storage: where the study is.
        identity: as for ``open_study``; None to take the study whatever became of model, prompts and rewards since.

    Raises:
        ConfigError: it is not there, or another sweep's; names those that are there, or a difference.
    """
    url = shown_url(storage.url)
    try:
        study = optuna.load_study(study_name=sweep.name, storage=storage)
    except KeyError:
        known = ", ".join(optuna.get_all_study_names(storage)) or "none"
        raise ConfigError(f"storage {url}: no study {sweep.name!r}; there are: {known}") from None
    theirs = _await_definition(study)
    if theirs is None:
        raise ConfigError(f"storage {url}: the study {sweep.name!r} was never made to the end, or not by a sweep")
    ours = _definition(sweep) | ({} if identity is None else {_IDENTITY: identity})
    for section, content in ours.items():
        difference = _first_difference(content, theirs.get(section), section)
        if difference is not None:
            key, here, there = difference
            raise ConfigError(
                f"storage {url}: its study {sweep.name!r} is another sweep's, with {key} {there} where this one has "
                f"{here}; take another --name or --storage"
            )
    return study


def _await_definition(study: optuna.Study) -> dict[str, Any] | None:
    """A study's definition; None if there is none and for ten seconds nobody has been making it."""
    tries, queued = 50, 0
    while tries:
        found = study.user_attrs.get(_DEFINITION)
        if found is not None:
            return found
        num_trials = len(study.get_trials(deepcopy=False))
        tries, queued = 50 if num_trials > queued else tries - 1, num_trials
        time.sleep(0.2)  # another host is making it at this moment
    return None


def _definition(sweep: Sweep) -> dict[str, Any]:
    """What makes trials comparable: another value of any of these is another study."""
    elsewhere = {"logging", "runtime", "experiment", "prompts", "seed"}
    return {
        "space": {parameter.path: parameter.describe() for parameter in sweep.parameters},
        "objectives": dict(sweep.file.objectives),
        "seeds": list(sweep.file.seeds),
        # Without what is at its default: a setting that is added to the project later is off in old studies.
        "configuration": sweep.base.model_dump(mode="json", exclude=elsewhere, exclude_defaults=True),
    }


def _first_difference(ours: Any, theirs: Any, key: str) -> tuple[str, Any, Any] | None:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in [*ours, *(name for name in theirs if name not in ours)]:
            found = _first_difference(ours.get(name), theirs.get(name), f"{key} {name}")
            if found is not None:
                return found
        return None
    return None if ours == theirs else (key, ours, theirs)


# --- sampler and pruner ---------------------------------------------------------------------------------------------


class SeededByTrial(BaseSampler):
    """Another sampler, made anew for each trial with a seed of the trial's number.

    So every trial has random numbers of its own, on whichever worker and host, and a study that is continued does not
    draw again what it drew in the beginning, as a sampler that is seeded anew would.

    Args:
        make: the sampler of a seed.
        seed: of the study.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed
        self._sampler = make(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Begin a trial."""
        digest = hashlib.sha256(f"{self._seed} {trial.number}".encode()).digest()
        self._sampler = self._make(int.from_bytes(digest[:4]))
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters that are drawn together."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw parameters together."""
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one parameter."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """End a trial."""
        self._sampler.after_trial(study, trial, state, values)


def make_sampler(sweep: Sweep) -> BaseSampler:
    """A sweep's sampler. A grid's points are in the queue already, so its sampler is never asked."""
    settings = sweep.file.sampler
    makers: dict[str, Callable[[int], BaseSampler]] = {
        "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=settings.startup_trials),
        "gp": lambda seed: optuna.samplers.GPSampler(seed=seed, n_startup_trials=settings.startup_trials),
        "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
        "grid": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    }
    return SeededByTrial(makers[settings.kind], settings.seed)


def make_pruner(sweep: Sweep) -> optuna.pruners.BasePruner:
    """A sweep's pruner; a trial's steps are iterations, those of earlier seeds counted in."""
    settings = sweep.file.pruner
    if settings.kind == "median":
        return optuna.pruners.MedianPruner(settings.startup_trials, n_warmup_steps=settings.warmup_iterations)
    if settings.kind == "hyperband":
        return optuna.pruners.HyperbandPruner(
            min_resource=sweep.base.evaluation.interval,
            max_resource=len(sweep.file.seeds) * sweep.base.iterations,
            reduction_factor=settings.reduction_factor,
        )
    return optuna.pruners.NopPruner()
