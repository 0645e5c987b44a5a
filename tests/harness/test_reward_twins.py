"""Twins of reward models: the published models' own classes on small random weights; and models that are offloaded."""

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.config import RewardConfig
from harness.rewards import Reward, RewardError, build_reward
from harness.rewards.base import ImageError
from harness.rewards.files.twins import find_twin
from harness.rewards.native.network import NetworkReward

PROMPTS = ["a photo of a cat", "two dogs, oil on canvas", "a lighthouse"]
SETTINGS = {
    "hpsv2": {"path": "twin:hpsv2"},
    "hpsv3": {"path": "twin:hpsv3", "base": "twin:hpsv3", "precision": "fp32"},
    "clip": {"path": "twin:clip"},
    "pickscore": {"path": "twin:clip"},
}


def pictures() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(3, 3, 64, 48, generator=generator) * 255).round() / 255


def twin(name: str, **settings: object) -> Reward:
    return build_reward(name, 1, RewardConfig.model_validate({**SETTINGS[name], **settings}))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_twin_scores_by_picture_and_prompt(name: str) -> None:
    reward = twin(name)
    scores = reward.score(pictures(), PROMPTS)
    assert scores.isfinite().all()
    assert scores.std() > 1e-4
    assert not torch.allclose(reward.score(pictures(), PROMPTS[::-1]), scores, atol=1e-5)
    assert not torch.allclose(reward.score(pictures().flip(0), PROMPTS), scores, atol=1e-5)
    assert reward.fingerprint() == twin(name, batch_size=2).fingerprint()


@pytest.mark.parametrize(("key", "known"), [("path", "twin:hpsv2, twin:hpsv3, twin:clip"), ("base", "twin:hpsv3")])
def test_a_twin_that_does_not_exist_is_one_line(key: str, known: str) -> None:
    with pytest.raises(RewardError, match=rf"rewards.hpsv3.{key}: there is no twin 'hpsv9', there are {known}$"):
        twin("hpsv3", **{key: "twin:hpsv9"}).fingerprint()


@pytest.mark.parametrize(
    ("name", "key", "file"),
    [
        ("clip", "path", "config.json"),
        ("clip", "base", "preprocessor_config.json"),
        ("clip", "base", "tokenizer.json"),
        ("hpsv3", "base", "config.json"),
        ("hpsv3", "base", "tokenizer.json"),
        ("hpsv3", "base", "tokenizer_config.json"),
    ],
)
@pytest.mark.parametrize(
    "content", ["<html>", '{"vision_config": 3', "[]", '{"vision_config": 3, "model": {}, "size": ""}']
)
def test_a_folder_that_cannot_be_read_is_one_line(name: str, key: str, file: str, content: str, tmp_path: Path) -> None:
    place = "path" if name == "clip" else key
    folder = Path(shutil.copytree(find_twin(name, place, name), tmp_path / name))
    (folder / file).write_text(content)
    with pytest.raises(
        RewardError, match=rf"reward '{name}': rewards\.{name}\.{key}: {folder} cannot be read"
    ) as error:
        twin(name, **{place: str(folder)}).score(pictures(), PROMPTS)
    assert "\n" not in str(error.value)


# --- offloading


class Layer(NetworkReward):
    """A network of one layer. Another precision stands for the GPU: what has been moved there can be told by it."""

    low, high = 0.0, 1.0
    _network = torch.nn.Linear(3, 1).requires_grad_(False)
    _device = torch.float64  # type: ignore[assignment]
    broken = False

    def _measure_batch(self, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        self.seen = {parameter.dtype for parameter in self._network.parameters()}
        if self.broken:
            raise ImageError(0, "broken")
        return {self.name: torch.ones(len(prompts))}

    def fingerprint(self) -> str:
        return self.name


def test_an_offloaded_model_is_on_its_device_only_while_it_scores() -> None:
    reward = Layer("layer", RewardConfig(offload=True, batch_size=2))
    assert reward._home.type == "cpu"
    before = [parameter.data_ptr() for parameter in reward._network.parameters()]
    for broken in (False, True):
        reward.broken, reward.seen = broken, set()
        with pytest.raises(RewardError, match="image 0: broken") if broken else nullcontext():
            reward.score(pictures(), PROMPTS)
        assert reward.seen == {torch.float64}
        assert [parameter.data_ptr() for parameter in reward._network.parameters()] == before
    kept = Layer("layer", RewardConfig())
    kept.score(pictures(), PROMPTS)
    assert kept.seen == {torch.float32}
    assert kept._home == Layer._device


def test_a_model_that_does_not_fit_its_gpu_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(network: object) -> list[Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 3.67 GiB.")

    monkeypatch.setattr(torch.nn.Linear, "buffers", full)
    with pytest.raises(RewardError, match=r"reward 'layer': no GPU memory for its model; set rewards.layer") as error:
        Layer("layer", RewardConfig(offload=True)).score(pictures(), PROMPTS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", SETTINGS)
def test_an_offloaded_model_scores_the_same(name: str) -> None:
    kept, offloaded = twin(name), twin(name, offload=True)
    assert torch.equal(offloaded.score(pictures(), PROMPTS), kept.score(pictures(), PROMPTS))
    assert offloaded.fingerprint() == kept.fingerprint()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SETTINGS)
def test_equal_pictures_score_alike_within_the_resolution(name: str, precision: str) -> None:
    images = pictures()[[0, 1, 2, 0, 0, 0, 0, 0]]
    scores = [twin(name, precision=precision, batch_size=b).score(images, PROMPTS[:1] * 8) for b in (1, 3, 5, 8)]
    equal = torch.stack(scores)[:, [0, 3, 4, 5, 6, 7]]
    resolution = twin(name, precision=precision).resolution
    assert 0 < equal.max() - equal.min() + 1e-12 <= resolution
    assert torch.stack(scores)[0].std() > resolution / 10
