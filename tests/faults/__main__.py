"""``make faults``: SIGKILL at random moments, and the table of what came of it.

``python -m tests.faults [--tries N] [--seed N] [--only WORD] [--output FILE]``. Each victim is run once to its end
without a fault, and then killed some times in a row, each time after a random part of the time that the whole took, and
run to its end. What it leaves must be the same, byte for byte: weights, pictures, tables, and logs but for seconds.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

from harness.config import ROOT
from harness.experiments.gradients import oracle  # noqa: F401 - imported before the victims are forked
from harness.models.miniature import pretrain  # noqa: F401 - as above
from harness.runs.directory import RUNS
from harness.training import session  # noqa: F401 - as above
from tests.faults.victims import KINDS, VICTIMS, outcome, prepared

HEAD = "| fault | tries | lost | what the user sees after it |\n|---|---|---|---|\n"
IN_A_ROW = 4
_PATIENCE = 900.0


@dataclass
class Row:
    """A line of the table."""

    fault: str
    tries: int = 0
    lost: list[str] = field(default_factory=list)
    seen: str = ""

    def __str__(self) -> str:
        lost = f"**{'; '.join(self.lost)}**" if self.lost else "nothing"
        return f"| {self.fault} | {self.tries} | {lost} | {self.seen} |"


def start(folder: Path, *words: str) -> BaseProcess:
    """A victim in a group of its own, which writes to a log beside its folder; its imports are paid for already."""
    process = get_context("fork").Process(target=_be, args=(folder, words))
    process.start()
    return process


def _be(folder: Path, words: Sequence[str]) -> None:
    os.setsid()
    with folder.with_suffix(".log").open("ab") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    VICTIMS[words[0]](folder, *words[1:])


def finish(folder: Path, *words: str) -> tuple[float, str | None]:
    """Run a victim to its end: seconds, and what was wrong with it."""
    began, process = time.monotonic(), start(folder, *words)
    process.join(_PATIENCE)
    if process.exitcode is None:
        whole_group(process)
        return _PATIENCE, f"hangs ({folder})"
    code = process.exitcode
    return time.monotonic() - began, None if code == 0 else f"exit code {code} ({folder})"


def whole_group(process: BaseProcess) -> None:
    """Kill a victim and all its children at once, as a machine that loses power does."""
    children = _children(process)
    os.killpg(process.pid or 0, signal.SIGKILL)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()


def main_alone(process: BaseProcess) -> None:
    """Kill a launcher alone; its workers must end by themselves."""
    children = _children(process)
    process.kill()
    _, alive = psutil.wait_procs(children, timeout=60)
    if alive:
        for child in alive:
            child.kill()
        raise AssertionError(f"{len(alive)} orphans after 60 s")


def one_child(process: BaseProcess) -> None:
    """Kill a worker; its launcher is to start another and go on."""
    children = _children(process)
    if children:
        random.choice(children).kill()
    process.join(_PATIENCE)
    if process.exitcode:
        raise AssertionError(f"the launcher ended with {process.exitcode}")


def _children(process: BaseProcess) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


Kill = Callable[[BaseProcess], None]


def torture(fault: str, tries: int, folder: Path, draw: random.Random, kill: Kill, *words: str,
            compare: Callable[[Path], dict[str, str]] = outcome) -> Row:  # fmt: skip
    """Kill a victim ``tries`` times."""
    row = Row(fault)
    folder.mkdir(exist_ok=True)
    seconds, problem = finish(folder / "whole", *words)
    if problem:
        row.lost.append(f"without a fault: {problem}")
        return row
    wanted, chain = compare(folder / "whole"), 0
    assert wanted, f"{fault}: nothing to compare"
    while row.tries < tries:
        own, before = folder / f"killed-{chain}", row.tries
        chain += 1
        for _ in range(min(IN_A_ROW, tries - row.tries)):
            process = start(own, *words)
            process.join(draw.uniform(0.05, 1.0) * seconds)
            if process.exitcode == 0:
                break  # done before the kill
            row.tries += 1
            try:
                if process.exitcode is None:
                    kill(process)
                else:
                    row.lost.append(f"exit code {process.exitcode} before a kill ({own})")
            except AssertionError as error:
                row.lost.append(str(error))
            process.join()
        _, problem = finish(own, *words)
        found = compare(own)
        if problem or found != wanted:
            different = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
            row.lost.append(f"{problem or 'differs'}: {', '.join(different[:3])} ({own})")
        row.seen = row.seen or (_told(own.with_suffix(".log")) if row.tries > before else "")
        print(f"{fault}: {row.tries} of {tries} kills, {len(row.lost)} lost", flush=True)
    return row


def _told(log: Path) -> str:
    """The first line that speaks of going on."""
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if any(word in line for word in ("continuing at", "finished already", "died", "finished runs", "trials are")):
            return f"`{line.strip().replace(f'{log.parent}/', '')[:110]}`"
    return "the same output as without a kill"


def study_of(folder: Path) -> dict[str, str]:
    """Of a sweep: how many trials it has in the end, and their runs, none twice."""
    import optuna

    study = optuna.load_study(study_name=None, storage=f"sqlite:///{folder}/study.db")
    states = [trial.state.name for trial in study.get_trials()]
    settled = sum(state in ("COMPLETE", "PRUNED") for state in states)
    return {"settled": str(settled), "running": str(states.count("RUNNING"))}


def remote(tries: int, folder: Path, draw: random.Random) -> list[Row]:
    """The trainer, then the server, killed while a run's reward is at a server."""
    os.environ["ADAGRPO_REWARD_TOKEN"] = "of the faults"
    command = [sys.executable, "-m", "harness.cli", "serve-reward", "colour", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert server.stdout is not None
    url = server.stdout.readline().partition(".url=")[2].split(";")[0]
    port = url.rpartition(":")[2]
    served = {"server": server}

    def restart(process: BaseProcess) -> None:
        served["server"].kill()
        served["server"].wait()
        served["server"] = subprocess.Popen([*command[:-1], port], stdout=subprocess.DEVNULL, cwd=ROOT)
        process.join(_PATIENCE)
        if process.exitcode:
            raise AssertionError(f"the run ended with {process.exitcode}")

    try:
        return [
            torture("trainer, reward at a server", tries, folder / "a", draw, whole_group, "train_remote", url),
            torture("reward server", tries, folder / "b", draw, restart, "train_remote", url),
        ]
    finally:
        served["server"].kill()


def kills(tries: int, folder: Path, draw: random.Random, only: str) -> Iterator[Row]:
    """All victims; a fourteenth of the tries for each, but the plain trainer has more."""
    few = max(1, tries // 14)
    finished = prepared(folder / "finished", *KINDS["plain"])
    plan: list[tuple[str, int, Kill, Sequence[str]]] = [
        *((f"trainer, {kind}", 3 * few if kind == "plain" else few, whole_group, ("train", kind)) for kind in KINDS),
        ("grid: launcher alone", few, main_alone, ("grid",)),
        ("grid: a worker", few, one_child, ("grid",)),
        ("gradients", few, whole_group, ("gradients",)),
        ("export", few, whole_group, ("export", str(finished.folder))),
        ("writing shards", few, whole_group, ("shards", str(finished.folder.parent))),
        ("pretraining", few, whole_group, ("pretraining",)),
    ]
    if any(only in name for name in ("export", "writing shards")):
        problem = finish(folder / "finished", "train", "plain")[1]
        assert problem is None, problem
    for number, (name, count, kill, words) in enumerate(plan):
        if only in name:
            yield torture(name, count, folder / str(number), draw, kill, *words)
    if only in "reward server":
        (folder / "remote").mkdir()
        yield from remote(few, folder / "remote", draw)
    if only in (name := "sweep: workers and launcher"):
        (folder / "sweep").mkdir()
        yield torture(name, few, folder / "sweep", draw, whole_group, "sweep", compare=study_of)


def enter(page: Path, row: Row) -> None:
    """Write a row into a page's table, in place of the one of the same fault, and count its kills again."""
    text = page.read_text(encoding="utf-8")
    start = text.index(HEAD) + len(HEAD)
    end = text.index("\n\n", start) + 1
    rows = {line.split("|")[1]: line for line in [*text[start:end].splitlines(), str(row)]}
    text = text[:start] + "".join(f"{line}\n" for line in rows.values()) + text[end:]
    total = sum(int(line.split("|")[2]) for line in rows.values())
    page.write_text(re.sub(r"\d+ kills so far", f"{total} kills so far", text), encoding="utf-8")


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--output", type=Path, help="page whose table gets the rows")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    rows = []
    for row in kills(options.tries, folder, random.Random(options.seed), options.only):
        rows.append(row)
        print(row, flush=True)
        if options.output:
            enter(options.output, row)
    if any(row.lost for row in rows):
        print(f"what is left is in {folder}")
        return 1
    for done in (folder, *RUNS.glob(f"sweep-faults-{folder.name}-*")):
        shutil.rmtree(done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
