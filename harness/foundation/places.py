"""Locations of the code, the files that come with it, results, and caches.

In a checkout all of them are in the repository. Installed from a wheel, the files that come with the code are in a
folder beside it with the layout of the repository, and results go to the working directory.
"""

import os
from pathlib import Path

CODE = Path(__file__).resolve().parents[2]
"""Folder of the packages ``harness`` and ``analysis``."""
IS_CHECKOUT = (CODE / "experiments").is_dir()
ROOT = CODE if IS_CHECKOUT else CODE / "adagrpo_files"
"""The repository, or its part in a wheel: experiments/, the miniature's models, the paper's numbers. Read-only."""
WORK = CODE if IS_CHECKOUT else Path.cwd()
"""Folder that contains results/."""
CACHE = CODE / ".cache" if IS_CHECKOUT else Path("~/.cache/adagrpo").expanduser()
"""Folder for files that can be made or downloaded again."""


def cache_folder(name: str) -> Path:
    """Folder for files that can be made again: in ``$ADAGRPO_CACHE`` if that is set, else in ``CACHE``."""
    chosen = os.environ.get("ADAGRPO_CACHE")
    return (Path(chosen).expanduser() if chosen else CACHE) / name


def folders_of(written_in: Path | None) -> tuple[Path, ...]:
    """Folders in which a relative path is searched, in order: that of the file it is written in, the working directory.

    Empty for a file of experiments/, whose paths come with the code. ``written_in`` is None for a path that was typed.
    """
    if written_in is None:
        return (Path.cwd(),)
    return () if written_in.is_relative_to(ROOT / "experiments") else (written_in.parent.resolve(), Path.cwd())


def from_here(path: str, written_in: Path | None = None) -> str:
    """Make a path that was typed or written in a file absolute, if it exists in ``folders_of``; else it is unchanged.

    A path that does not exist there may come with the code, or be a hub id. A path found in the repository's own folder
    stays relative, so that a configuration names no machine.
    """
    here = Path(path).expanduser()
    folder = next((folder for folder in folders_of(written_in) if (folder / here).exists()), ROOT)
    return path if here.is_absolute() or folder == ROOT else str((folder / here).resolve())


def process_environment() -> dict[str, str]:
    """Environment for a child process that executes ``python -m harness...`` in the same working directory.

    A folder there that is called harness or analysis does not shadow the project's package.
    """
    paths = [str(CODE), *filter(None, [os.environ.get("PYTHONPATH")])] if IS_CHECKOUT else []
    return os.environ | {"PYTHONSAFEPATH": "1"} | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})
