"""Pretraining of the miniature by a recipe: rectified flow on drawn pictures, conditioned on prompt strings.

Text encoders and transformer are trained together. Every random draw is a function of (seed, stage, step), so that an
interrupted pretraining gives the same result when resumed.
"""

import copy
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from harness.foundation.errors import ConfigError
from harness.foundation.files import read_text, replacing, write_atomically
from harness.models.miniature.autoencoder import PatchAutoencoder
from harness.models.miniature.defects import LetterDefects, Strikes
from harness.models.miniature.muon import Muon
from harness.models.miniature.prompts import MAX_LETTERS, MIN_LETTERS, RARE_LETTERS, words
from harness.models.miniature.recipes import Recipe, Stage
from harness.models.pipelines.weights import filling

TRAINED_PARTS = ("transformer", "text_encoder", "text_encoder_2")
_MODELS = Path(__file__).parent


def build_pipeline(images: Tensor, seed: int) -> FluxPipeline:
    """Build a complete FluxPipeline with the configuration of the committed ``base`` and random weights.

    The classes are FLUX's own, at a width and depth that a laptop trains in minutes. The T5 tokenizer has whole pieces
    for the template's words and single letters inside the quotes, so that spelling is visible; its encoder has one
    relative-position bucket per distance, because the position of a letter is its distance to the quotes.
    The autoencoder is fitted to images ``[N, 3, 32, 128]`` in [-1, 1].
    """
    torch.manual_seed(seed)
    base = _MODELS / "base"
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(base / "scheduler"),
        text_encoder=CLIPTextModel(CLIPTextConfig.from_pretrained(base / "text_encoder")),
        tokenizer=CLIPTokenizer.from_pretrained(base / "tokenizer"),
        text_encoder_2=T5EncoderModel(T5Config.from_pretrained(base / "text_encoder_2")),
        tokenizer_2=T5Tokenizer.from_pretrained(base / "tokenizer_2"),
        vae=PatchAutoencoder.fit(images),
        transformer=FluxTransformer2DModel.from_config(FluxTransformer2DModel.load_config(base / "transformer")),
    )


@dataclass(frozen=True)
class Pool:
    """Pretraining data: latents ``[N, C, h, w]`` and token ids ``[N, L]`` of N rendered prompts."""

    latents: Tensor
    t5_ids: Tensor
    clip_ids: Tensor


def draw_pictures(count: int, seed: int, pictures: Strikes | LetterDefects) -> tuple[list[str], Tensor]:
    """Draw training prompts and their pictures ``[N, 3, 32, 128]`` uint8, with words of the train split only."""
    rng = np.random.default_rng(seed)
    by_length: dict[int, list[str]] = {n: [] for n in range(MIN_LETTERS, MAX_LETTERS + 1)}
    for word in words("train"):
        # Words with a rare letter are twice as frequent, or j, q, x and z would never be learnt.
        by_length[len(word)] += [word] * (2 if RARE_LETTERS & set(word) else 1)
    prompts = [pictures.prompt(rng, by_length) for _ in range(count)]
    drawn = np.stack([pictures.draw(prompt, rng) for prompt in prompts])
    return [str(prompt) for prompt in prompts], torch.from_numpy(drawn).permute(0, 3, 1, 2)


def token_ids(tokenizer: Any, prompts: list[str]) -> Tensor:
    """Token ids ``[N, length]``, padded in the same way as in FluxPipeline."""
    return tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids


def to_unit_range(pictures: Tensor) -> Tensor:
    """Convert uint8 pictures to floats in [-1, 1]."""
    return pictures.float() / 127.5 - 1


