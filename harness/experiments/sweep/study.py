"""Study of a sweep in its storage, compared with the sweep; its sampler and pruner."""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, SQLAlchemyError

from analysis.sweep.tables import DEFINITION, REFERENCE
from harness.config import ConfigError, leaves
from harness.experiments.sweep.definition import Sweep
from harness.runs.directory import find_run

warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats and names of metrics, experimental since 2.8 and 3.2
HEARTBEAT_SECONDS = 15
GRACE_SECONDS = 90
"""Silence of a worker after which its trial is given to another one."""
MAX_RETRIES = 3
"""Number of times that a trial is tried again after its worker died or failed."""
RETRY = RetryHeartbeatStaleTrialCallback(max_retry=MAX_RETRIES)
"""Callback that puts a failed trial's point back into the queue."""
HIDDEN = "***"
"""Text that replaces the password in ``shown_url``."""
_IDENTITY = "model, prompt lists and rewards"
"""Key of a study's definition with the id of the sweep's first run, which depends on all that its numbers depend on."""


def open_storage(url: str, heartbeat: int = HEARTBEAT_SECONDS, grace: int = GRACE_SECONDS) -> RDBStorage:
    """Open a database of studies, whose tables are created if they are missing.

    Args:
        url: SQLAlchemy URL, such as sqlite:///study.db or postgresql://user:password@host/database.
        heartbeat: seconds between a worker's signs of life.
        grace: seconds of silence after which a worker's trial is given to another one.

    Raises:
        ConfigError: the URL is not one, its driver is missing, or the database is of another version of Optuna.
        StorageInternalError, SQLAlchemyError: it cannot be reached, or is not one of studies; see ``storage_errors``.
    """
    # SQLite allows one writer at a time; the others wait instead of failing.
    arguments = {"timeout": 60} if url.startswith("sqlite") else {"connect_timeout": 10}
    engine = {"connect_args": arguments, "pool_pre_ping": True}
    try:
        return RDBStorage(
            url, engine, heartbeat_interval=heartbeat, grace_period=grace, heartbeat_stale_trial_callback=RETRY
        )
    except (ImportError, RuntimeError, ValueError) as error:
        raise ConfigError(f"storage {shown_url(url)}: {str(error).splitlines()[0]}") from None


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Context in which a database's refusal, or its loss in the middle, is raised as ConfigError."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        # Optuna wraps the driver's error.
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        # This class itself, not one of its subclasses, is SQLite's for a file that is damaged or no database.
        is_wrong = DatabaseError in (type(error), type(error.__cause__))
        remedy = "name another --storage" if is_wrong else "the same command continues when it is back"
        raise ConfigError(f"storage {shown_url(url)}: {reason}; {remedy}") from None


def shown_url(url: str) -> str:
    """URL of a storage without its password. Raises ConfigError if it is not the URL of a database."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        raise ConfigError("--storage: no database URL; write sqlite:///FILE or postgresql://...") from None


def open_study(sweep: Sweep, storage: RDBStorage) -> optuna.Study:
    """Open the study of a sweep, created if it does not exist, with the reference as its first trial.

    Raises:
        ConfigError: the study of this name belongs to another sweep.
    """
    directions = list(sweep.file.objectives.values())
    study = optuna.create_study(storage=storage, study_name=sweep.name, directions=directions, load_if_exists=True)
    if DEFINITION not in study.user_attrs and not study.get_trials(deepcopy=False):
        study.set_metric_names(list(sweep.file.objectives))
        study.set_user_attr(DEFINITION, _definition(sweep) | {_IDENTITY: find_run(sweep.base).run_id})
    study = find_study(sweep, storage, same_model=True)
    study.enqueue_trial(sweep.reference, user_attrs={"origin": REFERENCE}, skip_if_exists=True)
    return study


def find_study(sweep: Sweep, storage: RDBStorage, same_model: bool = False) -> optuna.Study:
    """Find the study of a sweep that has been started.

    Args:
        sweep: the sweep.
        storage: storage of the study.
        same_model: whether to refuse the study if model, prompts or rewards have changed since.

    Raises:
        ConfigError: there is none, or it is another sweep's; the message names existing studies, or a difference.
    """
    url = shown_url(storage.url)
    try:
        study = optuna.load_study(study_name=sweep.name, storage=storage)
    except KeyError:
        known = ", ".join(optuna.get_all_study_names(storage)) or "none"
        raise ConfigError(f"storage {url}: no study {sweep.name!r}; there are: {known}") from None
    there, here = leaves(study.user_attrs.get(DEFINITION, {})), leaves(_definition(sweep))
    here[_IDENTITY] = find_run(sweep.base).run_id if same_model else there.get(_IDENTITY)
    for key in {**here, **there}:
        if here.get(key) != there.get(key):
            raise ConfigError(
                f"storage {url}: its study {sweep.name!r} is another sweep's, with {key} {there.get(key)} where this "
                f"one has {here.get(key)}; take another --name or --storage"
            )
    return study


def _definition(sweep: Sweep) -> dict[str, Any]:
    """Everything that makes trials comparable: another value of any of these is another study."""
    not_numeric = {"logging", "runtime", "experiment", "prompts", "seed"}
    content = {
        "space": {parameter.path: parameter.describe() for parameter in sweep.parameters},
        "objectives": sweep.file.objectives,
        "seeds": sweep.file.seeds,
        # Defaults are left out, so that a setting that is added to the project later does not change old studies.
        "configuration": sweep.base.model_dump(mode="json", exclude=not_numeric, exclude_defaults=True),
    }
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain


class SeededByTrial:
    """Sampler that is created anew for each trial, with a seed from the trial's number.

    Every trial has random numbers of its own on any worker and host, and a resumed study does not repeat its first
    draws, as it would with a sampler that is seeded once per process.
    """

    def __init__(self, make: Callable[..., BaseSampler], seed: int) -> None:
        self._make, self._seed, self._sampler = make, seed, make(seed=seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Create the sampler of a trial."""
        digest = hashlib.sha256(f"{self._seed} {trial.number}".encode()).digest()
        self._sampler = self._make(seed=int.from_bytes(digest[:4]))
        self._sampler.before_trial(study, trial)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)


def make_sampler(sweep: Sweep) -> BaseSampler:
    """Sampler of a sweep."""
    settings, samplers = sweep.file.sampler, optuna.samplers
    make: dict[str, Callable[..., BaseSampler]] = {
        "random": samplers.RandomSampler,
        "grid": samplers.BruteForceSampler,
        "tpe": partial(samplers.TPESampler, n_startup_trials=settings.startup_trials),
    }
    return cast(BaseSampler, SeededByTrial(make[settings.kind], settings.seed))


def make_pruner(sweep: Sweep) -> optuna.pruners.BasePruner:
    """Pruner of a sweep; a trial's steps are iterations, including those of earlier seeds."""
    settings = sweep.file.pruner
    if settings.kind == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(settings.startup_trials, n_warmup_steps=settings.warmup_iterations)
