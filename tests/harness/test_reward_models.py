"""CLIP score, PickScore, HPS-v2 and HPS-v3 on their twins, small random models in the published layouts; the comparison
with the packages is ``make check-reward-parity``."""

import math
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.config import ConfigError, RewardConfig
from harness.rewards import Reward, RewardError, build_reward
from harness.rewards.base import ScoringError
from harness.rewards.files import checkpoints
from harness.rewards.files.twins import find_twin
from harness.rewards.native import open_clip
from harness.rewards.native.clip import ClipScore
from harness.rewards.native.hpsv2 import HpsV2, preprocess
from harness.rewards.native.network import NetworkReward

PROMPTS = ["a photo of a cat", "two dogs, oil on canvas", "a photo of a cat"]
SETTINGS = {
    "hpsv2": {"path": "twin:hpsv2"},
    "hpsv3": {"path": "twin:hpsv3", "base": "twin:hpsv3", "precision": "fp32"},
    "clip": {"path": "twin:clip"},
    "pickscore": {"path": "twin:clip"},
}


def pictures(height: int = 40, width: int = 56, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(height * width)
    return (torch.rand(count, 3, height, width, generator=generator) * 255).round() / 255


def twin(name: str, **settings: object) -> Reward:
    return build_reward(name, 1, RewardConfig.model_validate({**SETTINGS[name], **settings}))


# --- a small model in the layout of open_clip, computed by torch's own attention, as open_clip does

WIDTH, HEADS, LAYERS = 32, 2, 2


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    monkeypatch.setattr(HpsV2, "architecture", open_clip.twin_of_clip())
    content = torch.load(find_twin("hpsv2", "path", "hpsv2"))["state_dict"]
    return {name: value.float() for name, value in content.items()}


@pytest.fixture
def hpsv2(tmp_path: Path, weights: dict[str, Tensor]) -> HpsV2:
    torch.save({"state_dict": weights}, tmp_path / "HPS.pt")
    return HpsV2("hpsv2", RewardConfig(path=str(tmp_path / "HPS.pt"), batch_size=2))


def transformer(weights: dict[str, Tensor], prefix: str, x: Tensor, mask: Tensor | None) -> Tensor:
    for layer in range(LAYERS):
        start = f"{prefix}.resblocks.{layer}."
        w = {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}
        attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        attention.load_state_dict({k.removeprefix("attn."): v for k, v in w.items() if k.startswith("attn.")})
        normed = F.layer_norm(x, (WIDTH,), w["ln_1.weight"], w["ln_1.bias"])
        x = x + attention(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        normed = F.layer_norm(x, (WIDTH,), w["ln_2.weight"], w["ln_2.bias"])
        hidden = F.gelu(F.linear(normed, w["mlp.c_fc.weight"], w["mlp.c_fc.bias"]))
        x = x + F.linear(hidden, w["mlp.c_proj.weight"], w["mlp.c_proj.bias"])
    return x


@torch.no_grad()
def open_clip_cosine(weights: dict[str, Tensor], images: Tensor, prompts: list[str]) -> Tensor:
    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    pixels, ids = preprocess((images * 255).round().to(torch.uint8)), open_clip.tokens(prompts)
    patches = F.conv2d(pixels, weights["visual.conv1.weight"], stride=14).flatten(2).transpose(1, 2)
    first = weights["visual.class_embedding"].expand(len(pixels), 1, -1)
    x = norm("visual.ln_pre", torch.cat([first, patches], 1) + weights["visual.positional_embedding"])
    x = transformer(weights, "visual.transformer", x, None)
    image = norm("visual.ln_post", x[:, 0]) @ weights["visual.proj"]
    y = weights["token_embedding.weight"][ids] + weights["positional_embedding"]
    y = transformer(weights, "transformer", y, torch.full((77, 77), -math.inf).triu(1))
    text = norm("ln_final", y)[torch.arange(len(ids)), ids.argmax(-1)] @ weights["text_projection"]
    return (F.normalize(image, dim=-1) * F.normalize(text, dim=-1)).sum(-1)


# --- HPS-v2


def test_hpsv2_scores_as_its_layout_computed_by_hand(hpsv2: HpsV2, weights: dict[str, Tensor]) -> None:
    prompts = ["a photo of a cat", "two dogs, oil on canvas", "word " * 100]
    scores = hpsv2.score(pictures(), prompts)
    assert scores.std() > 0.01
    torch.testing.assert_close(scores, open_clip_cosine(weights, pictures(), prompts), atol=1e-6, rtol=0)


def test_hpsv2_shows_the_whole_picture_in_a_black_square() -> None:
    levels = (pictures(100, 300, 1) * 255).round().to(torch.uint8)
    shown = preprocess(levels)
    black, white = (preprocess(torch.full((1, 3, 224, 224), level, dtype=torch.uint8)) for level in (0, 255))
    inside = F.interpolate(levels / 255, (75, 224), mode="bicubic", antialias=True)
    assert torch.equal(shown[..., :74, :], black[..., :74, :])
    assert torch.equal(shown[..., 149:, :], black[..., 149:, :])
    unnormalised = (shown - black) / (white - black)
    torch.testing.assert_close(unnormalised[..., 74:149, :], inside, atol=1e-6, rtol=0)
    means = [0.48145466 / 0.26862954, 0.4578275 / 0.26130258, 0.40821073 / 0.27577711]
    assert black[0, :, 0, 0].tolist() == pytest.approx([-mean for mean in means])


def test_clip_tokens_of_known_texts() -> None:
    start, end = open_clip.START, open_clip.END
    ids = open_clip.tokens(["a photo of a cat", "A   PHOTO of\na cat", "It's 42!", "cat " * 100])
    assert ids.shape == (4, 77)
    assert ids[0, :8].tolist() == [start, 320, 1125, 539, 320, 2368, end, 0]
    assert torch.equal(ids[1], ids[0])
    assert ids[2, :8].tolist() == [start, 585, 568, 275, 273, 256, end, 0]
    assert ids[3].tolist() == [start, *[2368] * 75, end]
    assert open_clip.clean("Van Gogh’s “Café” &amp; ﬁne  ＡＢＣ") == 'van gogh\'s "café" & fine abc'


# --- CLIP score and PickScore


@pytest.mark.parametrize("name", ["clip", "pickscore"])
def test_clip_scores_are_the_model_s_cosines(name: str, weights: dict[str, Tensor]) -> None:
    """Its twin has the weights of HPS-v2's in another format."""
    factor = 1.0 if name == "clip" else weights["logit_scale"].exp().item()
    square = pictures(224, 224)
    scores = twin(name).score(square, PROMPTS)
    expected = factor * open_clip_cosine(weights, square, PROMPTS)
    torch.testing.assert_close(scores, expected, atol=2e-6 * factor, rtol=0)
    # The middle is what counts.
    wide = torch.cat([torch.zeros(3, 3, 224, 40), square, torch.ones(3, 3, 224, 40)], dim=-1)
    torch.testing.assert_close(twin(name).score(wide, PROMPTS), scores, atol=1e-6 * factor, rtol=0)


def test_a_clip_folder_without_a_part_is_one_line(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(find_twin("clip", "path", "clip"), tmp_path / "clip"))
    for file, said in (("preprocessor_config.json", ""), ("model.safetensors", " or p")):
        (folder / file).unlink()
        with pytest.raises(RewardError, match=rf"reward 'clip': rewards.clip.path: .* has no {file}{said}"):
            ClipScore("clip", RewardConfig(path=str(folder))).check_ready()


# --- HPS-v3


@pytest.mark.parametrize("backend", ["native", "package"])
def test_hpsv3_refuses_prompts_with_its_special_tokens(backend: str) -> None:
    reward = twin("hpsv3", backend=backend)
    with pytest.raises(ValueError, match=r"tokens as <\|image_pad\|>"):
        reward.check_prompt("a <|image_pad|> cat")
    reward.check_prompt("a <b> | {cat}")


# --- damaged, wrong and missing checkpoints, and missing devices


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "cpu"])
def test_a_gpu_that_is_not_here_is_told_before_anything_is_scored(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with nullcontext() if device == "cpu" else pytest.raises(ConfigError, match=rf"rewards\.clip\.device: {device} "):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: int(device == "cuda:1"))
        twin("clip", device=device).check_ready()


