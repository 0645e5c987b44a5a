"""Commands of README and docs, executed: in a folder of their own, training cut down to one small iteration.

What is not executed is named with its reason, so that a new command in the docs is one or the other.
"""

import json
import shlex
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from socketserver import BaseServer

import pytest
from markdown_it import MarkdownIt

from harness import cli
from harness.commands import sweep
from harness.config import ROOT
from harness.experiments import probe
from harness.experiments import runs as experiment_runs
from harness.experiments.gradients import oracle, parallel
from harness.experiments.jobs.runner import Outcome
from harness.experiments.sweep import study as sweep_study
from harness.experiments.sweep.study import find_study
from harness.models.miniature import recipes
from harness.runs import directory
from harness.runs.directory import RunDirectory
from tests.test_docs import FOUND

CUT = {
    "iterations": "1",
    "rollout.candidates": "2",
    "rollout.group_size": "2",
    "rollout.branch_indices": "[1]",
    "rollout.prompts_per_iteration": "1",
    "objective.updates_per_iteration": "1",
    "evaluation.interval": "1",
    "evaluation.validation_prompts": "2",
    "evaluation.gallery": "0",
    "evaluation.judges": "[colour]",
    "evaluation.test": "false",
    "evaluation.base_test": "false",
    "model.num_steps": "4",
}
"""Of a run, where its command does not set it."""
ADDED = {
    **dict.fromkeys(("grid", "compare", "study"), "--plan"),
    "reproduce": "--plan --profile paper-dry",
    "launch": "--show",
    "evaluate": "--output scored",
    "watch": "--once --output watch.html",
    "gpu-check": "--tiny --device cpu --only 'speed of a forward' --output checked",
    "oracle": "rollout.candidates=2 rollout.group_size=2 --profile miniature-luck --prompts 3 --noises 2 "
    "--references 2 --output bound",
    "probe": "rollout.candidates=3 rollout.group_size=2 model.num_steps=4 --prompts 2 --noises 2 --output probed",
    "serve-reward": "--port 0",
    "sweep": "--output swept",
}
"""Options that take the place of a command's own where its work takes minutes to hours: it is composed, or small."""
STANDS_FOR = {
    **dict.fromkeys(("CHECKPOINT", "results/runs/EXPERIMENT/RUN", "results/runs/miniature/RUN"), "RUN"),
    **dict.fromkeys(("results/runs/EXPERIMENT", "results/runs/smoke", "results/runs/quick"), "results/runs/miniature"),
    **dict.fromkeys(("results/reports/smoke", "results/reports/quick"), "results/reports/miniature"),
    **dict.fromkeys(("FOLDER", "lora"), "exported"),
    "hpsv2,clip": "colour",
    "1024": "32",
    "28": "4",
    "96": "2",
    "600": "42",
    "8": "2",
    "a red fox": 'the word "facet" in purple on pink',
    "...": "paper-dry",
    "ema_fusion_letters": "ema_fusion",
    "rewards.hpsv3.path=/models/HPSv3.safetensors": "rewards.hpsv3.path=twin:hpsv3",
    "hpsv3": "clip",
    "device=cuda:1": "path=twin:clip",
    **{f"evaluation.validation_prompts={count}": "evaluation.validation_prompts=2" for count in (120, 240)},
}
"""For runs, weights and sizes that are not here: twins, and what is small."""
LEFT = {"hands runs to Slurm, as make test-slurm does": "--on slurm"}
COMPOSED = {"asks a server": ".url="}
HPD = ("anime", "concept-art", "paintings", "photo")
PROFILE = "use_model: miniature\nuse_method: flow_grpo\nuse_reward: ocr\nverified: never\nexperiment: mine\n"


def words_of(command: str) -> tuple[str, ...]:
    """The words to execute, with RUN for a run's directory; none for a command that is left."""
    if any(mark in command for mark in LEFT.values()):
        return ()
    name, *rest = [STANDS_FOR.get(word, word) for word in FOUND[command]]
    if name == "train":
        if rest[:1] == ["paper-dry"]:  # whatever comes before
            del rest[0]
        given = {word.partition("=")[0] for word in rest}
        if "paper-dry" in rest:  # has four rewards, and each is measured
            rest = [word for word in rest if not word.startswith("evaluation.judges=")]
            given.add("evaluation.judges")
        rest += [f"{key}={value}" for key, value in CUT.items() if key not in given]
        if any(mark in command for mark in COMPOSED.values()):
            name = "show-config"
    if name == "grid" and "--on" in rest:
        return name, *(word.replace("paper", "smoke") for word in rest)
    if rest[:1] == ["published"]:
        rest += ["--profile", "paper-dry"]
    if {"--help", "--version", "--list"} & {name, *rest}:
        return name, *rest
    if name == "evaluate":
        rest = ["--prompts", "few.txt", "--rewards", "colour", "--noises", "1", *rest]
    return name, *rest, *shlex.split(ADDED.get(name, ""))


