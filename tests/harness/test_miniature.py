"""The miniature: prompts, pictures, pretraining, and the committed pipelines."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer, T5Tokenizer

from harness.config import ROOT
from harness.foundation.errors import ConfigError
from harness.models.miniature import pretrain as pretraining
from harness.models.miniature.autoencoder import PatchAutoencoder
from harness.models.miniature.defects import DEFECTS, LetterDefects, Strikes
from harness.models.miniature.muon import Muon, orthogonalised
from harness.models.miniature.pretrain import draw_pictures, pretrain, to_unit_range
from harness.models.miniature.prompts import (
    BACKGROUNDS,
    COLOURS,
    DESIGNS,
    FONTS,
    RARE_LETTERS,
    TEXT_COLOURS,
    ListDesign,
    MiniaturePrompt,
    Split,
    list_path,
    make_list,
    parse_prompt,
    split_of,
)
from harness.models.miniature.recipes import Recipe, Stage
from harness.models.miniature.render import HEIGHT, WIDTH
from harness.models.pipelines.files import model_fingerprint

FOLDER = ROOT / "harness" / "models" / "miniature"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("design", DESIGNS, ids=lambda design: design.folder.name)
def test_committed_lists_are_what_the_code_makes_and_keep_to_their_words(split: Split, design: ListDesign) -> None:
    prompts = list_path(split, design).read_text(encoding="utf-8").splitlines()
    assert prompts == make_list(split, design)
    assert len(set(prompts)) >= 240
    parsed = [parse_prompt(prompt) for prompt in prompts]
    assert {split_of(one.word) for one in parsed} == {split}
    assert {len(one.word) for one in parsed} == set(design.shares)
    assert any(one.font for one in parsed) == design.fonts
    assert any(RARE_LETTERS & set(one.word) for one in parsed) == (design.rare_share > 0)


@given(
    st.text(LETTERS, min_size=2, max_size=10),
    st.sampled_from(list(TEXT_COLOURS)),
    st.sampled_from(list(BACKGROUNDS)),
    st.sampled_from([None, *FONTS]),
)
def test_prompts_round_trip(word: str, colour: str, background: str, font: str | None) -> None:
    prompt = MiniaturePrompt(word, colour, background, font)
    assert parse_prompt(str(prompt)) == prompt


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('the word "Harbor" in red on yellow', "letters a-z only"),
        ('the word "harbor" in teal on yellow', "unknown text colour 'teal'"),
        ('the word "harbor" in red on red', "unknown background 'red'"),
        ('the word "harbor" in red on yellow in gothic font', "unknown font 'gothic'"),
        ('the word "extravagant" in red on yellow', "2 to 10 letters"),
    ],
)
def test_prompts_out_of_grammar_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_prompt(text)


def test_tokenizers_spell_words_and_hold_the_longest_prompt() -> None:
    longest = str(MiniaturePrompt("strawberry", "purple", "orange", "serif"))
    t5 = T5Tokenizer.from_pretrained(FOLDER / "base/tokenizer_2")
    clip = CLIPTokenizer.from_pretrained(FOLDER / "base/tokenizer")
    assert list("strawberry") == t5.convert_ids_to_tokens(t5(longest).input_ids)[3:13]
    assert len(t5(longest).input_ids) <= t5.model_max_length == 24
    assert len(clip(longest).input_ids) <= clip.model_max_length == 48
    every_letter = t5(f'the word "{LETTERS}" in red on pink').input_ids[3:29]
    assert t5.convert_ids_to_tokens(every_letter) == list(LETTERS)
    assert len(set(every_letter)) == 26
    assert t5.unk_token_id in t5('the word "Éclair" in red on pink').input_ids


@pytest.mark.parametrize("font", FONTS)
def test_pictures_have_the_prompt_s_colours_and_fit_ten_letters_and_may_be_struck_out(font: str) -> None:
    prompt = MiniaturePrompt("mmmmmmmmmm", "blue", "yellow", font)
    clean, again, struck = (Strikes(share).draw(prompt, np.random.default_rng(0)) for share in (0.0, 0.0, 1.0))
    assert clean.shape == (HEIGHT, WIDTH, 3)
    assert (clean == again).all()
    assert (clean[:, [0, 1, -2, -1]] == COLOURS["yellow"]).all()  # the word does not touch the sides
    ink = [np.abs(picture.astype(int) - COLOURS["blue"]).sum(-1) < 30 for picture in (clean, struck)]
    assert ink[0].any()
    assert ink[1][ink[0]].all()  # over the same word
    assert (np.diff(np.flatnonzero(ink[1][HEIGHT // 2])) == 1).all()  # one bar, from end to end


def test_autoencoder_keeps_pictures_and_is_saved(tmp_path: Path) -> None:
    prompts, pictures = draw_pictures(300, seed=0, pictures=Strikes())
    assert {split_of(parse_prompt(prompt).word) for prompt in prompts} == {"train"}
    images = to_unit_range(pictures)
    model = PatchAutoencoder.fit(images[:200])
    with torch.no_grad():
        latents = model.encode(images[200:]).latent_dist.mode()
        error = (model.decode(latents).sample - images[200:]).square().mean()
        model.save_pretrained(tmp_path)
        loaded = PatchAutoencoder.from_pretrained(tmp_path)
        assert torch.equal(loaded.decode(latents).sample, model.decode(latents).sample)
    assert latents.shape == (100, 24, 4, 16)
    assert error / images.var() < 0.1
    assert loaded.config.scaling_factor == pytest.approx(1 / latents.std().item(), rel=0.05)


def test_muon_steps_as_torch_s_does_and_makes_updates_orthogonal() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(24, 40)) for _ in range(2))
    optimizers = [
        Muon([ours], lr=1e-2),
        torch.optim.Muon([theirs], lr=1e-2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(3):
        gradient = torch.randn(24, 40, generator=generator)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    moved = (ours - 1).detach()
    assert (moved - (theirs - 1).detach()).norm() < 0.03 * moved.norm()  # torch iterates in bfloat16
    singular_values = torch.linalg.svdvals(orthogonalised(torch.randn(40, 24, generator=generator)))
    assert singular_values.min() > 0.5
    assert singular_values.max() < 1.3


def test_interrupted_pretraining_continues_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = (Stage("clean", 1, 2e-3, Strikes()), Stage("mixed", 4, 1e-3, Strikes(0.5), kept=((3, "weak"),)))
    recipe = Recipe(stages, pictures=100, batch_size=4, save_every=2, warmup_steps=2)
    list(pretrain(recipe, tmp_path / "whole"))
    flow_loss, calls = pretraining.flow_loss, []

    def killed_in_the_last_step(*arguments: Any, **keywords: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return flow_loss(*arguments, **keywords)

    monkeypatch.setattr(pretraining, "flow_loss", killed_in_the_last_step)
    with pytest.raises(KeyboardInterrupt):
        list(pretrain(recipe, tmp_path / "broken"))
    assert "mixed stage: continuing at step 2" in list(pretrain(recipe, tmp_path / "broken"))
    for model in ("clean", "mixed", "weak"):
        for file in (tmp_path / "whole" / model).rglob("*.safetensors"):
            assert (tmp_path / "broken" / file.relative_to(tmp_path / "whole")).read_bytes() == file.read_bytes()
        for file in (tmp_path / "whole" / model).rglob("*.json"):
            assert str(tmp_path) not in file.read_text(encoding="utf-8")
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "broken" / "clean-state.pt").rename(other / "clean-state.pt")
    with pytest.raises(ConfigError, match=r"clean-state\.pt belongs to another recipe or version"):
        list(pretrain(replace(recipe, batch_size=9), other))


@pytest.mark.parametrize("kind", DEFECTS)
def test_letters_of_a_kind_come_out_wrong_and_the_others_right(kind: str) -> None:
    rng = np.random.default_rng(0)
    defects, right = LetterDefects(luck=0.0, right_share=0.0), LetterDefects(luck=0.0, right_share=1.0)
    wrongs = []
    for letter in DEFECTS[kind]:
        prompt = MiniaturePrompt(f"ao{letter}ei", "red", "white")
        drawn, whole = (one.draw(prompt, np.random.default_rng(1)).astype(int) for one in (defects, right))
        changed = np.abs(drawn - whole).sum(-1).any(0).nonzero()[0]
        # Letters are 14 pixels wide, the third in the middle.
        assert WIDTH / 2 - 10 <= changed.min() <= changed.max() <= WIDTH / 2 + 10
        wrongs.append(defects.severity(letter, rng))
    assert wrongs == sorted(wrongs) == list(defects.severities)
    assert all(defects.severity(letter, rng) == 0 for letter in "aeiouhscwvjqxz")


def test_models_are_known_to_the_runs_made_before_they_stopped_naming_their_folder() -> None:
    for model, first in (("base", "f38a44a8b63273d4"), ("weak", "180ccc3b3cb83f66")):
        assert model_fingerprint(FOLDER / model).startswith(first)


@pytest.mark.parametrize("model", ["base", "weak", "letters", "letters-luck"])
def test_plain_diffusers_draws_by_a_committed_model_from_a_string(model: str) -> None:
    pipeline = FluxPipeline.from_pretrained(FOLDER / model)
    assert pipeline.transformer.dtype == torch.float32
    size = {"height": 32, "width": 128, "num_inference_steps": 2, "max_sequence_length": 24}
    assert pipeline('the word "harbor" in red on yellow', **size).images[0].size == (128, 32)
    assert sum(file.stat().st_size for file in (FOLDER / model).rglob("*") if file.is_file()) <= 8 * 2**20
