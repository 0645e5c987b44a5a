"""Pretrains the miniature from scratch: rectified flow on pictures drawn by ``render``, from prompt strings.

The first stage learns to spell, on clean pictures. The later ones learn pictures of mixed quality, of which some are
struck out, as a web-scale model has seen good and bad pictures: what reinforcement learning is there to find is the
better part of what the model can do already, and that is the same part whatever the prompt.

Text encoders and transformer are trained together. Every random draw is a function of (seed, stage, step), so that an
interrupted pretraining resumes to the same result.
"""

import copy
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline
from torch import Tensor, nn

from harness.models.miniature.build import MAX_CLIP_TOKENS, MAX_T5_TOKENS, build_pipeline
from harness.models.miniature.muon import Muon
from harness.models.miniature.prompts import (
    BACKGROUNDS,
    FONTS,
    MAX_LETTERS,
    MIN_LETTERS,
    NAMED_FONT_SHARE,
    RARE_LETTERS,
    TEXT_COLOURS,
    MiniaturePrompt,
    words,
)
from harness.models.miniature.render import render

TRAINED_PARTS = ("transformer", "text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class Stage:
    """A part of pretraining, on pictures of its own; it starts from the averaged weights of the stage before."""

    name: str
    steps: int
    learning_rate: float
    """At its peak: linear warm-up, constant, then linear decay to zero."""
    struck_share: float = 0.0
    """Share of pictures whose word is struck out."""
    strike_pixels: tuple[float, float] = (2.0, 12.0)
    """Least and greatest thickness of the bar."""
    decay_share: float = 0.5
    """Share of the steps at its end over which the learning rate decays."""

    def learning_rate_at(self, step: int, warmup_steps: int) -> float:
        """The learning rate of a step, counted from 0."""
        decay_steps = max(1, round(self.decay_share * self.steps))
        return self.learning_rate * min(1.0, (step + 1) / warmup_steps, (self.steps - step) / decay_steps)


STAGES = (
    Stage("clean", 4200, 2e-3),
    Stage("mixed", 1500, 1e-3, struck_share=0.5),
    Stage("harsh", 900, 1e-3, struck_share=0.4, strike_pixels=(5.0, 13.0)),
    Stage("final", 300, 5e-4, struck_share=0.33, strike_pixels=(5.0, 13.0), decay_share=0.9),
)


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of a pretraining; the committed ``base/`` and ``weak/`` were made with the defaults."""

    stages: tuple[Stage, ...] = STAGES
    """The last one ends in ``base/``."""
    weak_stage: str = "harsh"
    weak_steps: int = 200
    """After how many steps of which stage the weaker model, ``weak/``, is saved."""
    seed: int = 0
    batch_size: int = 128
    warmup_steps: int = 100
    ema_decay: float = 0.998
    pictures: int = 60_000
    """Drawn for each stage."""
    save_every: int = 250
    threads: int = 2


@dataclass(frozen=True)
class Pool:
    """Pretraining data: latents ``[N, C, h, w]`` and token ids ``[N, L]`` of N rendered prompts."""

    latents: Tensor
    t5_ids: Tensor
    clip_ids: Tensor


def random_prompt(rng: np.random.Generator, by_length: dict[int, list[str]]) -> MiniaturePrompt:
    """A training prompt: a length, then a word of that length, colours, and in some a named font."""
    word = str(rng.choice(by_length[int(rng.integers(MIN_LETTERS, MAX_LETTERS + 1))]))
    font = str(rng.choice(list(FONTS))) if rng.random() < NAMED_FONT_SHARE else None
    return MiniaturePrompt(word, str(rng.choice(list(TEXT_COLOURS))), str(rng.choice(list(BACKGROUNDS))), font)


def draw_pictures(
    count: int, seed: int, struck_share: float = 0.0, strike_pixels: tuple[float, float] = (2.0, 12.0)
) -> tuple[list[str], Tensor]:
    """Training prompts and their pictures ``[N, 3, 32, 128]`` uint8; words of the train split only."""
    rng = np.random.default_rng(seed)
    by_length: dict[int, list[str]] = {n: [] for n in range(MIN_LETTERS, MAX_LETTERS + 1)}
    for word in words("train"):
        # Words with a rare letter twice as often, else j, q, x and z are never learnt.
        by_length[len(word)] += [word] * (2 if RARE_LETTERS & set(word) else 1)
    prompts = [random_prompt(rng, by_length) for _ in range(count)]
    pictures = np.stack([render(prompt, rng, struck_share, strike_pixels) for prompt in prompts])
    return [str(prompt) for prompt in prompts], torch.from_numpy(pictures).permute(0, 3, 1, 2)


def token_ids(tokenizer: Any, prompts: list[str], length: int) -> Tensor:
    """``[N, length]`` ids, padded as FluxPipeline pads them."""
    return tokenizer(prompts, padding="max_length", max_length=length, return_tensors="pt").input_ids


def to_unit_range(pictures: Tensor) -> Tensor:
    """uint8 -> [-1, 1]."""
    return pictures.float() / 127.5 - 1


@torch.no_grad()
def make_pool(pipeline: FluxPipeline, prompts: list[str], pictures: Tensor) -> Pool:
    """Encode pictures and prompts once; only noise is new at each step."""
    config = pipeline.vae.config
    latents = torch.cat([pipeline.vae.encode(to_unit_range(p)).latent_dist.mode() for p in pictures.split(2000)])
    return Pool(
        (latents - config.shift_factor) * config.scaling_factor,
        token_ids(pipeline.tokenizer_2, prompts, MAX_T5_TOKENS),
        token_ids(pipeline.tokenizer, prompts, MAX_CLIP_TOKENS),
    )


def flow_loss(pipeline: FluxPipeline, parts: nn.ModuleDict, pool: Pool, rows: Tensor, noise_seed: int) -> Tensor:
    """Rectified-flow loss: the network predicts v = eps - x0 at x = (1 - t) x0 + t eps, t = sigmoid(N(0.3, 1))."""
    generator = torch.Generator().manual_seed(noise_seed)
    x0 = pool.latents[rows]
    batch, channels, height, width = x0.shape
    noise = torch.randn(x0.shape, generator=generator)
    t = torch.sigmoid(torch.randn(batch, generator=generator) + 0.3)
    x_t = torch.lerp(x0, noise, t[:, None, None, None])
    image_ids = pipeline._prepare_latent_image_ids(batch, height // 2, width // 2, x0.device, x0.dtype)
    velocity = parts["transformer"](
        hidden_states=pipeline._pack_latents(x_t, batch, channels, height, width),
        timestep=t,
        guidance=None,
        pooled_projections=parts["text_encoder"](pool.clip_ids[rows]).pooler_output,
        encoder_hidden_states=parts["text_encoder_2"](pool.t5_ids[rows])[0],
        txt_ids=torch.zeros(pool.t5_ids.shape[1], 3),
        img_ids=image_ids,
        return_dict=False,
    )[0]
    target = pipeline._pack_latents(noise - x0, batch, channels, height, width)
    return (velocity.float() - target).square().mean()


def make_optimizers(parts: nn.ModuleDict) -> list[torch.optim.Optimizer]:
    """Muon on the matrices inside blocks, AdamW on embeddings, projections in and out, norms, biases.

    Each step sets the learning rate.
    """
    blocks: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in parts.named_parameters():
        inside = "blocks." in name or ".block." in name or ".layers." in name
        is_matrix = parameter.ndim == 2 and "embed" not in name and "relative_attention_bias" not in name
        (blocks if inside and is_matrix else rest).append(parameter)
    return [
        Muon(blocks, lr=0.0),
        torch.optim.AdamW(rest, lr=0.0, weight_decay=0.0, betas=(0.9, 0.99)),
    ]


def save_model(pipeline: FluxPipeline, ema: nn.ModuleDict, folder: Path) -> None:
    """Write the pipeline with averaged weights, in half precision (loaded as float32 again): 4.5 MB a model."""
    pipeline = copy.deepcopy(pipeline)
    for name in TRAINED_PARTS:
        getattr(pipeline, name).load_state_dict(ema[name].state_dict())
    pipeline.transformer.half()
    pipeline.save_pretrained(folder)


def _save_state(path: Path, state: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def pretrain(config: PretrainConfig, folder: Path, start: Path | None = None, first: str = "mixed") -> Iterator[str]:
    """Pretrain, yielding a line of progress now and then; writes ``base/``, ``weak/`` and states to a folder.

    What an earlier, interrupted call with the same settings has finished is not done again.

    Args:
        config: settings.
        folder: to write to.
        start: a pipeline to go on from, such as an earlier ``folder/clean``, instead of from random weights.
        first: with ``start``, the first stage to be trained; those before it are skipped.

    Raises:
        ValueError: no such stage, or the folder holds the state of a pretraining with other settings.
    """
    torch.set_num_threads(config.threads)
    folder.mkdir(parents=True, exist_ok=True)
    names = [stage.name for stage in config.stages]
    if start is not None and first not in names:
        raise ValueError(f"unknown stage {first!r}: there are {', '.join(names)}")
    before = start
    for number, stage in enumerate(config.stages):
        if start is not None and number < names.index(first):
            continue
        target = folder / ("base" if stage is config.stages[-1] else stage.name)
        if not (target / "model_index.json").exists():
            yield f"{stage.name} stage: drawing {config.pictures} pictures"
            seed = config.seed * len(names) + number
            prompts, pictures = draw_pictures(config.pictures, seed, stage.struck_share, stage.strike_pixels)
            if before is None:
                pipeline = build_pipeline(to_unit_range(pictures[:8000]), config.seed)
            else:
                pipeline = FluxPipeline.from_pretrained(before)
            yield from _train(config, stage, seed, pipeline, make_pool(pipeline, prompts, pictures), folder, target)
        before = target
    yield f"wrote {folder / 'base'} and {folder / 'weak'}"


def _train(
    config: PretrainConfig, stage: Stage, seed: int, pipeline: FluxPipeline, pool: Pool, folder: Path, target: Path
) -> Iterator[str]:
    """One stage, from its state file if there is one; writes the averaged model at its end."""
    parts = nn.ModuleDict({name: getattr(pipeline, name) for name in TRAINED_PARTS}).train().requires_grad_(True)
    ema = copy.deepcopy(parts).requires_grad_(False)
    optimizers = make_optimizers(parts)
    state_path = folder / f"{stage.name}-state.pt"
    start, losses = 0, [0.0]
    settings = asdict(config)
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        if state["config"] != settings:
            raise ValueError(f"{state_path} belongs to other settings; choose another folder or delete it")
        start = state["step"]
        parts.load_state_dict(state["parts"])
        ema.load_state_dict(state["ema"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        yield f"{stage.name} stage: continuing at step {start}"
    began = time.monotonic()
    for step in range(start, stage.steps):
        rows = torch.from_numpy(np.random.default_rng((seed, step)).integers(config.pictures, size=config.batch_size))
        loss = flow_loss(pipeline, parts, pool, rows, noise_seed=seed * 1_000_003 + step)
        loss.backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate_at(step, config.warmup_steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = min(config.ema_decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(ema.parameters()), list(parts.parameters()), 1 - decay)
        losses.append(loss.item())
        done = step + 1
        if stage.name == config.weak_stage and done == config.weak_steps:
            save_model(pipeline, ema, folder / "weak")
        if done % config.save_every == 0 or done == stage.steps:
            content = {"config": settings, "step": done, "parts": parts.state_dict(), "ema": ema.state_dict()}
            _save_state(state_path, content | {"optimizers": [optimizer.state_dict() for optimizer in optimizers]})
        if done % 100 == 0:
            seconds = (time.monotonic() - began) / (done - start)
            yield (
                f"{stage.name} stage: step {done}/{stage.steps}  loss {np.mean(losses[-100:]):.4f}  "
                f"{seconds:.3f} s a step, {seconds * (stage.steps - done) / 60:.1f} min left"
            )
    save_model(pipeline, ema, target)
