"""``adagrpo probe``: what is drawn, what is written, what is refused."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.probing.summary import summary
from analysis.probing.verdict import judge
from harness.cli import main
from harness.config import ROOT, compose
from harness.experiments import choices as choosing
from harness.experiments import parts, probe
from harness.experiments.choices import choices
from harness.experiments.gradients import parallel
from harness.experiments.gradients.parallel import load_parallel, measure_parallel
from harness.experiments.probe import capability_stream, load_probe

SETTINGS = ["rollout.group_size=2", "rollout.branch_indices=[0,1]", "rollout.candidates=2", "model.num_steps=3"]
SMALL = ["--profile", "smoke", *SETTINGS, "reward={colour: 1}", "evaluation.judges=[colour, ocr]"]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["probe", *arguments])
    return int(ended.value.code or 0)


@pytest.fixture(autouse=True)
def _short_and_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(parallel, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(choosing, "ROUNDS", 100)
    monkeypatch.setattr(choosing, "ROUNDS_OF_ONE", 20)


def test_a_probe_writes_what_it_measured_of_each_model_and_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models, out = ["miniature-luck", "miniature"], tmp_path / "out"
    arguments = (*SMALL, "--prompts", "3", "--noises", "2", "--models", *models, "--output", str(out))
    assert run(*arguments) == 0
    told = capsys.readouterr().out
    for model in models:
        content = json.loads((out / f"probe-{model}.json").read_text(encoding="utf-8"))
        assert f"{model}: {content['pictures']} pictures" in told
        assert content["pictures"] == 3 * 2 + 3 * 2 * 2
        assert np.shape(content["rewards"]) == (3, 2)
        assert np.shape(content["groups"]) == (3, 2, 2)
        assert content["summary"]["mean"] == pytest.approx(np.mean(content["rewards"]), abs=1e-4)
        assert set(content["summary"]["judges"]) == {"ocr"}
        assert str(ROOT) not in json.dumps(content)
        assert len(set(map(tuple, content["rewards"]))) == 3
        assert content["summary"]["choices"]["curriculum"]["forwards"] == 3  # one candidate's, the other's is used
        page = (out / f"probe-{model}.html").read_text(encoding="utf-8")
        assert page.count("<svg") == 5
        assert content["summary"]["verdict"]["answer"] in page
    assert content["model"] == "harness/models/miniature/letters"
    for line in (out / "probe.md").read_text(encoding="utf-8").splitlines():
        assert line in told
        assert line.count("|") in (0, 4)
    next((tmp_path / "runs" / "probe").glob("miniature-[0-9a-f]*/*/noise-01.npz")).unlink()
    assert run(*SMALL, "--prompts", "3", "--noises", "2", "--models", "miniature", "--output", str(out)) == 0
    again = json.loads((out / "probe-miniature.json").read_text(encoding="utf-8"))
    assert again | {"seconds": 0} == content | {"seconds": 0}
    assert capsys.readouterr().out.count("seconds left") == 1


def test_parts_that_other_code_has_made_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for code in ("a", "a", "b"):
        monkeypatch.setattr(parts, "numbers_sha256", lambda code=code: code)
        parts.Parts(tmp_path, 1, "pictures", print).get("one", 1, lambda: made.append(1) or {"x": np.zeros(1)})
    assert len(made) == 2


def test_twins_of_the_papers_models_are_probed(tmp_path: Path) -> None:
    assert run("--profile", "paper-dry", "--prompts", "2", "--noises", "2", "--output", str(tmp_path / "out")) == 0
    [path] = (tmp_path / "out").glob("*.json")
    assert json.loads(path.read_text(encoding="utf-8"))["summary"]["verdict"]["answer"] == "cannot tell"
    assert path.with_suffix(".html").read_text(encoding="utf-8").count("<svg") == 5


def test_gradients_say_how_parallel_strategies_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "WARM_UP", 1)
    small = [*SMALL, "--prompts", "2", "--noises", "2", "--gradients", "42"]
    assert run(*small, "--output", str(tmp_path / "out")) == 0
    [path] = (tmp_path / "out").glob("*.json")
    gradients = json.loads(path.read_text(encoding="utf-8"))["gradients"]
    assert len(gradients["cosines"]) == 10
    same = [one for one in gradients["cosines"] if {one["first"], one["second"]} == {"easiest", "hardest"}]
    assert same[0]["value"] != 1
    assert path.with_suffix(".html").read_text(encoding="utf-8").count("<svg") == 6

    # What is kept is used again, except with another decay, on which choices depend.
    def computed(*given: object) -> None:
        raise KeyError("computed")

    monkeypatch.setattr(parallel, "_updates", computed)
    for decay, expected in (("0.8", nullcontext()), ("0.5", pytest.raises(KeyError, match="computed"))):
        config = load_parallel("smoke", [*SMALL[2:], f"capability.decay={decay}"], None)
        with expected:
            assert json.dumps(measure_parallel(config, 42, torch.device("cpu"), print)) == json.dumps(gradients)
    assert run("rollout.kind=full_sde", *SMALL[:2], "--gradients", "42") == 2
    # Measured again without gradients, which take hours, those on disk stay.
    assert run(*small[:-2], "--output", str(tmp_path / "out")) == 0
    assert json.loads(path.read_text(encoding="utf-8"))["gradients"] == gradients


def test_the_capability_follows_the_candidates_that_a_run_would_draw() -> None:
    config = compose("smoke", overrides=["rollout.candidates=4", "capability.decay=0.5"])
    rewards = np.tile(np.linspace(0, 1, 4)[:, None], 3)  # any four different prompts have the mean of all
    stream = capability_stream(rewards, config)
    assert stream.shape == (probe.STREAM, 3)
    np.testing.assert_allclose(stream[:, :2], 0.5)
    np.testing.assert_allclose(stream[:, 2], rewards[:, 0].std())


def found(share: float, flat: float, gain: float, error: float = 0.02) -> dict[str, object]:
    def around(value: float) -> dict[str, float]:
        return {"estimate": value, "low": value - 0.05, "high": value + 0.05}

    rules = {"random": {"gain": 0.0, "gain_error": 0.0, "forwards": 0}}
    rules["screened"] = {"gain": gain, "gain_error": error, "forwards": 56}
    return {"prompt_share": around(share), "no_spread": around(flat), "siblings_gain": 0.2, "choices": rules}


@pytest.mark.parametrize(
    ("share", "flat", "gain", "error", "answer"),
    [
        (0.04, 0.5, 0.5, 0.02, "not worth it"),  # a sample tells of its noise
        (0.5, 0.0, 0.1, 0.02, "not worth it"),  # less than siblings
        (0.5, 0.0, 0.1, 0.1, "cannot tell"),  # perhaps more
        (0.5, 0.0, 0.3, 0.02, "worth it"),
        (0.5, 0.0, 0.3, 0.06, "cannot tell"),
        (0.5, 0.3, 0.1, 0.02, "worth it"),  # many groups teach nothing
        (0.5, 0.2, 0.1, 0.02, "cannot tell"),
        (0.2, 0.0, 0.3, 0.02, "cannot tell"),  # the prompt decides too little
        (float("nan"), 0.0, 0.3, 0.02, "cannot tell"),
    ],
)
def test_the_sentence_of_the_probe(share: float, flat: float, gain: float, error: float, answer: str) -> None:
    verdict = judge(found(share, flat, gain, error))
    assert verdict.answer == answer
    assert verdict.reason


def test_what_rules_would_choose_of_prompts_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "ROUNDS", 2000)
    levels = torch.linspace(0, 1, 20, dtype=torch.float64)
    rewards = levels[:, None].expand(20, 4)
    # Prompts of the middle have spread, the easiest none.
    spreads = (0.5 - (levels - 0.5).abs())[:, None, None] * torch.tensor([-1.0, 1.0]).double()
    groups = levels[:, None, None] + spreads.expand(20, 3, 2)
    found = choices(rewards, groups, candidates=20, num_steps=8)
    assert found["easiest"].mean == 1
    assert found["hardest"].mean == 0
    assert found["easiest"].flat == 1
    assert found["curriculum"].spread == pytest.approx(spreads.max().item() * 2**0.5, rel=0.1)
    assert found["curriculum"].spread > found["random"].spread > found["hardest"].spread
    assert found["random"].mean == pytest.approx(0.5, abs=0.03)
    assert found["curriculum"].gain == pytest.approx(1)  # the widest of spreads that rise evenly from 0
    assert [found[rule].forwards for rule in ("random", "curriculum", "screened")] == [0, 19 * 8, 19 * 8]
    assert found["random"].mean_error == pytest.approx(levels.std().item() / 20**0.5, rel=0.5)


def test_the_count_of_pictures_is_said_beforehand() -> None:
    anchor = ["rollout.group_size=4", "rollout.branch_indices=[0,1,2]"]
    assert load_probe("smoke", anchor, None, 10, 5).num_pictures == 10 * (5 + 3 * 4)
    full = ["rollout.group_size=4", "rollout.kind=full_sde", "rollout.branch_indices=[0,1]"]
    assert load_probe("smoke", full, None, 10, 5).num_pictures == 10 * (5 + 4)


def test_the_page_of_the_testbed_shows_the_committed_measurements() -> None:
    folder = ROOT / "results" / "testbed"
    tables = (folder / "probe.md").read_text(encoding="utf-8").split("\n\n")
    for page, table in zip(("testbed.md", "selection.md"), tables, strict=True):
        assert table.strip() in (ROOT / "docs" / page).read_text(encoding="utf-8")
    for model in ("miniature-luck", "miniature-weak", "letters-luck", "miniature"):
        content = json.loads((folder / f"probe-{model}.json").read_text(encoding="utf-8"))
        again = summary(content["rewards"], content["groups"], {})
        assert again["mean"] == pytest.approx(content["summary"]["mean"], abs=1e-4)
        share = content["summary"]["prompt_share"]["estimate"]
        assert again["prompt_share"]["estimate"] == pytest.approx(share, abs=2e-3)
