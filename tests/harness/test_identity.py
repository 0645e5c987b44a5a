"""A run is what it was made as: its name, its files, its code."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from analysis.runs import sources
from analysis.runs.runlog import read_directory
from harness.config import EXPERIMENTS, ROOT, ConfigError, RunConfig, compose, dump, leaves, numeric_settings, run_id
from harness.config.identity import baseline, inert_settings
from harness.experiments.plan import plan
from harness.runs import identity
from harness.runs.directory import RunDirectory, find_run, prepare_run
from harness.runs.identity import environment
from harness.training.session import Session
from tests.harness.conftest import SHORT

RESOLVED = Path(__file__).with_name("numerics.json")


def resolved_sha256(config: RunConfig) -> str:
    """Hash of all that ``numeric_settings`` looks at, defaults included."""
    content = config.model_dump(mode="json", exclude={"logging", "runtime", "experiment", "prompts"})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def test_resolved_numerics_of_every_profile_are_those_on_record() -> None:
    known = json.loads(RESOLVED.read_text(encoding="utf-8"))
    now = {path.stem: resolved_sha256(compose(path.stem)) for path in (EXPERIMENTS / "profiles").glob("*.yaml")}
    assert now == known, (
        "a profile means other numbers than before: if that is meant, write these values into numerics.json beside this"
        " file (names of runs change by themselves); if a default moved by accident, move it back"
    )


def test_every_setting_that_counts_has_a_value_in_the_baseline() -> None:
    config = compose("miniature-luck", overrides=["rollout.window={size: 1}"])
    content = config.model_dump(
        mode="json", exclude={"logging", "runtime", "experiment", "prompts", "rewards", "plugins"}
    )
    del content["model"]["path"], content["model"]["execution"], content["method"], content["reward"]
    content["rollout"]["prompts_per_update"] = content["rollout"].pop("prompts_per_iteration")
    missing = sorted(set(leaves(content)) - set(baseline()))
    assert not missing, "add them to harness/config/baseline.json, with the value that means that all is as before"


def test_a_default_that_moves_changes_names() -> None:
    config = compose("miniature-luck")
    moved = config.model_copy(update={"objective": config.objective.model_copy(update={"advantage_clip": 4.0})})
    assert numeric_settings(moved)["objective"] == {"advantage_clip": 4.0}
    assert run_id(moved, {}) != run_id(config, {}) != run_id(config, {"model": "another"})


PROCESSES = ["selection=curriculum", "rollout.prompts_per_iteration=2"]
FRUGAL = "model.execution={gradient_checkpointing: true, text_encoders: free, max_train_batch: 2}"


@pytest.mark.parametrize(
    ("cell", "change", "is_same"),
    [
        ([], "logging.wandb=offline", True),
        ([], "runtime.threads=2", True),
        ([], "experiment=other", True),
        ([], FRUGAL, True),
        ([], "seed=1", False),
        ([], "evaluation.interval=10", False),
        ([], "fusion.enabled=true", False),
        ([], "capability.decay=0.5", True),
        ([], "capability.sync=per_rank", True),
        ([], "fusion.weight=3", True),
        (["selection=medium"], "capability.anchor=before", True),
        (["selection=curriculum"], "capability.decay=0.5", False),
        (["selection=curriculum"], "fusion.weight=3", True),
        (["fusion.enabled=true"], "capability.decay=0.5", False),
        (["fusion.enabled=true"], "fusion.weight=3", False),
        (["optimizer.tuning=full"], "optimizer.lora.rank=4", True),
        ([], "optimizer.lora.rank=4", False),
        ([], "optimizer.weight_ema_interval=3", True),
        (["optimizer.weight_ema=0.9"], "optimizer.weight_ema_interval=3", False),
        ([], "rewards.colour={offset: 1}", True),
        ([], "rewards.ocr={offset: 1}", False),
        (PROCESSES, "runtime.processes=2", True),
        ([*PROCESSES, "capability.sync=per_rank"], "runtime.processes=2", False),
    ],
)
def test_runs_that_differ_in_a_setting_without_effect_are_one(cell: list[str], change: str, is_same: bool) -> None:
    one, other = compose("miniature-luck", overrides=cell), compose("miniature-luck", overrides=[*cell, change])
    assert (run_id(one, {}) == run_id(other, {})) is is_same
    assert all(inert_settings(one).values())


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    lines = (ROOT / "harness/models/miniature/data/test.txt").read_text(encoding="utf-8").splitlines()
    for split, start in (("train", 0), ("validation", 10), ("test", 20)):
        (tmp_path / f"{split}.txt").write_text("\n".join(lines[start : start + 10]) + "\n", encoding="utf-8")
    lists = [f"prompts.{split}={tmp_path}/{split}.txt" for split in ("train", "validation", "test")]
    return compose("miniature-luck", overrides=[*SHORT, *lists])


@pytest.fixture
def run(config: RunConfig, tmp_path: Path) -> RunDirectory:
    return prepare_run(config, tmp_path / "runs")


def test_a_run_is_refused_if_what_it_was_made_with_has_changed(
    run: RunDirectory, config: RunConfig, tmp_path: Path
) -> None:
    identity.require_unchanged(run.folder, run.config)
    for split in ("train", "validation", "test"):
        path = tmp_path / f"{split}.txt"
        text = path.read_text(encoding="utf-8")
        path.write_text(text + 'the word "other" in red on yellow\n', encoding="utf-8")
        with pytest.raises(ConfigError, match=rf"prompts\.{split}"):
            identity.require_unchanged(run.folder, run.config)
        path.write_text(text, encoding="utf-8")
    now = identity.fingerprints_of(config)
    for name in ("model", "reward colour"):
        with pytest.raises(ConfigError, match=name.split()[0]):
            identity.require_unchanged(run.folder, config, now | {name: "another"})
    path = run.folder / "config.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("threads: 1", "threads: 2"), encoding="utf-8")  # changes no number
    identity.require_unchanged(run.folder, run.config)
    path.write_text(text.replace("group_size: 2", "group_size: 3"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"rollout\.group_size is 3"):
        Session(run, say=lambda line: None)


def test_adapters_merged_into_bf16_weights_are_refused(config: RunConfig, tmp_path: Path) -> None:
    low = config.model_copy(update={"model": config.model.model_copy(update={"precision": "bf16"})})
    with pytest.raises(ConfigError, match="merge_while_sampling"):
        prepare_run(low, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_lists_with_prompts_in_common_are_refused_unless_that_is_said(config: RunConfig, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "train.txt", tmp_path / "validation.txt")
    with pytest.raises(ConfigError, match=r"prompts\.train .* and prompts\.validation .*10 prompts in common"):
        find_run(config)
    prompts = config.prompts.model_copy(update={"allow_overlap": True})
    taken = prepare_run(config.model_copy(update={"prompts": prompts}), tmp_path / "runs")
    (warning,) = Session(taken).warnings
    assert "10 prompts in common" in warning
    spaced = (tmp_path / "test.txt").read_text(encoding="utf-8").splitlines()[0].replace(" ", "  ")
    (tmp_path / "validation.txt").write_text(f"{spaced}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"prompts\.validation .* and prompts\.test .*1 prompts in common"):
        find_run(config)


def test_a_sign_that_the_validation_list_cannot_give_is_refused_and_a_short_list_is_said(
    config: RunConfig, tmp_path: Path
) -> None:
    def changed(on: tuple[str, ...], prompts: int) -> RunConfig:
        sections = {"stop": {"on": on}, "evaluation": {"validation_prompts": prompts, "judges": ("ocr",)}}
        settings = {name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
        return config.model_copy(update=settings)

    assert find_run(changed(("judge", "texture"), 8)).run_id
    (warning,) = Session(prepare_run(changed((), 11), tmp_path / "runs")).warnings
    assert "evaluation.validation_prompts is 11" in warning
    lines = (tmp_path / "validation.txt").read_text(encoding="utf-8").splitlines()
    (tmp_path / "validation.txt").write_text("\n".join(lines[:7]) + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"stop\.on: a sign needs 8 prompts, but validations measure 7"):
        find_run(changed(("judge",), 10))
    others = "\n".join(lines).replace("the word", "a sign")
    (tmp_path / "validation.txt").write_text(others, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"stop\.on: texture is that of the miniature's pictures"):
        find_run(changed(("texture",), 10).model_copy(update={"reward": {"ocr": 1.0}}))


def test_a_run_takes_over_how_it_is_executed_until_it_is_finished(
    run: RunDirectory, config: RunConfig, tmp_path: Path
) -> None:
    two, three = (
        config.model_copy(update={"runtime": config.runtime.model_copy(update={"threads": threads})})
        for threads in (2, 3)
    )
    assert prepare_run(two, tmp_path / "runs").config.runtime.threads == 2
    run.set_status("finished", 1, 1)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    assert prepare_run(three, tmp_path / "runs").folder == run.folder
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


def test_executions_are_added_and_never_replaced(run: RunDirectory) -> None:
    first = environment()
    first["packages"] = first["packages"] | {"torch": "1.0"}
    for _ in range(2):
        assert identity.record_execution(run.folder, first) == []
    (change,) = identity.changes_of(run.folder)
    assert "torch 1.0" in change
    assert len(identity.record_execution(run.folder, first | {"code_sha256": "other", "seal_sha256": "another"})) == 2
    recorded = json.loads((run.folder / "environment.json").read_text(encoding="utf-8"))
    assert {key: recorded[key] for key in first} == first
    assert [one["code_sha256"] for one in recorded["resumed"]] == ["other"]
    assert "other code" in identity.changes_of(run.folder)
    (line,) = identity.note_on_code([[change], [change, "other code"], []])
    assert f"{change} (2)" in line
    assert "other code (1)" in line


def test_a_run_by_other_code_is_named_and_run_again_when_asked(
    run: RunDirectory, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity.record_execution(run.folder, environment() | {"code_sha256": "other"})
    run.set_status("finished", 1, 1)
    monkeypatch.setattr("harness.experiments.plan.find_run", lambda config: run)
    assert any("1 run was" in line and "--rerun-changed" in line for line in plan([config], 1))
    assert prepare_run(config, tmp_path / "runs").status()["state"] == "finished"
    again = prepare_run(config, tmp_path / "runs", rerun_changed=True)
    assert again.status()["state"] == "waiting"
    kept = again.folder.with_name(f"{again.folder.name}.before-1")
    assert json.loads((kept / "environment.json").read_text(encoding="utf-8"))["code_sha256"] == "other"
    assert [path.parent for path in (tmp_path / "runs").rglob("config.yaml")] == [again.folder]


# --- code


SESSION = '''"""Module."""
# a comment
from harness import other

LIMIT = 3


class Session:
    """Docstring."""

    value: int = 1
    """Docstring of an attribute."""
'''
TREE = {"session": SESSION, "other": "def f():\n    return 1\n", "rewards/base": "class Reward:\n    scale = 1.0\n"}


def tree(folder: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = folder / "harness" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return sources.numbers_sha256(folder)


def test_comments_docstrings_imports_and_places_do_not_count_as_code(tmp_path: Path) -> None:
    sha256 = tree(tmp_path / "a", TREE)
    bare = (
        SESSION.replace('"""Docstring."""', "")
        .replace("# a comment", "")
        .replace("harness import other", "harness.deep import f")
    )
    moved = {"training/session": bare, "deep/f": "def f(): return 1  # one\n", "scores/base": TREE["rewards/base"]}
    assert tree(tmp_path / "b", moved) == sha256
    assert tree(tmp_path / "c", TREE | {"cli": "print(1)\n"}) == sha256
    mirror = {"session": SESSION.replace("other", "other, mirror"), "mirror": "class Mirror:\n    patience = 1\n"}
    assert tree(tmp_path / "d", TREE | mirror) == sha256
    for name, old, new in (("session", "LIMIT = 3", "LIMIT = 4"), ("other", "1", "2"), ("rewards/base", "1.0", "2.0")):
        assert tree(tmp_path / old, TREE | {name: TREE[name].replace(old, new)}) != sha256


def test_the_code_of_numbers_is_the_method_the_models_and_the_rewards_but_no_command() -> None:
    found = sources._imported([ROOT / "harness" / "training" / "session.py"], ROOT)
    names = {path.stem for path in found}
    assert {"adagrpo", "transitions", "objective", "trainer", "flux", "ocr", "combined", "identity"} <= names
    assert not any("commands" in path.parts or "doctor" in path.parts for path in found)


def test_the_seal_covers_the_rules_and_nothing_beside_them(tmp_path: Path) -> None:
    for name in ("analysis/decisions.py", "analysis/verdicts/protocol.py", "analysis/cells/study.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    seal = sources.seal_sha256.__wrapped__(tmp_path)
    assert seal == sources.seal_sha256()
    names = {"analysis/decisions.py": True, "analysis/verdicts/protocol.py": True, "analysis/cells/study.py": False}
    for name, counts in names.items():
        path = tmp_path / name
        text = path.read_text(encoding="utf-8")
        path.write_text(f"{text}\nOTHER = 1\n", encoding="utf-8")
        sources._tree.cache_clear()
        assert (sources.seal_sha256.__wrapped__(tmp_path) != seal) == counts, name
        path.write_text(text, encoding="utf-8")


def test_a_record_of_executions_of_another_shape_is_one_line_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(dump(compose("miniature-luck")), encoding="utf-8")
    for content in ('{"resumed": 5}', '{"resumed": [5]}', '{"packages": []}', '{"settings": 3}', '{"gpus": "x"}', "[]"):
        (tmp_path / "environment.json").write_text(content, encoding="utf-8")
        with pytest.raises(ConfigError, match=r"environment\.json"):
            read_directory(tmp_path)
        with pytest.raises(ConfigError, match=r"environment\.json"):
            identity.record_execution(tmp_path, {"code_sha256": "a"})
        assert identity.changes_of(tmp_path) == ["code not recorded"]


def test_a_setting_that_has_another_name_now_is_read_and_names_runs_as_before() -> None:
    present, former = (
        compose("smoke", overrides=[f"rollout.prompts_per_{unit}=4"]) for unit in ("iteration", "update")
    )
    assert former == present
    assert numeric_settings(present)["rollout"] == {"prompts_per_update": 4}
    with pytest.raises(ConfigError, match=r"prompts_per_update'; the nearest is 'rollout\.prompts_per_iteration'"):
        compose("miniature", overrides=["rollout.prompts_per_update=4"])


def test_a_run_keeps_the_command_that_made_it_without_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose("miniature-luck", overrides=SHORT)
    monkeypatch.setattr("sys.argv", ["/bin/adagrpo", "sweep", "a b", "--storage=postgresql://me:secret@host/x"])
    run = prepare_run(config, tmp_path)
    assert read_directory(run.folder).environment["command"] == "adagrpo sweep 'a b' --storage=postgresql://host/x"
    monkeypatch.setattr("sys.argv", ["pytest"])
    other = prepare_run(config.model_copy(update={"seed": 5}), tmp_path)
    assert "command" not in read_directory(other.folder).environment