EXECUTED = {frozenset(words_of(command)): command for command in FOUND if words_of(command)}.values()
"""One command of those that are the same words now."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, lora_run: RunDirectory) -> Path:
    """What the working directory of a user has of which the pages speak."""
    folder = tmp_path_factory.mktemp("template")
    lines = (ROOT / "harness/models/miniature/data/train.txt").read_text().splitlines()
    lists = {"few.txt": lines[50:52], "mine-too.txt": lines[40:50]}
    lists |= dict.fromkeys(("mine.txt", "data/mine/train.txt"), lines[:40])
    lists |= {"data/mine/validation.txt": lines[40:50], "data/mine/test.txt": lines[50:52]}
    quoted = ['"{}",Colors'.format(line.replace('"', '""')) for line in lines[50:52]]
    lists |= {"drawbench.csv": ["Prompts,Category", *quoted]}
    files = {
        **{name: "\n".join(of_list) + "\n" for name, of_list in lists.items()},
        **{f"hpd/benchmark/{name}.json": json.dumps(lines[50:52]) for name in HPD},
        "hpd/train.json": json.dumps(lines),
        "more.jsonl": '{"prompt": "the word \\"more\\" in red on white"}\n',
        "my.py": "def Rule(candidates):\n    return 0\n",
        "my/profile.yaml": PROFILE,
        "my-cluster.yaml": "launcher: print\n",
        "results/gpu-check/gpu-check.json": '{"tiny": false, "measured": {"flops": 4e14}}',
    }
    for token in MarkdownIt().parse((ROOT / "docs" / "extend.md").read_text(encoding="utf-8")):
        if token.type == "fence" and token.content.startswith("# "):
            files[token.content.partition("\n")[0].removeprefix("# ")] = token.content
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    shutil.copytree(lora_run.folder, folder / "results" / "runs" / "miniature" / lora_run.run_id)
    for place in ("results/runs", "results"):
        (folder / place / "sweep-ema_fusion").mkdir()
        shutil.copy(ROOT / "results" / "sweep-ema_fusion" / "study.db", folder / place / "sweep-ema_fusion")
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a user; runs go below it."""
    folder = Path(shutil.copytree(template, tmp_path / "work"))
    runs = folder / "results" / "runs"
    for module in (directory, probe, oracle, parallel):
        monkeypatch.setattr(module, "RUNS", runs)
    monkeypatch.setattr(parallel, "WARM_UP", 1)
    monkeypatch.setattr(directory, "prepare_run", partial(directory.prepare_run, root=runs))
    # The committed study is whole, so that nothing is left to execute; nor are the runs that would confirm it.
    monkeypatch.setattr(sweep_study, "find_study", lambda loaded, storage, same_model=True: find_study(loaded, storage))
    monkeypatch.setattr(sweep, "_execute", lambda *given: {})
    monkeypatch.setattr(experiment_runs, "run_all", lambda *given: Outcome())
    monkeypatch.setattr(BaseServer, "serve_forever", lambda server: None)
    monkeypatch.setattr(recipes, "RECIPES", {name: _short(recipe) for name, recipe in recipes.RECIPES.items()})
    monkeypatch.chdir(folder)
    return folder


def _short(recipe: recipes.Recipe) -> recipes.Recipe:
    stages = tuple(replace(stage, steps=2, kept=tuple((1, name) for _, name in stage.kept)) for stage in recipe.stages)
    return replace(recipe, stages=stages, pictures=8, batch_size=2)


@pytest.mark.parametrize("command", EXECUTED, ids=lambda command: command)
def test_a_command_of_the_docs_does_what_it_says_it_does(command: str, folder: Path, lora_run: RunDirectory) -> None:
    words = words_of(command)
    run = folder / "results" / "runs" / "miniature" / lora_run.run_id
    if words[0] == "new":
        (folder / "second_hardest.py").unlink()
    if words[0] == "prompts":
        shutil.rmtree(folder / "data")
    if "--latest" in words:
        RunDirectory(run).set_status("preempted", 1, 1)
    if "another-lora.safetensors" in words:
        executed("export", str(run), "--output", "exported")
        shutil.copy(next(Path("exported").glob("*.safetensors")), "another-lora.safetensors")
    executed(*(word.replace("RUN", str(run)) for word in words))
    if words[0] == "train":
        [made] = [one for one in directory.RUNS.glob("*/*/status.json") if one.parent.name != lora_run.run_id]
        assert RunDirectory(made.parent).status()["state"] == "finished"


def executed(*words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    # The doctor ends with 2 where something is missing, as FLUX.1-dev's weights are.
    assert ended.value.code in ((0, 2) if words[0] == "doctor" else (0,))


def test_all_but_two_commands_are_executed() -> None:
    assert len([command for command in FOUND if not words_of(command)]) == 2