@torch.no_grad()
def make_pool(pipeline: FluxPipeline, prompts: list[str], pictures: Tensor) -> Pool:
    """Encode pictures and tokenise prompts once for all steps."""
    config = pipeline.vae.config
    latents = torch.cat([pipeline.vae.encode(to_unit_range(p)).latent_dist.mode() for p in pictures.split(2000)])
    return Pool(
        (latents - config.shift_factor) * config.scaling_factor,
        token_ids(pipeline.tokenizer_2, prompts),
        token_ids(pipeline.tokenizer, prompts),
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
    """Make the optimisers: Muon for matrices inside blocks, AdamW for embeddings, in/out projections, norms and biases.

    The learning rate is set at each step.
    """
    blocks: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in parts.named_parameters():
        inside = "blocks." in name or ".block." in name or ".layers." in name
        is_matrix = parameter.ndim == 2 and "embed" not in name and "relative_attention_bias" not in name
        (blocks if inside and is_matrix else rest).append(parameter)
    return [Muon(blocks, lr=0.0), torch.optim.AdamW(rest, lr=0.0, weight_decay=0.0, betas=(0.9, 0.99))]


def save_model(pipeline: FluxPipeline, ema: nn.ModuleDict, folder: Path) -> None:
    """Save the pipeline with averaged weights, its transformer in half precision (loaded as float32): 5.2 MB."""
    pipeline = copy.deepcopy(pipeline)
    for name in TRAINED_PARTS:
        getattr(pipeline, name).load_state_dict(ema[name].state_dict())
    pipeline.transformer.half()
    with filling(folder) as partial:
        pipeline.save_pretrained(partial)
        for file in partial.rglob("*.json"):
            # The folder that the pipeline was loaded from means nothing on other machines.
            content = json.loads(read_text(file))
            if content.pop("_name_or_path", None) is not None:
                write_atomically(file, json.dumps(content, indent=2, sort_keys=True) + "\n")


def pretrain(recipe: Recipe, folder: Path, threads: int = 1) -> Iterator[str]:
    """Pretrain, yielding lines of progress; writes each stage's model and state to a folder.

    Work that an interrupted call with the same recipe has finished is not repeated.

    Raises:
        ConfigError: the folder holds the state of another recipe.
    """
    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    before = None if recipe.start is None else _MODELS / recipe.start
    for number, stage in enumerate(recipe.stages):
        target = folder / stage.name
        if not (target / "model_index.json").exists():
            yield f"{stage.name} stage: drawing {recipe.pictures} pictures"
            seed = recipe.seed * len(recipe.stages) + number
            prompts, pictures = draw_pictures(recipe.pictures, seed, stage.pictures)
            if before is None:
                pipeline = build_pipeline(to_unit_range(pictures[:8000]), recipe.seed)
            else:
                pipeline = FluxPipeline.from_pretrained(before)
            yield from _train(recipe, stage, seed, pipeline, make_pool(pipeline, prompts, pictures), folder)
        before = target
    models = [name for stage in recipe.stages for name in (*(name for _, name in stage.kept), stage.name)]
    yield f"{folder} holds {', '.join(models)}"


def _train(recipe: Recipe, stage: Stage, seed: int, pipeline: FluxPipeline, pool: Pool, folder: Path) -> Iterator[str]:
    """Train one stage, resumed from its state file if there is one; saves the averaged model at its end."""
    parts = nn.ModuleDict({name: getattr(pipeline, name) for name in TRAINED_PARTS}).train().requires_grad_(True)
    ema = copy.deepcopy(parts).requires_grad_(False)
    optimizers = make_optimizers(parts)
    stateful: dict[str, Any] = {
        "parts": parts,
        "ema": ema,
        **{f"optimizer {i}": one for i, one in enumerate(optimizers)},
    }
    path, settings = folder / f"{stage.name}-state.pt", asdict(recipe)
    start, losses, seconds_before = 0, [0.0], 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        if state["recipe"] != settings or not stateful.keys() <= state.keys():
            raise ConfigError(f"{path} belongs to another recipe or version; choose another folder or delete it")
        start, seconds_before = state["step"], state["seconds"]
        for name, one in stateful.items():
            one.load_state_dict(state[name])
        yield f"{stage.name} stage: continuing at step {start}"
    kept = dict(stage.kept)
    began = time.monotonic()
    for step in range(start, stage.steps):
        rows = torch.from_numpy(np.random.default_rng((seed, step)).integers(recipe.pictures, size=recipe.batch_size))
        loss = flow_loss(pipeline, parts, pool, rows, noise_seed=seed * 1_000_003 + step)
        loss.backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate_at(step, recipe.warmup_steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = min(recipe.ema_decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(ema.parameters()), list(parts.parameters()), 1 - decay)
        losses.append(loss.item())
        done, seconds = step + 1, time.monotonic() - began
        if done in kept:
            save_model(pipeline, ema, folder / kept[done])
        if done % recipe.save_every == 0 or done == stage.steps:
            content = {"recipe": settings, "step": done, "seconds": seconds_before + seconds}
            with replacing(path) as stream:
                torch.save(content | {name: one.state_dict() for name, one in stateful.items()}, stream)
        if done % 100 == 0:
            pace = seconds / (done - start)
            yield (
                f"{stage.name} stage: step {done}/{stage.steps}  loss {np.mean(losses[-100:]):.4f}  "
                f"{pace:.3f} s per step, {pace * (stage.steps - done) / 60:.1f} min left"
            )
    save_model(pipeline, ema, folder / stage.name)
    yield f"{stage.name} stage: {seconds_before + time.monotonic() - began:.0f} s of training"
