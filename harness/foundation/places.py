"""Where things are: the code, the files that come with it, what is made, and what can be made again.

In a checkout all of it is in the repository. Installed from a wheel, the files that come with the code are a folder
beside it that is laid out as the repository is, and what is made goes to the working directory.
"""

import os
from pathlib import Path

CODE = Path(__file__).resolve().parents[2]
"""Folder of the packages ``harness`` and ``analysis``."""
IS_CHECKOUT = (CODE / "experiments").is_dir()
ROOT = CODE if IS_CHECKOUT else CODE / "adagrpo_files"
"""The repository, or what a wheel has of it: experiments/, the miniature's models, the paper's numbers. Only read."""
WORK = CODE if IS_CHECKOUT else Path.cwd()
"""Folder in which results/ is."""
CACHE = CODE / ".cache" if IS_CHECKOUT else Path("~/.cache/adagrpo").expanduser()
"""What can be made or fetched again."""


def cache_folder(name: str) -> Path:
    """A folder for what can be made again: in ``$ADAGRPO_CACHE``, or in ``CACHE``."""
    chosen = os.environ.get("ADAGRPO_CACHE")
    return (Path(chosen).expanduser() if chosen else CACHE) / name


def folders_of(written_in: Path | None) -> tuple[Path, ...]:
    """Where a relative path is looked for, in order: beside the file it is written in, then in the working directory.

    What a file of experiments/ names comes with the code alone; ``written_in`` is None for what somebody has typed.
    """
    if written_in is None:
        return (Path.cwd(),)
    return () if written_in.is_relative_to(ROOT / "experiments") else (written_in.parent.resolve(), Path.cwd())


def from_here(path: str, written_in: Path | None = None) -> str:
    """A path that somebody has typed or written: absolute if it is there, see ``folders_of``; else as it is.

    What is not there may come with the code, or be no path but a hub id. What is found from the repository's own folder
    stays as it is, so that a configuration names no machine.
    """
    here = Path(path).expanduser()
    folder = next((folder for folder in folders_of(written_in) if (folder / here).exists()), ROOT)
    return path if here.is_absolute() or folder == ROOT else str((folder / here).resolve())


def process_environment() -> dict[str, str]:
    """This process's environment for one that executes ``python -m harness...`` in the same working directory.

    A folder there that is called harness or analysis is not taken for the project's.
    """
    paths = [str(CODE), *filter(None, [os.environ.get("PYTHONPATH")])] if IS_CHECKOUT else []
    return os.environ | {"PYTHONSAFEPATH": "1"} | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})
