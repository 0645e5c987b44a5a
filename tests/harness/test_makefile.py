"""The Makefile's venv: set up again when what it is made from changed, and never another checkout's."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.config import ROOT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose venv is ready."""
    folder = tmp_path / "a checkout, élan"
    # What pip leaves of an editable install.
    metadata = folder / ".venv/lib/python3.11/site-packages/adagrpo-0.1.0.dist-info"
    metadata.mkdir(parents=True)
    written = {"dir_info": {"editable": True}, "url": folder.resolve().as_uri()}
    (metadata / "direct_url.json").write_text(json.dumps(written))
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    printed = make(folder, "-p", "-n", "help").stdout
    [stamp] = [line.split(" := ")[1] for line in printed.splitlines() if line.startswith("READY := ")]
    (folder / stamp).touch()
    return folder


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, check=False)


def test_a_venv_that_is_ready_is_left_alone_whatever_times_say(checkout: Path) -> None:
    (checkout / "pyproject.toml").touch()
    done = make(checkout, "setup")
    assert (done.returncode, done.stderr) == (0, "")
    assert "setting up" not in done.stdout


def test_a_venv_is_set_up_when_its_pins_change_and_in_a_fresh_checkout(checkout: Path) -> None:
    with (checkout / "requirements.lock").open("a", encoding="utf-8") as lock:
        lock.write("another==1\n")
    assert "requirements.lock" in make(checkout, "-n", "setup").stdout
    shutil.rmtree(checkout / ".venv")
    assert "requirements.lock" in make(checkout, "-n", "setup").stdout


@pytest.mark.parametrize("how", ["moved", "copied", "linked"])
def test_a_venv_of_another_checkout_is_refused(checkout: Path, how: str) -> None:
    other = checkout.parent / "other"
    if how == "moved":
        checkout.rename(other)
    else:
        shutil.copytree(checkout, other)
    if how == "linked":
        shutil.rmtree(other / ".venv")
        (other / ".venv").symlink_to(checkout / ".venv")
    refused = make(other, "setup")
    assert refused.returncode == 2
    assert "clean-venv" in refused.stderr
    assert checkout.resolve().as_uri().removeprefix("file://") in refused.stderr
    make(other, "clean-venv")
    assert not (other / ".venv").exists()
    if how != "moved":
        assert (checkout / ".venv").is_dir()
