"""A sweep's study in its storage: opened, made, compared with the sweep; its sampler and pruner."""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from analysis.sweep.tables import DEFINITION, REFERENCE
from harness.config import ConfigError, leaves
from harness.experiments.sweep.definition import Sweep

warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats and names of metrics, experimental since 2.8 and 3.2
HEARTBEAT_SECONDS = 15
GRACE_SECONDS = 90
"""A trial whose worker has been silent for so long is given to another."""
MAX_RETRIES = 3
"""How often a trial is tried again after its worker died or failed."""
RETRY = RetryHeartbeatStaleTrialCallback(max_retry=MAX_RETRIES)
"""Puts a failed trial's point back into the queue."""
HIDDEN = "***"
"""What ``shown_url`` has in place of a password."""
_IDENTITY = "model, prompt lists and rewards"


def open_storage(url: str, heartbeat: int = HEARTBEAT_SECONDS, grace: int = GRACE_SECONDS) -> RDBStorage:
    """A database of studies, whose tables are made if they are missing.

    Args:
        url: as SQLAlchemy has it, such as sqlite:///study.db or postgresql://user:password@host/database.
        heartbeat: seconds after which a worker says again that it lives.
        grace: seconds of silence after which its trial is given to another.

    Raises:
        ConfigError: it cannot be reached, or is no such database.
    """
    # SQLite has one writer at a time; the others wait instead of failing.
    arguments = {"timeout": 60} if url.startswith("sqlite") else {"connect_timeout": 10}
    engine = {"connect_args": arguments, "pool_pre_ping": True}
    with storage_errors(url):
        try:
            return RDBStorage(
                url, engine, heartbeat_interval=heartbeat, grace_period=grace, heartbeat_stale_trial_callback=RETRY
            )
        except (ImportError, RuntimeError, ValueError) as error:  # no driver; another version of Optuna made it; no URL
            raise ConfigError(f"storage {shown_url(url)}: {str(error).splitlines()[0]}") from None


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Within: what a database refuses, or that it is lost in the middle, is a ConfigError."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        # Optuna wraps what the driver said.
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ConfigError(f"storage {shown_url(url)}: {reason}; the same command continues when it is back") from None


def shown_url(url: str) -> str:
    """A storage's URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        raise ConfigError("--storage: no database URL; write sqlite:///FILE or postgresql://...") from None


def open_study(sweep: Sweep, storage: RDBStorage, identity: str) -> optuna.Study:
    """The study of a sweep, made if it is not there, with the reference as its first trial.

    Args:
        sweep: the sweep.
        storage: where the study is.
        identity: of the sweep's first run: names what all its numbers depend on.

    Raises:
        ConfigError: a study of this name is of another sweep.
    """
    directions = list(sweep.file.objectives.values())
    study = optuna.create_study(storage=storage, study_name=sweep.name, directions=directions, load_if_exists=True)
    if DEFINITION not in study.user_attrs and not study.get_trials(deepcopy=False):
        study.set_metric_names(list(sweep.file.objectives))
        study.set_user_attr(DEFINITION, _definition(sweep) | {_IDENTITY: identity})
    study = find_study(sweep, storage, identity)
    study.enqueue_trial(sweep.reference, user_attrs={"origin": REFERENCE}, skip_if_exists=True)
    return study


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
    theirs = dict(study.user_attrs.get(DEFINITION, {}))
    made_with = theirs.pop(_IDENTITY, None)
    there = leaves(theirs | {_IDENTITY: made_with})
    here = leaves(_definition(sweep) | {_IDENTITY: identity or made_with})
    for key in {**here, **there}:
        if here.get(key) != there.get(key):
            raise ConfigError(
                f"storage {url}: its study {sweep.name!r} is another sweep's, with {key} {there.get(key)} where this "
                f"one has {here.get(key)}; take another --name or --storage"
            )
    return study


def _definition(sweep: Sweep) -> dict[str, Any]:
    """What makes trials comparable: another value of any of these is another study."""
    not_numeric = {"logging", "runtime", "experiment", "prompts", "seed"}
    content = {
        "space": {parameter.path: parameter.describe() for parameter in sweep.parameters},
        "objectives": sweep.file.objectives,
        "seeds": sweep.file.seeds,
        # Without what is at its default: a setting that is added to the project later is off in old studies.
        "configuration": sweep.base.model_dump(mode="json", exclude=not_numeric, exclude_defaults=True),
    }
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain


class SeededByTrial:
    """Another sampler, made anew for each trial with a seed of the trial's number.

    So every trial has random numbers of its own, on whichever worker and host, and a study that is continued does not
    draw again what it drew in the beginning, as a sampler that is seeded anew would.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed
        self._sampler = make(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Begin a trial."""
        digest = hashlib.sha256(f"{self._seed} {trial.number}".encode()).digest()
        self._sampler = self._make(int.from_bytes(digest[:4]))
        self._sampler.before_trial(study, trial)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)


def make_sampler(sweep: Sweep) -> BaseSampler:
    """A sweep's sampler."""
    settings, samplers = sweep.file.sampler, optuna.samplers
    makers: dict[str, Callable[[int], BaseSampler]] = {
        "random": lambda seed: samplers.RandomSampler(seed),
        "grid": lambda seed: samplers.BruteForceSampler(seed),
        "tpe": lambda seed: samplers.TPESampler(seed=seed, n_startup_trials=settings.startup_trials),
    }
    return cast(BaseSampler, SeededByTrial(makers[settings.kind], settings.seed))


def make_pruner(sweep: Sweep) -> optuna.pruners.BasePruner:
    """A sweep's pruner; a trial's steps are iterations, those of earlier seeds counted in."""
    settings = sweep.file.pruner
    if settings.kind == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(settings.startup_trials, n_warmup_steps=settings.warmup_iterations)