def test_another_model_s_checkpoint_is_one_line(hpsv2: HpsV2, weights: dict[str, Tensor]) -> None:
    del weights["visual.proj"]
    wrong = weights | {"extra": torch.ones(1), "text_projection": torch.ones(8, 8)}
    torch.save({"state_dict": wrong}, hpsv2._checkpoint)
    problems = r'Missing.*"visual_projection.weight".*Unexpected.*"extra".*mismatch for text_projection.*\[8, 8\]'
    with pytest.raises(RewardError, match=rf"\Areward 'hpsv2': .*HPS.pt is no checkpoint of this model: .*{problems}"):
        hpsv2.score(pictures(), PROMPTS)


def test_a_file_that_holds_code_is_not_run(hpsv2: HpsV2) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (pytest.fail, ("code in a checkpoint was run",))

    torch.save({"state_dict": Trap()}, hpsv2._checkpoint)
    with pytest.raises(RewardError, match="truncated or no checkpoint"):
        hpsv2.score(pictures(), PROMPTS)


def test_a_damaged_hpsv3_is_one_line(tmp_path: Path) -> None:
    source, path = find_twin("hpsv3", "path", "hpsv3"), tmp_path / "HPSv3.safetensors"
    weights = load_file(source)
    path.write_bytes(source.read_bytes()[:50_000])
    with pytest.raises(RewardError, match=r"reward 'hpsv3': .*HPSv3.safetensors is truncated or no checkpoint"):
        twin("hpsv3", path=str(path)).score(pictures(), PROMPTS)
    save_file({name: value for name, value in weights.items() if name != "rm_head.5.bias"}, path)
    with pytest.raises(RewardError, match=r"Missing.*rm_head.5.bias"):
        twin("hpsv3", path=str(path)).score(pictures(), PROMPTS)
    save_file(weights | {"rm_head.5.bias": torch.tensor([math.nan, 0.0])}, path)
    with pytest.raises(RewardError, match="reward 'hpsv3': picture 0: hpsv3 is nan, not finite"):
        twin("hpsv3", path=str(path), batch_size=3).score(pictures(), PROMPTS)


