"""Several rewards in one run: settings, weighted sums of rewards and of advantages, logs, and scoring elsewhere."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from harness.adagrpo import CapabilityTracker, local_advantage
from harness.config import ConfigError, RewardConfig, compose, dump, load, run_id
from harness.experiments.grid import expand_grid
from harness.rewards import Reward, RewardError, build_reward, build_rewards, build_weighted
from harness.rewards.combined import Normalisation, WeightedSum
from harness.rewards.remote.server import RewardServer
from harness.runs.directory import find_run
from harness.training.advantages import Advantages
from harness.training.processes import Processes
from harness.training.scoring import Scores, start_scoring
from tests.harness.conftest import Serve, build_trainer


class Constant(Reward):
    def __init__(self, name: str, *scores: float) -> None:
        self.name, self.scores = name, scores

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([self.scores[i % len(self.scores)] for i in range(len(prompts))])

    def fingerprint(self) -> str:
        return self.name


# --- sums


def test_a_normalised_sum_is_the_sum_by_hand() -> None:
    # A component of weight 0 is reported, but not computed in training.
    total = WeightedSum(
        {Constant("a", 14.0, 16.0): 1.0, Constant("b", 0.3): -2.0, Constant("c", 1.0): 0.0},
        {"a": Normalisation(13.0, 2.0), "b": Normalisation(0.25, 0.1)},
    )
    for reward, resolution in zip(total.parts, (1.0, 0.05, 7.0), strict=True):
        reward.resolution = resolution
    images = torch.zeros(2, 3, 4, 4)
    assert total.score(images, ["p", "q"]).tolist() == pytest.approx([0.5 - 1.0, 1.5 - 1.0])
    assert total.weights == {"a": 1.0, "b": -2.0}
    assert {name: values.tolist() for name, values in total.submit(images, ["p", "q"])().items()} == {
        "a": [14.0, 16.0],
        "b": pytest.approx([0.3, 0.3]),
    }
    assert total.resolution == pytest.approx(1.0 / 2 + 2 * 0.05 / 0.1)  # of all components at once
    measured = total.measure(images, ["p", "q"])
    assert measured["a"].tolist() == [14.0, 16.0]
    assert measured["c"].tolist() == [1.0, 1.0]
    assert measured[total.name].tolist() == pytest.approx([-0.5, 0.5])


@pytest.mark.parametrize(
    "components",
    [
        {},
        {Constant("a", 1): 0.0},
        {Constant("a", 1): math.inf, Constant("b", 1): 1.0},
        {Constant("a", 1): 1.0, Constant("a", 2): 1.0},
    ],
)
def test_a_weighted_sum_without_a_meaning_is_rejected(components: dict[Reward, float]) -> None:
    with pytest.raises(ValueError, match="weight"):
        WeightedSum(components)


def test_the_fingerprint_tells_weights_and_components_apart() -> None:
    variants = [{"ocr": 1.0}, {"ocr-v4": 1.0}, {"ocr": 0.5}, {"ocr": 1.0, "colour": 0.5}, {"ocr": 1.0, "colour": 0.6}]
    assert len({build_weighted(variant).fingerprint() for variant in variants}) == len(variants)


def test_a_score_that_is_not_finite_names_image_and_component() -> None:
    total = WeightedSum({Constant("a", 1.0, math.nan): 1.0, Constant("b", 2.0): 1.0})
    latents = torch.zeros(3, 3, 4, 4)
    with pytest.raises(RewardError, match=r"reward 'a\+b': picture 1 has no finite score \(a nan, b 2\)"):
        start_scoring(total, lambda x: x, latents, ["p"] * 3, max_batch=3).wait()


# --- settings


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ocr", {"device": "cuda"}, "rewards.ocr.device: ocr with backend native has no such setting"),
        ("imagereward", {"backend": "native"}, "rewards.imagereward.backend=native: the nearest is"),
        ("hpsv2", {"backend": "package", "precision": "bf16"}, "rewards.hpsv2.precision: hpsv2 with backend package"),
        ("hpsv3", {"backend": "package", "offload": True}, "rewards.hpsv3.offload: hpsv3 with backend package has no"),
        ("clip", {}, "rewards.clip: not used by this run; the nearest is"),
        ("ocr-v4", {"scale": 2.0}, "rewards.ocr-v4: offset and scale are for rewards that are trained on"),
    ],
)
def test_a_setting_without_effect_is_an_error(name: str, settings: dict[str, Any], message: str) -> None:
    used = {"ocr": 1.0} if name in ("clip", "ocr-v4") else {name: 1.0}
    with pytest.raises(ValueError, match=message):
        build_rewards(used, ("ocr-v4",), {name: RewardConfig.model_validate(settings)})


def test_a_judge_that_is_trained_on_is_built_once() -> None:
    reward, measured = build_rewards({"ocr": 1.0, "colour": 0.5}, ("ocr", "ocr-v4", "colour"), {})
    assert [r.name for r in measured] == ["ocr+0.5*colour", "ocr-v4"]
    assert measured[0] is reward


def test_only_normalisation_counts_in_a_run_s_identity(tmp_path: Path) -> None:
    def identity(*overrides: str) -> str:
        return run_id(compose("miniature-luck", overrides=["reward.hpsv3=1", *overrides]), {"reward": "abc"})

    base = identity()
    assert identity("rewards.hpsv3={path: a.pt, device: cuda, batch_size: 3, timeout_seconds: 5}") == base
    assert identity("rewards.hpsv3.scale=2") != base
    assert identity("rewards.hpsv3.offset=2") != identity("rewards.hpsv3.scale=2")
    config = compose("miniature-luck", overrides=["reward.hpsv3=1", "rewards.hpsv3={path: a.pt, scale: 2}"])
    (tmp_path / "config.yaml").write_text(dump(config))
    assert load(tmp_path / "config.yaml").rewards["hpsv3"].scale == 2


def test_the_paper_s_combination_is_a_file_and_the_published_grid_has_it() -> None:
    config = compose("paper", reward="hpsv3_clip")
    assert build_weighted(config.reward, settings=config.rewards).weights == {"hpsv3": 1.0, "clip": 1.0}
    # The untrained model's column means count nothing, a standard deviation of either counts one.
    assert config.trained_reward({"hpsv3": 14.56, "clip": 0.3809}) == pytest.approx(0)
    assert config.trained_reward({"hpsv3": 14.99, "clip": 0.3907}) == pytest.approx(2)
    combined = [run for run in expand_grid("published") if len(run.reward) == 2]
    assert len(combined) == 6
    assert all(run.rewards == config.rewards for run in combined)


def test_what_a_reward_lacks_is_found_before_training(tmp_path: Path) -> None:
    overrides = ["reward={ocr: 1, colour: 1}", "rewards.ocr={backend: url, url: 'http://127.0.0.1:9'}"]
    with pytest.raises(ConfigError, match=r"reward 'ocr': http://127\.0\.0\.1:9/reward cannot be reached"):
        find_run(compose("miniature-luck", overrides=overrides), tmp_path)


# --- training

FAST = [
    "rollout.candidates=3",
    "rollout.group_size=4",
    "rollout.branch_indices=[1,3]",
    "rollout.prompts_per_iteration=2",
    "selection=curriculum",
    "fusion.enabled=true",
    "reward={ocr: 1.0, colour: 0.5}",
    "rewards.colour={offset: 0.5, scale: 0.25}",
]


def test_advantages_are_combined_by_hand() -> None:
    config = compose("miniature-luck", overrides=FAST)
    reward, tracker = build_weighted(config.reward, settings=config.rewards), CapabilityTracker()
    generator = torch.Generator().manual_seed(0)
    components = [
        {name: torch.rand(2, 4, generator=generator, dtype=torch.float64) for name in ("ocr", "colour")}
        for _ in range(2)
    ]

    def advantages(*overrides: str) -> list[Tensor]:
        config = compose("miniature-luck", overrides=[*FAST, "fusion.enabled=false", *overrides])
        found = Advantages(config, reward, Processes(Accelerator(cpu=True), 60))
        return found.of([Scores(slot, reward.total(slot)) for slot in components], tracker)

    combined = advantages("objective.combine=advantages")
    for slot, groups in zip(components, combined, strict=True):
        for row, group in enumerate(groups):
            expected = local_advantage(slot["ocr"][row]) + 0.5 * local_advantage(slot["colour"][row])
            torch.testing.assert_close(group, expected)
    assert not torch.allclose(advantages()[0], combined[0])


def test_training_logs_each_component_and_gives_the_same_numbers_with_a_reward_elsewhere(serve: Serve) -> None:
    """Scoring overlaps with sampling: slots and parts of a rollout are scored while others are sampled and decoded."""
    overrides = [*FAST, "model.max_batch=4"]
    here, url = build_trainer(*overrides), serve(RewardServer(build_reward("ocr"), "127.0.0.1", 0))
    there = build_trainer(*overrides, f"rewards.ocr={{backend: url, url: '{url}'}}")
    ours, theirs = here.iterate(), there.iterate()
    del ours["seconds"], theirs["seconds"]
    assert ours == theirs
    assert all(torch.equal(p, there.parameters[name]) for name, p in here.parameters.items())
    assert set(ours["components"]) == {"ocr", "colour"}
    ocr, colour = (ours["components"][name]["reward_mean"] for name in ("ocr", "colour"))
    assert ours["reward_mean"] == pytest.approx(ocr + 0.5 * (colour - 0.5) / 0.25, abs=1e-6)
    assert 0 < ocr < 1
