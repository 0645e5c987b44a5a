"""Evaluation of checkpoints: the run's own numbers again, the table, files, grids, and rewards that cannot score."""

import csv
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from harness.cli import main
from harness.config import ConfigError, RewardConfig, compose, merge, parse_overrides
from harness.prompts.lists import PromptList, read_prompts
from harness.rewards import Reward, readiness
from harness.rewards.files.assets import AssetError
from harness.rewards.readiness import Panel, find_fit, find_ready
from harness.runs.directory import RunDirectory
from harness.trained.benchmark import Benchmark, Score, left_out, table
from harness.trained.checkpoints import Checkpoint, find_checkpoint
from harness.trained.loading import load_policy
from harness.trained.pictures import SEEDS, write_pictures

CPU = torch.device("cpu")


class Brightness(Reward):
    """Mean of a picture; may lack its weights."""

    name = "brightness"
    weights_are_here = True

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        if images.shape[-1] == 32:
            raise ValueError("needs wide pictures")
        return images.mean((1, 2, 3))

    def check_ready(self) -> None:
        if not self.weights_are_here:
            raise AssetError("brightness.bin is missing:\nrun `fetch`")

    def check_prompt(self, prompt: str) -> None:
        if "dark" in prompt:
            raise ValueError(f"prompt {prompt!r} is dark")

    def fingerprint(self) -> str:
        return "brightness-1"


@pytest.fixture
def prompts(lora_run: RunDirectory) -> PromptList:
    return read_prompts(lora_run.config.prompts.test)


def test_a_run_scores_as_it_did_itself_and_pictures_come_in_any_batch(
    lora_run: RunDirectory, prompts: PromptList, tmp_path: Path
) -> None:
    checkpoint = find_checkpoint(str(lora_run.folder), "miniature-luck")
    small = checkpoint.config.model.model_copy(update={"max_batch": 3})
    checkpoint = replace(checkpoint, label="tuned", config=checkpoint.config.model_copy(update={"model": small}))
    base = find_checkpoint("base", "miniature-luck")
    plain = base.config.model.model_copy(update={"execution": small.execution})  # the profile's would be compiled
    base = replace(base, config=base.config.model_copy(update={"model": plain}))
    said: list[str] = []
    scores = Benchmark(prompts, find_ready(["colour"])).run([base, checkpoint], CPU, tmp_path, said.append)
    records = [json.loads(line) for line in (lora_run.folder / "eval.jsonl").read_text().splitlines()]
    own = [record for record in records if record["split"] == "test"]
    for score, record in zip(scores, own, strict=True):
        judged = {metric for metric in record["per_prompt"] if not metric.startswith("pictures/")}
        assert judged == set(score.per_prompt)
        for metric in judged:
            assert score.per_prompt[metric] == pytest.approx(record["per_prompt"][metric], abs=1e-4)
    assert said == ["base (miniature-luck): 4 of 4 prompts", "tuned: 3 of 4 prompts", "tuned: 4 of 4 prompts"]

    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert [c["run_id"] for c in written["checkpoints"]] == [None, lora_run.run_id]
    assert written["prompts"] == list(prompts.prompts)
    colour = written["checkpoints"][1]["metrics"]["colour"]
    assert colour["mean"] == pytest.approx(own[1]["metrics"]["colour"], abs=1e-4)
    values = torch.tensor(scores[1].per_prompt["colour"])
    assert colour["standard_error"] == pytest.approx(values.std().item() / 2)
    rows = list(csv.DictReader((tmp_path / "per_prompt.csv").open()))
    assert [row["prompt"] for row in rows] == list(prompts.prompts) * 2
    assert float(rows[4]["colour"]) == scores[1].per_prompt["colour"][0]
    grid = Image.open(tmp_path / "grid.png")
    assert grid.width > len(SEEDS) * 128
    assert grid.height > 2 * len(prompts.prompts) * 32


