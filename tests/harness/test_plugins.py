"""Parts of a run that stand outside of the project: found by reference, checked, and part of what the run is."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness import cli
from harness.adagrpo import CapabilityTracker
from harness.config import ConfigError, RewardConfig, RunConfig, compose, load, run_id
from harness.config import plugins as config_plugins
from harness.experiments.compare import configs_of
from harness.experiments.grid import expand_grid
from harness.foundation import plugins
from harness.foundation.errors import HarnessError
from harness.foundation.plugins import PluginError, explaining, find
from harness.prompts.lists import read_prompts
from harness.rewards.plugin import PluginReward
from harness.rewards.readiness import find_fit, find_ready
from harness.rules.advantages import Group
from harness.rules.plugins import fusion_of, local_of, rule_of, try_out
from harness.rules.selection import Candidates
from harness.runs.directory import RunDirectory, find_run, prepare_run
from harness.runs.identity import plugin_fingerprints, require_unchanged
from harness.training.session import Session
from tests.harness.conftest import SHORT

RULE = """
class SecondHardest:
    samples = 1

    def __call__(self, candidates):
        return int(candidates.means.argsort()[1])
"""
REWARD = """
def Brightness(images, prompts):
    return images.mean(dim=(1, 2, 3))
"""
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a plug-in's file, by name ``my.py``."""

    def writing(text: str) -> Path:
        file = tmp_path / "my.py"
        file.write_text(text)
        return file

    return writing


def composed(*overrides: str) -> RunConfig:
    evaluation = "evaluation={judges: [], test: false, base_test: false}"
    return compose("miniature-luck", overrides=[*SHORT, "rollout.candidates=2", evaluation, *overrides])


def test_a_run_trains_on_a_plug_in_and_is_told_by_its_source(write: Write, tmp_path: Path) -> None:
    file = write(RULE + REWARD)
    config = composed(f"selection={file}:SecondHardest", f"reward={file}:Brightness", "rewards.Brightness.batch_size=4")
    run = prepare_run(config, tmp_path / "runs")
    assert run.run_id.startswith("flow_grpo-SecondHardest-seed0-")
    assert (run.folder / "plugins" / "SecondHardest" / "my.py").read_text() == file.read_text()
    Session(run, say=lambda line: None).execute()
    assert '"ranks": [1]' in (run.folder / "metrics.jsonl").read_text()
    assert load(run.folder / "config.yaml") == config
    file.write_text(file.read_text() + "\n# Another one.\n")
    assert find_run(config, tmp_path / "runs").run_id != run.run_id
    exploring = composed(f"selection={file}:SecondHardest", "choice.explore=0.9")  # the rule is given it
    assert run_id(exploring, {}) != run_id(composed(f"selection={file}:SecondHardest"), {})
    with pytest.raises(ConfigError, match=r"my\.py:SecondHardest is another one than the run was made with"):
        require_unchanged(run.folder, run.config)
    file.unlink()
    assert run.status()["state"] == "finished"
    assert run.config == config
    with pytest.raises(PluginError, match=r"no such file; a run keeps a copy of its plug-ins, in plugins/"):
        find_run(config)


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        ("selection", "return 4", "must return an index from 0 to 3, of 4 candidates, and returned 4"),
        ("selection", "return 0.5", "a whole number, and returned 0.5"),
        ("selection", "return int(torch.randint(10**9, (1,))) % 4 if next(calls) else 1", "when called again"),
        ("selection", "return candidates.means[99]", "my.py:6: IndexError: index 99 is out of bounds"),
        ("fusion", "return candidates.local[:3]", r"must return a tensor of 4 .*, \[G\], and returned a tensor \[3\]"),
        ("fusion", "return candidates.local * float('nan')", "advantages that are not finite"),
        ("fusion", "return torch.rand(4)", "other advantages when called again"),
        ("local", "return [0.0]", r"must return a tensor of 4 advantages, \[G\], and returned \[0.0\]"),
        (
            "reward",
            "return candidates.mean()",
            r"must return a tensor of a score per picture, \[2\], and returned \[\]",
        ),
        ("reward", "return candidates.mean((1, 2, 3)) / 0 * 0", "scored nan, for the prompt 'one'"),
        ("reward", "return torch.rand(2)", "when called again"),
        ("reward", "return candidates.missing", "my.py:6: AttributeError: 'Tensor' object has no attribute 'missing'"),
    ],
)
def test_what_may_not_be_returned_is_refused_in_one_line(write: Write, kind: str, body: str, said: str) -> None:
    file = write(
        f"import itertools\nimport torch\n\ncalls = itertools.count()\ndef Mine(candidates, *_):\n    {body}\n"
    )
    source = f"{file}:Mine"
    rewards = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
    capability = CapabilityTracker()
    capability.update(rewards)
    pictures, prompts = torch.zeros(2, 3, 8, 8), ["one", "two"]
    call = {
        "selection": lambda: rule_of("", source)(Candidates(rewards[:, None], capability, torch.Generator())),
        "fusion": lambda: fusion_of("", source)(Group(rewards, rewards, 0.3, 0.1), 1.0),
        "local": lambda: local_of(source)(rewards),
        "reward": lambda: PluginReward("Mine", RewardConfig(plugin=source)).score(pictures, prompts),
    }[kind]
    with pytest.raises(PluginError, match=said) as caught, explaining():
        call()
    assert "my.py:" in str(caught.value)
    assert "\n" not in str(caught.value)


