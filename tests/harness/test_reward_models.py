"""CLIP score, PickScore, HPS-v2 and HPS-v3 on small random models; the comparison with the packages is
``make check-reward-parity``."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPConfig

from harness.config import RewardConfig
from harness.rewards import RewardError, build_reward
from harness.rewards.base import ImageError
from harness.rewards.files import checkpoints
from harness.rewards.files.twins import write_hpsv3
from harness.rewards.native.hpsv2 import HpsV2, preprocess
from harness.rewards.native.hpsv3 import PIXELS, HpsV3, size_in_cells
from harness.rewards.native.open_clip import END, START, ClipTokenizer, clean, to_transformers

PROMPTS = ["a photo of a cat", "two dogs, oil on canvas", "a photo of a cat"]


def pictures(height: int = 40, width: int = 56, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(height * width)
    return (torch.rand(count, 3, height, width, generator=generator) * 255).round() / 255


# --- a small model in the layout of open_clip, computed by torch's own attention, as open_clip does

WIDTH, HEADS, LAYERS, OUT = 32, 2, 2, 24


def random_open_clip(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    weights = {
        "logit_scale": torch.tensor(math.log(50.0)),
        "token_embedding.weight": torch.randn(49_408, WIDTH),
        "positional_embedding": torch.randn(77, WIDTH),
        "text_projection": torch.randn(WIDTH, OUT) / 6,
        "visual.class_embedding": torch.randn(WIDTH),
        "visual.positional_embedding": torch.randn(257, WIDTH) / 4,
        "visual.conv1.weight": torch.randn(WIDTH, 3, 14, 14) / 10,
        "visual.proj": torch.randn(WIDTH, OUT) / 6,
    }
    for norm in ("ln_final", "visual.ln_pre", "visual.ln_post"):
        weights |= {f"{norm}.weight": 1 + torch.randn(WIDTH) / 5, f"{norm}.bias": torch.randn(WIDTH) / 5}
    for tower in ("transformer", "visual.transformer"):
        for layer in range(LAYERS):
            for name, shape in {
                "ln_1.weight": (WIDTH,),
                "ln_1.bias": (WIDTH,),
                "ln_2.weight": (WIDTH,),
                "ln_2.bias": (WIDTH,),
                "attn.in_proj_weight": (3 * WIDTH, WIDTH),
                "attn.in_proj_bias": (3 * WIDTH,),
                "attn.out_proj.weight": (WIDTH, WIDTH),
                "attn.out_proj.bias": (WIDTH,),
                "mlp.c_fc.weight": (4 * WIDTH, WIDTH),
                "mlp.c_fc.bias": (4 * WIDTH,),
                "mlp.c_proj.weight": (WIDTH, 4 * WIDTH),
                "mlp.c_proj.bias": (WIDTH,),
            }.items():
                weights[f"{tower}.resblocks.{layer}.{name}"] = torch.randn(shape) / 5
    return weights


def transformer(weights: dict[str, Tensor], prefix: str, x: Tensor, mask: Tensor | None) -> Tensor:
    for layer in range(LAYERS):
        w = {
            k.removeprefix(f"{prefix}.resblocks.{layer}."): v
            for k, v in weights.items()
            if f"{prefix}.resblocks.{layer}." in k and k.startswith(prefix)
        }
        attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        attention.load_state_dict({k.removeprefix("attn."): v for k, v in w.items() if k.startswith("attn.")})
        normed = F.layer_norm(x, (WIDTH,), w["ln_1.weight"], w["ln_1.bias"])
        x = x + attention(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        normed = F.layer_norm(x, (WIDTH,), w["ln_2.weight"], w["ln_2.bias"])
        hidden = F.gelu(F.linear(normed, w["mlp.c_fc.weight"], w["mlp.c_fc.bias"]))
        x = x + F.linear(hidden, w["mlp.c_proj.weight"], w["mlp.c_proj.bias"])
    return x


@torch.no_grad()
def open_clip_cosine(weights: dict[str, Tensor], pixels: Tensor, ids: Tensor) -> Tensor:
    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    patches = F.conv2d(pixels, weights["visual.conv1.weight"], stride=14).flatten(2).transpose(1, 2)
    first = weights["visual.class_embedding"].expand(len(pixels), 1, -1)
    x = norm("visual.ln_pre", torch.cat([first, patches], 1) + weights["visual.positional_embedding"])
    x = transformer(weights, "visual.transformer", x, None)
    image = norm("visual.ln_post", x[:, 0]) @ weights["visual.proj"]
    y = weights["token_embedding.weight"][ids] + weights["positional_embedding"]
    y = transformer(weights, "transformer", y, torch.full((77, 77), -math.inf).triu(1))
    text = norm("ln_final", y)[torch.arange(len(ids)), ids.argmax(-1)] @ weights["text_projection"]
    return (F.normalize(image, dim=-1) * F.normalize(text, dim=-1)).sum(-1)


def small_config() -> CLIPConfig:
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "hidden_act": "gelu",
    }
    return CLIPConfig(
        projection_dim=OUT,
        vision_config={**tower, "patch_size": 14, "image_size": 224},
        text_config={**tower, "eos_token_id": END},
    )


@pytest.fixture
def hpsv2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HpsV2:
    torch.save({"state_dict": random_open_clip()}, tmp_path / "HPS.pt")
    monkeypatch.setattr(HpsV2, "architecture", small_config())
    return HpsV2(RewardConfig(path=str(tmp_path / "HPS.pt"), batch_size=2))


# --- HPS-v2


def test_hpsv2_scores_as_its_layout_computed_by_hand(hpsv2: HpsV2) -> None:
    prompts = ["a photo of a cat", "two dogs, oil on canvas", "word " * 100]
    pixels = preprocess((pictures() * 255).round().to(torch.uint8))
    expected = open_clip_cosine(random_open_clip(), pixels, ClipTokenizer()(prompts))
    scores = hpsv2.score(pictures(), prompts)
    assert scores.std() > 0.01
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)


def test_hpsv2_shows_the_whole_picture_in_a_black_square() -> None:
    levels = (pictures(100, 300, 1) * 255).round().to(torch.uint8)
    shown = preprocess(levels)
    black = preprocess(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
    inside = F.interpolate(levels / 255, (75, 224), mode="bicubic", antialias=True)
    mean, std = -black[0, :, 0, 0], None
    assert shown.shape == (1, 3, 224, 224)
    assert torch.equal(shown[..., :74, :], black[..., :74, :])
    assert torch.equal(shown[..., 149:, :], black[..., 149:, :])
    white = preprocess(torch.full((1, 3, 224, 224), 255, dtype=torch.uint8))
    std = 1 / (white - black)[0, :, :1, :1]
    torch.testing.assert_close((shown[..., 74:149, :] - black[..., 74:149, :]) * std, inside, atol=1e-6, rtol=0)
    assert mean.tolist() == pytest.approx([0.48145466 / 0.26862954, 0.4578275 / 0.26130258, 0.40821073 / 0.27577711])


def test_pictures_of_any_shape_are_scored_until_a_side_vanishes() -> None:
    for height, width in ((1, 400), (224, 100), (224, 224), (7, 5)):
        assert preprocess(torch.zeros(2, 3, height, width, dtype=torch.uint8)).shape == (2, 3, 224, 224)
    with pytest.raises(ImageError, match="500 x 1 pixels are too narrow"):
        preprocess(torch.zeros(2, 3, 1, 500, dtype=torch.uint8))


def test_clip_tokens_of_known_texts() -> None:
    ids = ClipTokenizer()(["a photo of a cat", "A   PHOTO of\na cat", "It's 42!", "cat " * 100])
    assert ids.shape == (4, 77)
    assert ids[0, :8].tolist() == [START, 320, 1125, 539, 320, 2368, END, 0]
    assert torch.equal(ids[1], ids[0])
    assert ids[2, :8].tolist() == [START, 585, 568, 275, 273, 256, END, 0]
    assert ids[3].tolist() == [START, *[2368] * 75, END]


def test_text_is_mended_as_open_clip_does() -> None:
    pytest.importorskip("ftfy")
    assert clean("Van Gogh’s “Café” &amp; ﬁne  ＡＢＣ") == 'van gogh\'s "café" & fine abc'


# --- damaged and wrong checkpoints


@pytest.mark.parametrize("name", ["hpsv2", "hpsv3"])
@pytest.mark.parametrize("backend", ["native", "package"])
def test_a_folder_in_the_place_of_a_checkpoint_is_one_line(name: str, backend: str, tmp_path: Path) -> None:
    reward = build_reward(name, 1, RewardConfig.model_validate({"path": str(tmp_path), "backend": backend}))
    with pytest.raises(RewardError, match=rf"rewards.{name}.path: {tmp_path} is no file; give the checkpoint itself"):
        reward.check_ready()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("visual.proj"), r"1 tensors are missing \(visual_projection.weight"),
        (lambda weights: weights.update(extra=torch.ones(1)), r"1 are unknown \(extra"),
        (lambda weights: weights.update({"visual.proj": torch.ones(8, 8)}), r"is \[8, 8\] instead of \[24, 32\]"),
    ],
)
def test_another_model_s_checkpoint_is_one_line(hpsv2: HpsV2, change, message: str) -> None:  # type: ignore[no-untyped-def]
    weights = random_open_clip()
    change(weights)
    torch.save({"state_dict": weights}, hpsv2._checkpoint)
    with pytest.raises(RewardError, match=f"reward 'hpsv2': .*HPS.pt is no checkpoint of this model: .*{message}"):
        hpsv2.score(pictures(), PROMPTS)


def test_a_file_that_holds_code_is_not_run(hpsv2: HpsV2) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (pytest.fail, ("code in a checkpoint was run",))

    torch.save({"state_dict": Trap()}, hpsv2._checkpoint)
    with pytest.raises(RewardError, match="truncated or no checkpoint"):
        hpsv2.score(pictures(), PROMPTS)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("hpsv2", "`hf download xswu/HPSv2 HPS_v2.1_compressed.pt`"),
        ("hpsv2", "`hf download xswu/HPSv2 HPS_v2_compressed.pt`"),
        ("hpsv3", "`hf download MizzenAI/HPSv3 HPSv3.safetensors`"),
        ("clip", "`hf download openai/clip-vit-large-patch14`"),
        ("pickscore", "`hf download yuvalkirstain/PickScore_v1`"),
        ("imagereward", "`hf download THUDM/ImageReward`"),
    ],
)
def test_a_missing_model_names_the_command_that_fetches_it(
    name: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for function in (checkpoints.snapshot_download, checkpoints.try_to_load_from_cache):
        wrapped = lambda *args, f=function, **kwargs: f(*args, cache_dir=tmp_path, **kwargs)  # noqa: E731
        monkeypatch.setattr(checkpoints, function.__name__, wrapped)
    path = "xswu/HPSv2/HPS_v2_compressed.pt" if "HPS_v2_" in command else None
    with pytest.raises(RewardError) as error:
        build_reward(name, 1, RewardConfig(path=path)).fingerprint()
    assert str(error.value).endswith(f"is not on this machine; fetch it with {command}"), error.value


def test_a_model_in_the_hub_s_cache_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "blobs").mkdir()
    blob = repository / "blobs" / ("0" * 64)
    blob.write_bytes(b"weights")
    (repository / "snapshots" / "abc" / "model.pt").symlink_to(blob)
    found = checkpoints.try_to_load_from_cache
    monkeypatch.setattr(checkpoints, "try_to_load_from_cache", lambda *a: found(*a, cache_dir=tmp_path))
    path = checkpoints.locate("hpsv2", "path", "owner/name/model.pt")
    assert path.read_bytes() == b"weights"


def test_the_fingerprint_changes_with_the_weights_and_the_precision(hpsv2: HpsV2) -> None:
    path = str(hpsv2._checkpoint)
    before = hpsv2.fingerprint()
    assert HpsV2(RewardConfig(path=path, device="cpu", batch_size=5)).fingerprint() == before
    assert HpsV2(RewardConfig(path=path, precision="bf16")).fingerprint() != before
    torch.save({"state_dict": random_open_clip(seed=1)}, path)
    assert HpsV2(RewardConfig(path=path)).fingerprint() != before


# --- CLIP score and PickScore


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    config = small_config()
    config.save_pretrained(tmp_path)
    save_file(to_transformers(random_open_clip()), tmp_path / "model.safetensors", metadata={"format": "pt"})
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    tokenizer = json.loads(ClipTokenizer()._tokenizer.to_str())
    vocab = tokenizer["model"]["vocab"] | {"<|startoftext|>": START, "<|endoftext|>": END}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    merges = [" ".join(merge) for merge in tokenizer["model"]["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    return tmp_path


@pytest.mark.parametrize(("name", "factor"), [("clip", 1.0), ("pickscore", 50.0)])
def test_clip_scores_are_the_model_s_cosines(name: str, factor: float, clip_folder: Path) -> None:
    reward = build_reward(name, 1, RewardConfig(path=str(clip_folder), batch_size=2))
    images = pictures(224, 224)
    levels = (images * 255).round().to(torch.uint8)
    expected = factor * open_clip_cosine(random_open_clip(), preprocess(levels), ClipTokenizer()(PROMPTS))
    torch.testing.assert_close(reward.score(images, PROMPTS), expected, atol=2e-6 * factor, rtol=0)


def test_clip_scores_crop_the_middle(clip_folder: Path) -> None:
    reward = build_reward("clip", 1, RewardConfig(path=str(clip_folder)))
    square = pictures(224, 224, 1)
    wide = torch.cat([torch.zeros(1, 3, 224, 40), square, torch.ones(1, 3, 224, 40)], dim=-1)
    torch.testing.assert_close(reward.score(wide, ["a"]), reward.score(square, ["a"]), atol=1e-6, rtol=0)


def test_a_clip_folder_without_a_part_is_one_line(clip_folder: Path) -> None:
    settings = RewardConfig(path=str(clip_folder))
    (clip_folder / "preprocessor_config.json").unlink()
    with pytest.raises(RewardError, match=r"reward 'clip': rewards.clip.path: .* has no preprocessor_config.json"):
        build_reward("clip", 1, settings).score(pictures(), PROMPTS)
    (clip_folder / "model.safetensors").unlink()
    with pytest.raises(RewardError, match=r"has no model.safetensors or pytorch_model.bin"):
        build_reward("clip", 1, settings).fingerprint()


# --- HPS-v3


@pytest.fixture(scope="module")
def small_hpsv3(tmp_path_factory: pytest.TempPathFactory) -> RewardConfig:
    checkpoint, base = write_hpsv3(tmp_path_factory.mktemp("hpsv3"))
    return RewardConfig(path=str(checkpoint), base=str(base), precision="fp32", batch_size=2)


def test_hpsv3_scores_do_not_depend_on_the_batch(small_hpsv3: RewardConfig) -> None:
    reward = HpsV3(small_hpsv3)
    prompts = ["a cat", "an endless library with shelves of leather-bound books", "a cat"]
    together = reward.measure(pictures(), prompts)
    alone = [reward.measure(pictures()[i : i + 1], prompts[i : i + 1]) for i in range(3)]
    assert set(together) == {"hpsv3", "hpsv3/log_sigma"}
    assert together["hpsv3"].std() > 0.01
    for metric, values in together.items():
        torch.testing.assert_close(values, torch.cat([one[metric] for one in alone]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (512, 512, (448, 448)),
        (448, 448, (448, 448)),
        (768, 1024, (364, 504)),
        (900, 300, (756, 252)),
        (20, 40, (336, 644)),
    ],
)
def test_hpsv3_resizes_to_cells_of_28(height: int, width: int, size: tuple[int, int]) -> None:
    assert size_in_cells(height, width) == size
    assert math.prod(size) == pytest.approx(PIXELS, rel=0.1)


def test_hpsv3_refuses_what_it_cannot_read(small_hpsv3: RewardConfig) -> None:
    with pytest.raises(ImageError, match="one side is more than 200 times the other"):
        size_in_cells(1, 201)
    with pytest.raises(ValueError, match=r"tokens as <\|image_pad\|>"):
        HpsV3(small_hpsv3).check_prompt("a <|image_pad|> cat")
    HpsV3(small_hpsv3).check_prompt("a <b> | {cat}")


def test_a_damaged_hpsv3_is_one_line(small_hpsv3: RewardConfig, tmp_path: Path) -> None:
    weights = load_file(str(small_hpsv3.path))
    path = tmp_path / "HPSv3.safetensors"
    settings = small_hpsv3.model_copy(update={"path": str(path)})
    path.write_bytes(Path(str(small_hpsv3.path)).read_bytes()[:50_000])
    with pytest.raises(RewardError, match=r"reward 'hpsv3': .*HPSv3.safetensors is truncated or no checkpoint"):
        HpsV3(settings).score(pictures(), PROMPTS)
    save_file({name: value for name, value in weights.items() if name != "rm_head.5.bias"}, path)
    with pytest.raises(RewardError, match=r"1 tensors are missing \(rm_head.5.bias"):
        HpsV3(settings).score(pictures(), PROMPTS)
    weights["rm_head.5.bias"] = torch.tensor([math.nan, 0.0])
    save_file(weights, path)
    with pytest.raises(RewardError, match="reward 'hpsv3': image 0: hpsv3 is nan, not finite"):
        HpsV3(settings).score(pictures(), PROMPTS)