def test_the_table_has_the_papers_columns_in_its_order_errors_and_differences_paired_by_prompt() -> None:
    one, other = (Checkpoint(name, compose("miniature")) for name in ("base", "mine"))
    assert table([Score(one, {"clip": [0.25, 0.5], "hpsv2": [0.3, 0.3], "colour": [1.0, 1.0]})]) == [
        "| checkpoint | HPS-v2 | HPS-v3 | UR-v2 alignment | UR-v2 coherence | UR-v2 style | CLIP | ImageReward | UR-v1 "
        "| colour |",
        "| --- " * 10 + "|",
        "| base | 0.3000 ± 0.0000 | – | – | – | – | 0.3750 ± 0.1250 | – | – | 1.0000 ± 0.0000 |",
    ]
    heads, _, *lines = table([Score(one, {"colour": [0.1, 0.5]}), Score(other, {"colour": [0.2, 0.6]})])
    assert heads == "| checkpoint | colour |"
    assert lines == [
        "| base | 0.3000 ± 0.2000 |",
        "| mine | 0.4000 ± 0.2000 |",
        "| minus base | +0.1000 ± 0.0000 |",
    ]
    assert table([Score(one, {"colour": [0.5]})])[2] == "| base | 0.5000 |"


def test_rewards_that_cannot_score_are_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unset(Brightness):
        weights_are_here = False

    monkeypatch.setattr(readiness, "build_reward", lambda name, *_: Unset() if name == "unset" else Brightness())
    panel = find_ready(["brightness", "unset"])
    assert [reward.name for reward in panel.ready] == ["brightness"]
    assert find_fit(panel, ["a lamp"], 32, 128).ready
    assert find_fit(panel, ["a lamp", "a dark room"], 32, 128).unfit == {"brightness": "prompt 'a dark room' is dark"}
    assert left_out(find_fit(panel, ["a lamp"], 32, 32)) == [
        "not available: unset: brightness.bin is missing: run `fetch`",
        "not applicable: brightness: needs wide pictures",
    ]


def test_checkpoints_that_cannot_stand_in_one_table_are_refused(prompts: PromptList, tmp_path: Path) -> None:
    base = find_checkpoint("base", "miniature-luck")
    benchmark = Benchmark(prompts, Panel(ready=[Brightness()]))
    with pytest.raises(ConfigError, match="two checkpoints are called 'base"):
        benchmark.run([base, base], CPU, tmp_path, lambda line: None)
    wide = replace(base.sampled(width=160), label="wide")
    with pytest.raises(ConfigError, match="different sizes: set --height and --width"):
        benchmark.run([base, wide], CPU, tmp_path, lambda line: None)
    assert not list(tmp_path.iterdir())


def test_a_value_that_is_not_finite_is_named_at_once(prompts: PromptList, tmp_path: Path) -> None:
    class Broken(Brightness):
        def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
            return torch.full((len(prompts),), float("nan"))

    base = find_checkpoint("base", "miniature-luck")
    with pytest.raises(ConfigError, match=r"base \(miniature-luck\): brightness of prompt 'the word .*' is nan"):
        Benchmark(prompts, Panel(ready=[Broken()])).run([base], CPU, tmp_path, lambda line: None)


def run_command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def test_the_command_evaluates_as_the_run_does_with_its_settings_and_closes_the_rewards(
    lora_run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(Path(shutil.copytree(lora_run.folder, tmp_path / "run")))
    overrides = ["evaluation={num_steps: 3, height: 48}", "rewards.colour={backend: url, url: 'http://colours'}"]
    settings = yaml.safe_load((run.folder / "config.yaml").read_text())
    (run.folder / "config.yaml").write_text(yaml.safe_dump(merge(settings, parse_overrides(overrides))))
    built: list[Brightness] = []

    class Held(Brightness):
        is_closed = False

        def close(self) -> None:
            self.is_closed = True

    def build(name: str, num_threads: int, settings: RewardConfig | None) -> Reward:
        assert settings is not None
        assert settings.url == "http://colours"
        built.append(Held())
        return built[-1]

    monkeypatch.setattr(readiness, "build_reward", build)
    arguments = ["evaluate", str(run.folder), "--rewards", "colour", "--width", "144", "--output", str(tmp_path)]
    assert run_command(*arguments) == 0
    model = json.loads((tmp_path / "evaluation.json").read_text())["checkpoints"][0]["model"]
    assert (model["num_steps"], model["height"], model["width"]) == (3, 48, 144)
    assert [reward.is_closed for reward in built] == [True]


def test_a_reward_that_was_asked_for_and_cannot_score_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lamps = tmp_path / "lamps.txt"
    lamps.write_text("a lamp\n")
    assert run_command("evaluate", "base", "--rewards", "ocr", "--prompts", str(lamps)) == 2
    assert "--rewards ocr: prompt 'a lamp' has no word to read" in capsys.readouterr().err
    assert run_command("evaluate", "base", "--rewards", "colour,orc") == 2
    assert "--rewards orc: unknown reward 'orc': the nearest is 'ocr'" in capsys.readouterr().err
    assert run_command("evaluate", "base", "--prompts", str(lamps)) == 2
    told = capsys.readouterr().err
    assert "no reward can score here: " in told
    assert "ocr: prompt 'a lamp' has no word to read" in told


def test_sample_draws_each_prompt_from_each_seed_and_the_files_say_what_they_show(
    lora_run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f'the word "{word}" in red on yellow' for word in ("harbor", "tin")]
    arguments = [part for prompt in words for part in ("--prompt", prompt)]
    arguments += ["--seed", "1", "--seed", "2", "--output", str(tmp_path)]
    assert run_command("sample", str(lora_run.folder), *arguments) == 0
    files = sorted(path.name for path in tmp_path.glob("*.png"))
    assert [re.sub("-[0-9a-f]{8}-", "-", name) for name in files] == [
        f"flow-grpo-random-seed-0-the-word-{word}-in-red-on-yellow-seed{seed}.png"
        for word in ("harbor", "tin")
        for seed in (1, 2)
    ]
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / name) for name in files]
    picture = Image.open(tmp_path / files[0])
    assert picture.size == (128, 32)
    assert picture.info["prompt"] == words[0]
    assert (picture.info["seed"], picture.info["checkpoint"]) == ("1", "flow_grpo random, seed 0")
    assert picture.tobytes() != Image.open(tmp_path / files[1]).tobytes()