KERNEL = """
from harness.transitions import Kernel, SDETransition
import torch

class Mine(Kernel):
    def _transition(self, x, v, sigma, sigma_next, fallback):
        std = self.eta * (sigma - sigma_next).sqrt()
        return SDETransition(mean=MEAN, std=STD, diffusion=torch.full_like(sigma, self.eta))
"""


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        ("x[:1] + v[:1]", "std", r"must be shaped as x, \[3, 4, 4, 4\], and is \[1, 4, 4, 4\]"),
        ("x + v * float('inf')", "std", "is not finite, though the velocity is"),
        ("x + v", "-std", "the std of a step from sigma 0.8 to 0.6 is -"),
        ("x", "std", "must depend on the velocity"),
        ("x + v + torch.rand(1)", "std", "gave another step when called again"),
    ],
)
def test_what_a_kernel_may_not_return_is_refused_in_one_line(write: Write, mean: str, std: str, said: str) -> None:
    good = write(KERNEL.replace("MEAN", "x + (sigma_next - sigma) * v").replace("STD", "std"))
    try_out(None, 1, None, None, f"{good}:Mine", 0.3)
    bad = write(KERNEL.replace("MEAN", mean).replace("STD", std))
    with pytest.raises(PluginError, match=said):
        try_out(None, 1, None, None, f"{bad}:Mine", 0.3)


def test_a_rule_without_samples_is_tried_without_a_capability(write: Write) -> None:
    body = "def __call__(self, candidates):\n        return int(candidates.capability.mean)"
    file = write(f"class Mine:\n    samples = 0\n    {body}\n")
    with pytest.raises(PluginError, match=r"my\.py:4: ValueError: the capability tracker is empty"):
        plugin_fingerprints(composed(f"selection={file}:Mine"))
    plugin_fingerprints(composed(f"selection={file}:Mine", "fusion.enabled=true"))


def test_prompts_come_from_a_function(write: Write) -> None:
    file = write("def words():\n    return [f'the  word {i}' for i in range(9)]\n\ndef none():\n    return None\n")
    config = composed(f"prompts.train={file}:words")
    assert read_prompts(config.prompts.train).prompts[3] == "the word 3"
    assert config.plugin_sources == {"words": f"{file}:words"}
    with pytest.raises(PluginError, match="must return a list of prompts, and returned None"):
        read_prompts(f"{file}:none")


