"""The miniature: prompts, pictures, pretraining, and the committed pipelines."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.config import ROOT
from harness.models.miniature import pretrain as pretraining
from harness.models.miniature.autoencoder import PatchAutoencoder
from harness.models.miniature.build import LETTERS, MAX_CLIP_TOKENS, MAX_T5_TOKENS, clip_tokenizer, t5_tokenizer
from harness.models.miniature.difficulty import measure, summary
from harness.models.miniature.muon import Muon, orthogonalised
from harness.models.miniature.pretrain import PretrainConfig, Stage, draw_pictures, pretrain, to_unit_range
from harness.models.miniature.prompts import (
    BACKGROUNDS,
    COLOURS,
    FONTS,
    TEXT_COLOURS,
    MiniaturePrompt,
    Split,
    list_path,
    make_list,
    parse_prompt,
    split_of,
    words,
)
from harness.models.miniature.render import HEIGHT, WIDTH, render

FOLDER = ROOT / "harness" / "models" / "miniature"
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@pytest.mark.parametrize("split", SPLITS)
def test_committed_lists_are_what_the_code_makes_and_keep_to_their_words(split: Split) -> None:
    prompts = list_path(split).read_text().splitlines()
    assert prompts == make_list(split)
    assert len(prompts) >= 200
    assert {split_of(parse_prompt(prompt).word) for prompt in prompts} == {split}


def test_words_of_splits_are_disjoint() -> None:
    train, validation, test = (set(words(split)) for split in SPLITS)
    assert not train & validation | train & test | validation & test


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
        ("the word harbor in red on yellow", "letters a-z only"),
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
    t5, clip = t5_tokenizer(), clip_tokenizer()
    assert list("strawberry") == t5.convert_ids_to_tokens(t5(longest).input_ids)[3:13]
    assert len(t5(longest).input_ids) <= MAX_T5_TOKENS
    assert len(clip(longest).input_ids) <= MAX_CLIP_TOKENS
    every_letter = t5(f'the word "{LETTERS}" in red on pink').input_ids[3:29]
    assert t5.convert_ids_to_tokens(every_letter) == list(LETTERS)
    assert len(set(every_letter)) == 26
    assert t5.unk_token_id in t5('the word "Éclair" in red on pink').input_ids


@pytest.mark.parametrize("font", FONTS)
def test_pictures_have_the_prompt_s_colours_and_fit_ten_letters(font: str) -> None:
    prompt = MiniaturePrompt("mmmmmmmmmm", "blue", "yellow", font)
    picture = render(prompt, np.random.default_rng(0))
    assert picture.shape == (HEIGHT, WIDTH, 3)
    assert (picture[:, [0, 1, -2, -1]] == COLOURS["yellow"]).all()  # the word does not touch the sides
    assert (np.abs(picture.astype(int) - COLOURS["blue"]).sum(-1) < 30).any()
    assert (picture == render(prompt, np.random.default_rng(0))).all()


def test_autoencoder_keeps_pictures_and_is_saved(tmp_path: Path) -> None:
    prompts, pictures = draw_pictures(600, seed=0)
    assert {split_of(parse_prompt(prompt).word) for prompt in prompts} == {"train"}
    images = to_unit_range(pictures)
    model = PatchAutoencoder.fit(images[:400])
    with torch.no_grad():
        latents = model.encode(images[400:]).latent_dist.mode()
        error = (model.decode(latents).sample - images[400:]).square().mean()
    assert latents.shape == (200, 24, 4, 16)
    assert error / images.var() < 0.1
    model.save_pretrained(tmp_path)
    loaded = PatchAutoencoder.from_pretrained(tmp_path)
    assert loaded.config.scaling_factor == model.config.scaling_factor
    assert abs(float(latents.std()) * model.config.scaling_factor - 1) < 0.05
    with torch.no_grad():
        assert torch.equal(loaded.decode(latents).sample, model.decode(latents).sample)


def test_a_struck_word_is_covered_by_a_bar_of_its_own_colour() -> None:
    prompt = MiniaturePrompt("oooooo", "red", "white")
    clean, struck = (render(prompt, np.random.default_rng(1), share) for share in (0.0, 1.0))

    def ink(picture: np.ndarray) -> np.ndarray:
        return np.abs(picture.astype(int) - COLOURS["red"]).sum(-1) < 30

    row = HEIGHT // 2
    assert ink(struck)[row].sum() > 1.5 * ink(clean)[row].sum()
    gaps = np.diff(np.flatnonzero(ink(struck)[row]))
    assert (gaps == 1).all()  # one bar, from end to end
    assert ink(struck)[ink(clean)].all()  # over the same word


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
    stages = (Stage("clean", 3, 2e-3), Stage("mixed", 6, 1e-3, struck_share=0.5))
    config = PretrainConfig(
        stages=stages,
        weak_stage="mixed",
        weak_steps=3,
        pictures=300,
        batch_size=8,
        save_every=2,
        threads=1,
        warmup_steps=2,
    )
    list(pretrain(config, tmp_path / "whole"))
    flow_loss, calls = pretraining.flow_loss, []

    def killed_in_the_ninth_step(*arguments: Any, **keywords: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return flow_loss(*arguments, **keywords)

    monkeypatch.setattr(pretraining, "flow_loss", killed_in_the_ninth_step)
    with pytest.raises(KeyboardInterrupt):
        list(pretrain(config, tmp_path / "broken"))
    assert "mixed stage: continuing at step 4" in list(pretrain(config, tmp_path / "broken"))
    for model in ("clean", "base", "weak"):
        for file in (tmp_path / "whole" / model).rglob("*.safetensors"):
            assert (tmp_path / "broken" / file.relative_to(tmp_path / "whole")).read_bytes() == file.read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "broken" / "clean-state.pt").rename(other / "clean-state.pt")
    with pytest.raises(ValueError, match="belongs to other settings"):
        list(pretrain(replace(config, batch_size=9), other))


def test_pretraining_may_start_from_a_model_that_can_spell(tmp_path: Path) -> None:
    stages = (Stage("clean", 2, 2e-3), Stage("mixed", 2, 1e-3, struck_share=0.5))
    config = PretrainConfig(stages=stages, weak_stage="mixed", weak_steps=1, pictures=100, batch_size=4, threads=1)
    lines = list(pretrain(config, tmp_path, start=FOLDER / "base"))
    assert not any(line.startswith("clean stage") for line in lines)
    assert not (tmp_path / "clean").exists()
    vae = "vae/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "base" / vae).read_bytes() == (FOLDER / "base" / vae).read_bytes()
    transformer = "transformer/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "base" / transformer).read_bytes() != (FOLDER / "base" / transformer).read_bytes()


@pytest.mark.parametrize("model", ["base", "weak"])
def test_plain_diffusers_loads_the_folder_and_draws_from_a_string(model: str, tmp_path: Path) -> None:
    script = (
        "from diffusers import FluxPipeline\n"
        f"pipeline = FluxPipeline.from_pretrained({str(FOLDER / model)!r})\n"
        "assert str(pipeline.transformer.dtype) == 'torch.float32'\n"
        "image = pipeline('the word \"harbor\" in red on yellow', height=32, width=128, num_inference_steps=8,"
        " max_sequence_length=24).images[0]\n"
        "assert image.size == (128, 32)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_both_models_fit_into_16_megabytes() -> None:
    size = sum(file.stat().st_size for model in ("base", "weak") for file in (FOLDER / model).rglob("*"))
    assert size <= 16 * 2**20


def test_difficulty_is_wide_and_base_reads_better_than_weak() -> None:
    torch.set_num_threads(1)
    base, weak = summary(measure("base")), summary(measure("weak"))
    assert base["percentile_10"] <= 0.2  # type: ignore[operator]
    assert base["percentile_90"] >= 0.8  # type: ignore[operator]
    assert 0.3 <= base["ocr-v4/word_accuracy"] <= 0.5  # type: ignore[operator]
    assert weak["ocr-v4/word_accuracy"] < base["ocr-v4/word_accuracy"]  # type: ignore[operator]
