"""A name stands in one registry, and every part of the project knows each of its entries."""

import re

import pytest

from analysis.cells.labels import SELECTIONS, Cell, judge_name, selection_colour
from harness import adagrpo, transitions
from harness.config import ROOT, ConfigError, compose
from harness.config.selection import NEEDS, needs_of
from harness.experiments.doctor.sizes import find_architecture, memory
from harness.experiments.jobs.command import CONFIGURATIONS
from harness.foundation import names
from harness.rules import advantages, selection
from harness.trained.model_card import _method_of

OF_SETTINGS = {
    "method.kernel": names.METHODS,
    "selection": names.SELECTIONS,
    "fusion.kind": names.FUSIONS,
    "runtime.engine": names.ENGINES,
}


def test_every_name_has_its_part() -> None:
    assert set(transitions.KERNELS) == set(names.METHODS)
    assert adagrpo.SELECTION_STRATEGIES == SELECTIONS == names.PAPER_SELECTIONS
    assert set(selection.RULES) == set(names.SELECTIONS) >= set(NEEDS)
    assert set(advantages.FUSIONS) == set(names.FUSIONS)
    assert [judge_name(name) for name in names.REWARDS] == [reward.label for reward in names.REWARDS.values()]
    assert all((CONFIGURATIONS / f"{engine}.yaml").is_file() for engine in names.ENGINES)
    assert len({selection_colour(selection) for selection in names.SELECTIONS}) == len(names.SELECTIONS)


@pytest.mark.parametrize("key", OF_SETTINGS)
def test_every_name_is_a_value_of_its_setting_and_another_is_not(key: str) -> None:
    for name in OF_SETTINGS[key]:
        overrides = [f"{key}={name}", "rollout.prompts_per_iteration=2", "runtime.processes=2", "method.eta=0.5"]
        overrides += ["fusion.enabled=true"] if key == "fusion.kind" else []
        if key == "selection" and needs_of(name).level:
            overrides.append("choice.level=0.5")
        config = compose("smoke", overrides=overrides)
        assert _method_of(config)
    wrong = next(iter(OF_SETTINGS[key])) + "x"
    with pytest.raises(ConfigError, match=rf"{key}='{wrong}' is unknown; the nearest is '{wrong[:-1]}'"):
        compose("smoke", overrides=[f"{key}={wrong}"])


def test_an_entry_that_is_added_is_known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (names.METHODS, names.SELECTIONS, names.FUSIONS):
        monkeypatch.setitem(registry, "another", "Another")
    every = ["method.kernel=another", "selection=another", "fusion.enabled=true", "fusion.kind=another"]
    assert _method_of(compose("smoke", overrides=every)) == "Another + another prompts + Another"
    assert selection_colour("another") == "Another"
    assert Cell("another", "random", False, 0.0).label == "Another"


def test_the_page_of_rewards_has_every_row_of_the_table() -> None:
    page = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8").partition("## Settings")[0]
    found = {}
    for heads, *_, published, backends in re.findall(r"^\| (`.*?) \| (.*) \| (.*) \| (.*) \|$", page, re.M):
        found |= dict.fromkeys(re.findall(r"`([\w-]+)`", heads), (published, backends))
    assert list(found) == list(names.REWARDS)
    for name, reward in names.REWARDS.items():
        published, backends = found[name]
        assert backends == ", ".join(reward.backends)
        assert all(f"`{place}`" in published for place in (reward.path, reward.base) if place)


def test_an_unknown_reward_or_judge_is_refused_when_it_is_read() -> None:
    for override in ("reward={clib: 1}", "reward.clib=1", "evaluation.judges=[ocr, clib]", "rewards.clib.device=cpu"):
        with pytest.raises(ConfigError, match=r"^[^\n]*'clib' is unknown; the nearest is 'clip'[^\n]*$"):
            compose("smoke", overrides=[override])


def test_a_reward_of_the_registry_is_known_to_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        names.REWARDS, "another", names.RewardName("Another judge", ("url",), model=names.RewardModel(10, 4))
    )
    config = compose("smoke", overrides=["reward={another: 1}"])
    architecture = find_architecture("black-forest-labs/FLUX.1-dev", None)
    assert architecture is not None
    assert memory(config, architecture, config.reward)["reward models"] == 40
    assert judge_name("another") == "Another judge"