def test_a_policy_of_the_wrong_kind_is_refused(write: Write) -> None:
    """Before a run's folder is made."""
    config = composed(f"model.adapter={write(RULE)}:SecondHardest")
    with pytest.raises(PluginError, match=r"must be a subclass of harness\.models\.pipelines\.policy\.Policy"):
        plugin_fingerprints(config)


@pytest.mark.parametrize(
    ("setting", "body"),
    [
        ("selection", "def Mine(candidates, more): pass"),
        ("selection", "class Mine:\n    def __init__(self, level): pass"),
        ("fusion.kind", "def Mine(group): pass"),
        ("objective.normalisation", "def Mine(rewards, more): pass"),
        ("method.kernel", "class Mine(Kernel):\n    def __init__(self): pass"),
    ],
)
def test_a_wrong_signature_is_one_line(setting: str, body: str, write: Write) -> None:
    file = write(f"from harness.transitions import Kernel\n{body}\n")
    fused = ["fusion.enabled=true"] if setting == "fusion.kind" else []
    config = composed(f"{setting}={file}:Mine", *fused)
    with pytest.raises(PluginError, match=r"my\.py:Mine: TypeError: ") as caught:
        plugin_fingerprints(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["selection={file}:Missing"], "has no Missing, but SecondHardest, random"),
        (["selection={file}:random"], "random is a name of the project's own"),
        (["selection=nowhere/my.py:Rule"], "nowhere/my.py:Rule: no such file"),
        (["selection=no_such_module:Rule"], "there is no module no_such_module in Python"),
        (["selection=SecondHardest"], "selection='SecondHardest' is unknown; the nearest is"),
        (["selection=my.py"], r"name what is in the file, as in my\.py:Name"),
        (["reward={file}:Picky"], r"plug-in \S+my\.py:\d+: ValueError: no weights"),
        (["reward={file}:SecondHardest", "rewards.SecondHardest.precision=bf16"], "a plug-in has no such setting"),
        (["selection={file}:SecondHardest", "plugins.SecondHardest.source=other.py:SecondHardest"], "have one name"),
    ],
)
def test_a_plug_in_that_cannot_be_had_is_one_line(write: Write, overrides: list[str], said: str) -> None:
    picky = "class Picky:\n    def __init__(self):\n        raise ValueError('no weights')\n"
    file = write(f"{RULE}\n\ndef random(candidates):\n    return 0\n\n{picky}")
    with pytest.raises(HarnessError, match=said):
        find_run(composed(*(override.format(file=file) for override in overrides)))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (b"x = 1\ny = (", ":2: SyntaxError"),
        (b"import sys\nsys.exit()", ":2: SystemExit"),
        (b"\nimport no_such_package", ":2: ModuleNotFoundError"),
        ("x = 1".encode("utf-16"), ": is not text in UTF-8"),
    ],
)
def test_source_that_cannot_be_executed_is_named_in_files_modules_and_their_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: bytes, said: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package = f"broken_{hashlib.sha256(source).hexdigest()[:8]}"
    for file in (tmp_path / f"{package}_module.py", tmp_path / package / "__init__.py"):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(source)
    (tmp_path / package / "rule.py").write_text(RULE)
    places = {f"{tmp_path}/{package}_module.py": "_module.py", f"{package}_module": "_module.py"}
    for place, name in (places | {f"{package}.rule": "/__init__.py"}).items():
        with pytest.raises(PluginError, match=re.escape(f"{package}{name}{said}")):
            find(f"{place}:Rule")