def test_a_folder_in_the_place_of_a_checkpoint_and_a_twin_that_does_not_exist_are_one_line(tmp_path: Path) -> None:
    for backend in ("native", "package"):
        reward = build_reward("hpsv2", 1, RewardConfig.model_validate({"path": str(tmp_path), "backend": backend}))
        with pytest.raises(RewardError, match=rf"rewards.hpsv2.path: {tmp_path} is no file; give the checkpoint"):
            reward.check_ready()
    with pytest.raises(RewardError, match=r"there is no twin 'hpsv9', there are twin:hpsv2, twin:hpsv3, twin:clip$"):
        twin("hpsv3", path="twin:hpsv9").fingerprint()


@pytest.mark.parametrize(
    ("name", "path", "advice"),
    [
        ("hpsv2", None, "fetch it with `hf download xswu/HPSv2 HPS_v2.1_compressed.pt`"),
        ("hpsv2", "xswu/HPSv2/HPS_v2_compressed.pt", "fetch it with `hf download xswu/HPSv2 HPS_v2_compressed.pt`"),
        ("hpsv2", "../models/HPS.pt", "give another place"),
        ("hpsv3", None, "fetch it with `hf download MizzenAI/HPSv3 HPSv3.safetensors`"),
        ("clip", None, "fetch it with `hf download openai/clip-vit-large-patch14`"),
        ("clip", "no..such/repository", "fetch it with `hf download no..such/repository`"),
        ("imagereward", None, "fetch it with `hf download THUDM/ImageReward`"),
    ],
)
def test_a_missing_model_names_the_command_that_fetches_it(
    name: str, path: str | None, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", tmp_path)
    with pytest.raises(RewardError) as error:
        build_reward(name, 1, RewardConfig(path=path)).fingerprint()
    assert str(error.value).endswith(f" is not on this machine; {advice}"), error.value


def test_a_model_in_the_hub_s_cache_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "models--owner--name"
    for place, content in (("refs/main", "abc"), ("snapshots/abc/model.pt", "weights")):
        (repository / place).parent.mkdir(parents=True)
        (repository / place).write_text(content)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", tmp_path)
    assert checkpoints.locate("hpsv2", "path", "owner/name/model.pt").read_text() == "weights"


@pytest.mark.parametrize(
    ("name", "key", "file"),
    [
        ("clip", "path", "config.json"),
        ("clip", "base", "preprocessor_config.json"),
        ("clip", "base", "tokenizer.json"),
        ("hpsv3", "base", "config.json"),
        ("hpsv3", "base", "tokenizer_config.json"),
    ],
)
@pytest.mark.parametrize("content", ["<html>", '{"vision_config": 3, "model": {}, "size": ""}'])
def test_a_folder_that_cannot_be_read_is_one_line(name: str, key: str, file: str, content: str, tmp_path: Path) -> None:
    place = "path" if name == "clip" else key
    folder = Path(shutil.copytree(find_twin(name, place, name), tmp_path / name))
    (folder / file).write_text(content)
    said = rf"\Areward '{name}': rewards\.{name}\.{key}: {folder} cannot be read[^\n]*\Z"
    with pytest.raises(RewardError, match=said):
        twin(name, **{place: str(folder)}).score(pictures(), PROMPTS)


# --- what a score depends on


@pytest.mark.parametrize("name", SETTINGS)
def test_a_score_depends_on_picture_and_prompt_and_not_on_where_the_model_is(name: str) -> None:
    prompts = ["a photo of a cat", "two dogs, oil on canvas", "an endless library " * 30]
    reward, offloaded = twin(name), twin(name, offload=True, batch_size=1)
    measured, again = (one.measure(pictures(64, 48), prompts) for one in (reward, offloaded))
    scores = measured[name]
    assert scores.std() > 1e-4
    assert not torch.allclose(reward.score(pictures(64, 48), prompts[::-1]), scores, atol=1e-5)
    assert not torch.allclose(reward.score(pictures(64, 48).flip(0), prompts), scores, atol=1e-5)
    assert reward.fingerprint() == offloaded.fingerprint() != twin(name, precision="bf16").fingerprint()
    assert set(measured) == ({name, f"{name}/log_sigma"} if name == "hpsv3" else {name})
    for metric, values in measured.items():
        torch.testing.assert_close(values, again[metric], atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SETTINGS)
def test_equal_pictures_score_alike_within_the_resolution(
    name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, reward, scores = pictures(64, 48)[[0, 1, 0, 0, 0]], twin(name, precision=precision), []
    for batch_size in (1, 2, 5):
        monkeypatch.setattr(reward, "batch_size", batch_size)
        scores.append(reward.score(images, PROMPTS[:1] * 5))
    equal = torch.stack(scores)[:, [0, 2, 3, 4]]
    assert equal.max() - equal.min() <= reward.resolution
    assert scores[0].std() > reward.resolution / 10


# --- offloading


class Layer(NetworkReward):
    """A network of one layer. Another precision stands for the GPU: what has been moved there can be told by it."""

    version = "1"
    resolutions: ClassVar = {"fp32": 0.0}
    _network = nn.Linear(3, 1).requires_grad_(False)
    _device = torch.float64  # type: ignore[assignment]
    broken = False

    def _measure_batch(self, levels: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        self.seen = {parameter.dtype for parameter in self._network.parameters()}
        if self.broken:
            raise ScoringError("broken")
        return {self.name: torch.ones(len(prompts))}


def test_an_offloaded_model_is_on_its_device_only_while_it_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = Layer("layer", RewardConfig(offload=True, batch_size=2))
    assert reward._home.type == "cpu"
    before = [parameter.data_ptr() for parameter in reward._network.parameters()]
    for broken in (False, True):
        reward.broken, reward.seen = broken, set()
        with pytest.raises(RewardError, match="picture 0: broken") if broken else nullcontext():
            reward.score(pictures(), PROMPTS)
        assert reward.seen == {torch.float64}
        assert [parameter.data_ptr() for parameter in reward._network.parameters()] == before
    kept = Layer("layer", RewardConfig())
    kept.score(pictures(), PROMPTS)
    assert kept.seen == {torch.float32}

    def full(network: object) -> list[Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 3.67 GiB.")

    monkeypatch.setattr(nn.Linear, "buffers", full)
    with pytest.raises(RewardError, match=r"\Areward 'layer': no GPU memory for its model; set rewards.layer[^\n]*\Z"):
        reward.score(pictures(), PROMPTS)


def test_files_of_two_folders_have_one_sum_wherever_the_folders_lie(tmp_path: Path) -> None:
    def sum_of(weights: str, base: str) -> str:
        files = [tmp_path / weights / "weights.pt", tmp_path / base / "config.json"]
        for file in files:
            file.parent.mkdir()
            file.write_text(file.name)
        return checkpoints.sha256_of(files)

    assert sum_of("a", "b") == sum_of("d", "c")