def test_pictures_of_other_prompts_and_weights_stay_beside_each_other(tmp_path: Path) -> None:
    config = find_checkpoint("base", "paper-dry").sampled(height=32, width=32, num_steps=2).config
    prompts = ["一只红色的狐狸", "两只猫头鹰", "a fox " * 60 + "left", "a fox " * 60 + "right", "con", "../../a?b*c:"]
    policies = [load_policy(Checkpoint("base", config), CPU, prompts) for _ in range(2)]
    with torch.no_grad():
        for parameter in policies[1].transformer.parameters():
            parameter *= 1.5
    written = [
        path
        for label in ("base", "LoRA")
        for policy in policies
        for path in write_pictures(policy, prompts, [1], tmp_path / "new", label)
    ]
    assert len(set(written)) == len(written) == len(list((tmp_path / "new").glob("*.png"))) == 24
    assert all(re.fullmatch(r"[a-z0-9-]{1,140}\.png", path.name) for path in written)
    again = list(write_pictures(policies[0], prompts, [1], tmp_path / "new", "base"))
    assert again == written[:6]
    lines = [json.loads(line) for line in (tmp_path / "new" / "pictures.jsonl").read_text("utf-8").splitlines()]
    assert [line["file"] for line in lines] == [path.name for path in written]
    for line in lines:
        assert Image.open(tmp_path / "new" / line["file"]).info["prompt"] == line["prompt"]


def test_a_folder_that_holds_another_evaluation_is_refused(prompts: PromptList, tmp_path: Path) -> None:
    """Of other checkpoints or prompts, or by rewards that are missing now or have changed."""

    class Other(Brightness):
        def fingerprint(self) -> str:
            return "brightness-2"

    class Darkness(Brightness):
        name = "darkness"

    base, path = find_checkpoint("base", "paper-dry"), tmp_path / "evaluation.json"
    small, smaller = (base.sampled(height=32, width=width, num_steps=2) for width in (64, 48))

    def evaluate(*rewards: Reward, checkpoint: Checkpoint = small, sha256: str = "sha", noises: int = 1) -> None:
        benchmark = Benchmark(PromptList(prompts.prompts[:1], sha256), Panel(list(rewards)), noises, num_grid_prompts=0)
        benchmark.run([checkpoint], CPU, tmp_path, lambda line: None)

    evaluate(Brightness())
    before = path.read_bytes()
    changes: list[dict[str, Any]] = [{"checkpoint": smaller}, {"sha256": "other"}, {"noises": 2}]
    for rewards, changed in (([Other()], {}), ([Darkness()], {}), *(([Brightness()], change) for change in changes)):
        with pytest.raises(ConfigError, match="holds another evaluation"):
            evaluate(*rewards, **changed)
    assert path.read_bytes() == before
    evaluate(Brightness(), Darkness())
    assert json.loads(path.read_text())["rewards"] == {"brightness": "brightness-1", "darkness": "brightness-1"}
    path.write_text("{")
    with pytest.raises(ConfigError, match="holds another evaluation"):
        evaluate(Brightness(), Darkness())
