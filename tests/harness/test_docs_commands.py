"""Commands of README and docs, executed: in a folder of their own, training cut down to one small iteration.

What is not executed is named with its reason, so that a new command in the docs is one or the other.
"""

import shutil
from functools import partial
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from harness import cli
from harness.config import ROOT
from harness.runs import directory
from harness.runs.directory import RunDirectory
from tests.test_docs import FOUND

SMALL = [
    "iterations=1",
    "rollout={candidates: 2, group_size: 2, branch_indices: [1], prompts_per_iteration: 1}",
    "evaluation={interval: 1, validation_prompts: 2, gallery: 0, judges: [colour], test: false, base_test: false}",
    "model={num_steps: 4, execution: {compile: never}}",
]
HOURS = ("grid", "compare", "reproduce", "study")
"""Their runs take minutes to hours; with --plan they compose and count them."""
LEFT = {
    "takes minutes to hours": (
        "oracle",
        "probe",
        "pretrain-miniature",
        "gpu-check",
        "sweep ema",
        "sweep conf",
    ),
    "serves until it is ended": ("serve-reward",),
    "needs a GPU and FLUX.1-dev's weights": (
        "launch --profile paper seed=0",
        "launch --profile paper",
        "grid published",
        "reproduce --profile paper",
        "grid paper --on",
    ),
    "needs weights or lists that are not here": ("hpsv", "unifiedreward", "hpd/", "another-lora", "CHECKPOINT"),
    "needs a run that is not finished": ("--latest",),
    "needs a file of another command": ("--measured", "my-cluster.yaml", "sweep show", "data/mine/train.txt"),
    "sets what a small run cuts down": (
        "evaluation.test=false",
        "rollout.candidates=4",
        "rollout.group_size=12",
        "evaluation.validation_prompts=",
    ),
    "is a synopsis": ("[KEY=VALUE",),
    "ends the process": ("--help", "--version"),
}
PROFILE = "use_model: miniature\nuse_method: flow_grpo\nuse_reward: ocr\nverified: never\nexperiment: mine\n"


def words_of(command: str, run: Path) -> list[str] | None:
    """The words to execute; None for a command that is left."""
    for mark in (mark for marks in LEFT.values() for mark in marks):
        if command == mark or (mark in command and not mark.startswith("launch")):
            return None
    name, *rest = [word.replace("FOLDER", "exported") for word in FOUND[command]]
    rest = [
        str(run) if word in ("RUN", "results/runs/EXPERIMENT/RUN", "results/runs/miniature/RUN") else word
        for word in rest
    ]
    if name == "train":
        return [name, *SMALL, *rest]
    if name == "evaluate":
        return [name, *rest, "--prompts", "few.txt", "--rewards", "colour", "--noises", "1", "--output", "scored"]
    if name == "watch":
        return [name, *rest, "--once", "--output", "watch.html"]
    if name in HOURS and not {"--plan", "--list"} & set(rest):
        return [name, *rest, "--plan"]
    return [name, *rest]


@pytest.fixture
def folder(tmp_path: Path, lora_run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a user who has what the pages speak of; runs go below it."""
    train = (ROOT / "harness/models/miniature/data/train.txt").read_text().splitlines()
    for name, lines in {"mine.txt": train[:40], "mine-too.txt": train[40:50], "few.txt": train[50:52]}.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    (tmp_path / "more.jsonl").write_text('{"prompt": "the word \\"more\\" in red on white"}\n')
    (tmp_path / "my.py").write_text("def Rule(candidates):\n    return 0\n")
    for token in MarkdownIt().parse((ROOT / "docs" / "extend.md").read_text(encoding="utf-8")):
        if token.type == "fence" and token.content.startswith("# "):
            (tmp_path / token.content.partition("\n")[0].removeprefix("# ")).write_text(token.content)
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "profile.yaml").write_text(PROFILE)
    runs = tmp_path / "results" / "runs"
    for experiment in ("miniature", "smoke", "quick", "EXPERIMENT"):
        shutil.copytree(lora_run.folder, runs / experiment / lora_run.run_id)
    monkeypatch.setattr(directory, "RUNS", runs)
    monkeypatch.setattr(directory, "prepare_run", partial(directory.prepare_run, root=runs))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", FOUND)
def test_a_command_of_the_docs_does_what_it_says_it_does(
    command: str, folder: Path, lora_run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = words_of(command, folder / "results" / "runs" / "miniature" / lora_run.run_id)
    if words is None:
        return
    if words[0] == "new":
        (folder / "second_hardest.py").unlink()
    if words[0] == "study":  # which names a rule of its own by its place in the repository
        monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    # The doctor ends with 2 where something is missing, as FLUX.1-dev's weights are.
    assert ended.value.code in ((0, 2) if words[0] == "doctor" else (0,))
    if words[0] == "train":
        [made] = [run for run in directory.RUNS.glob("*/*/status.json") if run.parent.name != lora_run.run_id]
        assert RunDirectory(made.parent).status()["state"] == "finished"


def test_most_commands_are_executed() -> None:
    left = [command for command in FOUND if words_of(command, Path("run")) is None]
    assert 2 * len(left) < len(FOUND), left
