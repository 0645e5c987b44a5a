"""One run: trained in this process or launched in several, and its settings."""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from harness.commands import command, say
from harness.foundation.errors import ConfigError
from harness.foundation.places import process_environment

if TYPE_CHECKING:
    from harness.config import RunConfig
    from harness.runs.directory import RunDirectory

PROFILE = "miniature"
"""Profile of a run if none is named."""

Overrides = Annotated[Sequence[str], "settings, such as selection=curriculum fusion.weight=2"]
Profile = Annotated[str | None, f"name of a file in experiments/profiles/ (default: {PROFILE})"]
Method = Annotated[str | None, "name of a file in experiments/methods/"]
Resume = Annotated[Path | None, "run directory to execute or continue instead"]
Rerun = Annotated[bool, "set aside runs that other code or packages have begun or finished, and run them again"]


@command
def train(
    overrides: Overrides = (),
    *,
    profile: Profile = None,
    method: Method = None,
    resume: Resume = None,
    rerun_changed: Rerun = False,
) -> int:
    """Train one run: a profile with overrides, or a prepared run directory, unless it is finished.

    Example: ``adagrpo train selection=curriculum fusion.enabled=true seed=1``
    """
    from harness.runs.directory import find_run, prepare_run
    from harness.runs.identity import changes_of, note_on_code

    # Every process of a launch calls this function; the main one prepares the run.
    if not (rank := os.environ.get("RANK", "0")).isdecimal():
        raise ConfigError(f"RANK={rank}: is no number; a launcher sets it, otherwise unset it")
    is_main = int(rank) == 0
    config, run = _find(overrides, profile, method, resume)
    if run is None:
        run = prepare_run(config, rerun_changed=rerun_changed) if is_main else find_run(config)
    if run.status()["state"] == "finished":
        if is_main:
            run.remove_unneeded()
            print("\n".join([f"{run.folder} is finished already", *note_on_code([changes_of(run.folder)])]))
        return 0
    run.require_resumable()
    with run.lock() if is_main else nullcontext():
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            _begin_together(run, config, is_main)
        if is_main:
            say(f"run {run.folder}")
        from harness.training.preemption import Preemption
        from harness.training.session import Session

        with run.failure_noted(), Preemption(run) as asked:
            Session(run, say=say, asked_to_end=asked).execute()
    return 0


def _find(
    overrides: Sequence[str], profile: str | None, method: str | None, resume: Path | None
) -> "tuple[RunConfig, RunDirectory | None]":
    """Configuration of a run, and its directory if ``--resume`` names one.

    Raises:
        ConfigError: that is not a run directory, or options that belong to a new run are given with it.
    """
    from harness.config import compose
    from harness.runs.directory import RunDirectory

    if resume is None:
        return compose(profile or PROFILE, method, overrides=overrides), None
    if overrides or profile is not None or method is not None:
        raise ConfigError("--resume continues a run as it is; a profile, a method and overrides belong to a new run")
    if not (resume / "config.yaml").is_file():
        raise ConfigError(f"--resume {resume}: no run directory (no config.yaml there)")
    run = RunDirectory(resume.resolve())
    return run.config, run


def _begin_together(run: "RunDirectory", config: "RunConfig", is_main: bool) -> None:
    """Wait until the main process has prepared the run and removed the reason of an earlier failure."""
    from harness.training.processes import Processes, make_accelerator

    if is_main:
        run.set_status("running", run.status()["iteration"], config.iterations)
    Processes(make_accelerator(config), config.runtime.timeout_seconds).wait("preparing the run")


@command
def replay(
    run: Annotated[Path, "run directory"],
    iteration: Annotated[int, "iteration to repeat, from the nearest checkpoint before it", 1],
) -> int:
    """Repeat an iteration exactly, one that failed or one that was logged; nothing of the run is changed.

    Example: ``adagrpo replay RUN 7``
    """
    from harness.trained.replay import replay as replayed

    return 0 if replayed(run, iteration, say) else 1


@command
def launch(
    overrides: Overrides = (),
    *,
    profile: Profile = None,
    method: Method = None,
    resume: Resume = None,
    machine_rank: Annotated[int, "rank of this machine among runtime.machines, from 0"] = 0,
    main_address: Annotated[str | None, "host name or address of machine 0, if there are several machines"] = None,
    main_port: Annotated[int | None, "free port on machine 0 (default: 29500)", 1] = None,
    show: Annotated[bool, "print the launch command of this machine and start nothing"] = False,
) -> int:
    """Train one run in several processes (runtime.processes), on one machine or several.

    Example: ``adagrpo launch --profile paper --show``
    """
    from harness.experiments.jobs.command import Placement, signals_passed_on, typed, worker_command
    from harness.experiments.jobs.slots import visible_gpus
    from harness.runs.directory import find_run

    config, run = _find(overrides, profile, method, resume)
    runtime = config.runtime
    for option, value in (("--main-address", main_address), ("--main-port", main_port)):
        if value is not None and runtime.machines == 1:
            raise ConfigError(f"{option} is for several machines, but runtime.machines=1")
    placement = Placement(
        processes=runtime.processes,
        cuda=runtime.device == "cuda" or (runtime.device == "auto" and bool(visible_gpus())),
        machines=runtime.machines,
        machine_rank=machine_rank,
        main_address=main_address,
        main_port=main_port or Placement.main_port,
        engine=runtime.engine,
    )
    words = ["--resume", str(resume)] if resume else ["--profile", profile or PROFILE]
    words += ["--method", method] if method else []
    command_line = worker_command(placement, "harness.cli", ["train", *words, *overrides])
    if show:
        print(typed(command_line))
        return 0
    # Everything that can be checked is checked before anything is started.
    needed = runtime.processes // runtime.machines
    if placement.cuda and (found := len(visible_gpus())) < needed:
        raise ConfigError(
            f"runtime.processes={runtime.processes} on {runtime.machines} machines need {needed} GPUs here, but there "
            f"are {found}"
        )
    if run is None:
        find_run(config)
    environment = process_environment() | signals_passed_on(runtime.preemption_seconds)
    return os.execve(command_line[0], command_line, environment | {"OMP_NUM_THREADS": str(runtime.threads)})


@command
def show_config(
    overrides: Overrides = (),
    *,
    profile: Profile = None,
    method: Method = None,
    resume: Resume = None,
) -> int:
    """Show every value of a run and the file and line, or override, that set it; settings without effect say why.

    Example: ``adagrpo show-config --profile paper fusion.weight=2``
    """
    import json

    from harness.config import inert_settings, leaves
    from harness.runs.identity import ORIGINS, read_identity

    config, run = _find(overrides, profile, method, resume)
    origins = config.origins if run is None else read_identity(run.folder, ORIGINS)
    inert = inert_settings(config)
    rows = []
    for key, value in leaves(config.model_dump(mode="json")).items():
        without = [f" (no effect: {why})" for name, why in inert.items() if f"{key}.".startswith(f"{name}.")]
        origin = str(origins.get(key, "not recorded" if run is not None and not origins else "default"))
        rows.append((f"{key}={json.dumps(value, ensure_ascii=False)}", origin + "".join(without)))
    width = min(60, max(len(setting) for setting, _ in rows))
    print("\n".join(f"{setting:{width}}  {origin}" for setting, origin in rows))
    return 0
