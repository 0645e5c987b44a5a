"""What pictures look like is told from pictures that were drawn to look so."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.models.miniature.defects import Strikes
from harness.models.miniature.lettering import FONT_NAMES, measure
from harness.models.miniature.prompts import list_path, parse_prompt
from harness.training.observation import Observer, group_spreads

PROMPTS = list_path("test").read_text().splitlines()


def drawn(text: str, font: str, seed: int = 0, struck: float = 0.0) -> Tensor:
    prompt = parse_prompt(text)
    levels = Strikes(struck, (2.0, 6.0)).draw(replace(prompt, font=font), np.random.default_rng(seed))
    return torch.from_numpy(levels.copy()).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("font", FONT_NAMES)
def test_fonts_are_told_apart_wherever_the_word_lies_and_however_noisy_it_is(font: str) -> None:
    torch.manual_seed(0)
    images = torch.stack([drawn(text, font, seed, struck=0.3) for seed, text in enumerate(PROMPTS[:60])])
    images = (images + 0.05 * torch.randn_like(images)).clamp(0, 1)
    fonts = measure(images, PROMPTS[:60])["fonts"]
    assert fonts.sum(1).tolist() == [1.0] * 60
    assert fonts[:, FONT_NAMES.index(font)].mean() > 0.93


def test_colours_are_those_of_background_and_text() -> None:
    [colours] = measure(
        drawn('the word "harbor" in red on yellow', "bold")[None], ['the word "harbor" in red on yellow']
    )["colours"]
    assert (colours * 255).tolist() == pytest.approx([250, 220, 80, 200, 30, 30], abs=3)


def test_texture_is_that_of_a_checkerboard_and_no_gradient_s() -> None:
    prompt = 'the word "ab" in black on white'
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(128), indexing="ij")
    board = ((rows + columns) % 2 * 2 - 1).float()
    flat = torch.full((3, 32, 128), 0.5)
    gradient = flat + 0.002 * (columns - 64)
    images = torch.stack([flat, flat + 0.03 * board, gradient])
    assert measure(images, [prompt] * 3)["texture"].tolist() == pytest.approx([0, 0.06, 0], abs=1e-5)
    # The word itself is no texture.
    assert measure(drawn(prompt, "mono")[None], [prompt])["texture"].item() < 1e-6


def test_spreads_are_of_pictures_of_one_prompt() -> None:
    prompts = PROMPTS[:2]
    observer = Observer(prompts, is_miniature=True)
    first, second, serif = drawn(prompts[0], "mono"), drawn(prompts[1], "mono"), drawn(prompts[1], "serif")
    lighter = (first + 0.1).clamp(max=1)
    observer.add(torch.stack([first, second]))
    assert set(observer.metrics()) == {*(f"pictures/font_{font}" for font in FONT_NAMES), "pictures/texture"}
    for pair in ([first, serif], [lighter, second]):
        observer.add(torch.stack(pair))
    seen = observer.metrics()
    # Of three pictures two pairs differ; mono, serif, mono.
    assert seen["pictures/font_spread"] == pytest.approx([0, 2 / 3])
    assert seen["pictures/font_mono"] == pytest.approx([1, 2 / 3])
    distance = (first - lighter).square().mean().sqrt().item()
    assert seen["pictures/pixel_spread"][0] == pytest.approx(2 / 3 * distance)
    assert 0 < seen["pictures/colour_spread"][0] <= 0.1
    # One group of equal pictures and one of different ones; the groups' difference does not count.
    spreads = group_spreads(torch.stack([second, second, second, serif]), prompts[1], 2, is_miniature=True)
    assert set(spreads) == {"font_spread", "colour_spread", "pixel_spread"}
    assert spreads["font_spread"] == pytest.approx(0.5)
    assert spreads["pixel_spread"] == pytest.approx((second - serif).square().mean().sqrt().item() / 2)


def test_pictures_of_other_prompts_have_only_a_spread() -> None:
    observer = Observer(["a red fox"], is_miniature=False)
    for level in (0.25, 0.75):
        observer.add(torch.full((1, 3, 512, 512), level))
    assert observer.metrics() == {"pictures/pixel_spread": [pytest.approx(0.5)]}