def test_the_command_shows_a_traceback_only_when_asked(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    file = write("raise RuntimeError('broken on purpose')")
    for extra in ([], ["--traceback"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["show-config", f"selection={file}:Rule", *extra])
        error = capsys.readouterr().err
        assert f"adagrpo: error: plug-in {file}:1: RuntimeError: broken on purpose" in " ".join(error.split("\n"))
        assert ("Traceback" in error) == bool(extra)


def test_the_folder_of_a_plug_in_does_not_matter_and_paths_are_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = []
    for name in ("here", "a place: [mine], {yours}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "my.py").write_text(RULE)
        monkeypatch.chdir(tmp_path / name)
        config = composed("selection=my.py:SecondHardest")
        assert config.plugins["SecondHardest"].source == f"{tmp_path}/{name}/my.py:SecondHardest"
        ids.append(find_run(config).run_id)
    assert ids[0] == ids[1]
    (tmp_path / name / "my.py").rename(tmp_path / name / "a rule.py")
    sources = {"SecondHardest": f"{tmp_path}/{name}/a rule.py:SecondHardest"}
    assert composed("selection=a rule.py:SecondHardest").plugin_sources == sources
    [[cell]] = configs_of(["a rule.py:SecondHardest"], [0], "miniature-luck")
    assert cell.plugin_sources == sources


def test_a_module_is_told_by_what_it_imports_of_its_own_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "lab_of_tests"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "rules.py").write_text(f"from .parts import WHICH\nimport torch\n{RULE}")
    (package / "parts.py").write_text("WHICH = 1\n")
    (package / "unread.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(config_plugins, "installed", lambda: {"second": "lab_of_tests.rules:SecondHardest"})
    config = composed("selection=second")
    assert config.selection == "second"
    assert config.plugins["second"].source == "lab_of_tests.rules:SecondHardest"
    before = find(config.plugins["second"].source)
    assert set(before.files) == {f"lab_of_tests/{name}.py" for name in ("__init__", "rules", "parts")}
    (package / "parts.py").write_text("WHICH = 2\n")
    with pytest.raises(PluginError, match="has changed since this process imported it"):
        find(config.plugins["second"].source)
    monkeypatch.setattr(plugins, "_IMPORTED", {})  # as in another process
    assert find(config.plugins["second"].source).sha256 != before.sha256


def test_a_grid_takes_plug_ins_beside_its_own_names(write: Write, tmp_path: Path) -> None:
    file = write(RULE + REWARD)
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        f"profile: miniature-luck\nseeds: [0]\ncells:\n"
        f"  - {{selection: [random, '{file}:SecondHardest'], reward: '{file}:Brightness'}}\n"
    )
    configs = expand_grid(str(grid))
    assert [config.selection for config in configs] == ["random", "SecondHardest"]
    assert configs[1].reward == {"Brightness": 1.0}


def test_a_reward_that_divides_by_a_picture_s_spread_is_fit(write: Write) -> None:
    file = write("def Flat(images, prompts):\n    return 1 / images.std(dim=(1, 2, 3))\n")
    panel = find_ready(["Flat"], {"Flat": RewardConfig(plugin=f"{file}:Flat")})
    assert find_fit(panel, ["a lamp"], 8, 8).ready


def test_checkpoints_are_scored_by_a_plug_in(write: Write, lora_run: RunDirectory, tmp_path: Path) -> None:
    file = write(REWARD)
    words = [
        "evaluate",
        str(lora_run.folder),
        "--noises",
        "1",
        "--grid-prompts",
        "0",
        "--output",
        str(tmp_path / "out"),
    ]
    with pytest.raises(SystemExit, match="0"):
        cli.main([*words, "--rewards", f"{file}:Brightness,colour"])
    with (tmp_path / "out" / "per_prompt.csv").open() as lines:
        assert {"Brightness", "colour"} <= set(next(lines).strip().split(","))


@pytest.mark.parametrize("words", [["{}:Brightness"], ["ocr", "plugin={}:Brightness"]])
def test_a_plug_in_is_not_served(words: list[str], write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(REWARD)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["serve-reward", *(word.format(file) for word in words), "--port", "0"])
    assert f"{file}:Brightness is a plug-in, which every run computes itself" in capsys.readouterr().err
