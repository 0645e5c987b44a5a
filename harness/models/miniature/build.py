"""Puts the miniature together: FLUX's own classes at a width and depth that a laptop trains in minutes."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from harness.models.miniature.autoencoder import PatchAutoencoder
from harness.models.miniature.prompts import BACKGROUNDS, FONTS, TEXT_COLOURS

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEMPLATE_WORDS = ("the", "word", "in", "on", "font", *TEXT_COLOURS, *BACKGROUNDS, *FONTS)
MAX_T5_TOKENS = 24
"""Longest prompt: the word " + 10 letters + " in C on B in F font, and the end token, is 22."""
MAX_CLIP_TOKENS = 48


def t5_tokenizer() -> T5Tokenizer:
    """Whole pieces for the template's words, single letters inside the quotes, so that spelling is visible."""
    pieces = ["<pad>", "</s>", "<unk>", *(f"▁{word}" for word in TEMPLATE_WORDS), '▁"', '"', *LETTERS]
    # The score of a longer piece is above that of any spelling of it by letters; the unknown piece comes last.
    scores = [0.0, 0.0, -100.0] + [-1.0] * len(TEMPLATE_WORDS) + [-1.0, -1.0] + [-10.0] * len(LETTERS)
    return T5Tokenizer(vocab=list(zip(pieces, scores, strict=True)), extra_ids=0, model_max_length=MAX_T5_TOKENS)


def clip_tokenizer() -> CLIPTokenizer:
    """Characters, merged into one token for each of the template's words."""
    merges: list[tuple[str, str]] = []
    for word in TEMPLATE_WORDS:
        symbols = [*word[:-1], f"{word[-1]}</w>"]
        while len(symbols) > 1:
            # From the end, so that no merge fires but at the end of a word.
            pair = (symbols[-2], symbols[-1])
            if pair not in merges:
                merges.append(pair)
            symbols[-2:] = ["".join(pair)]
    symbols_in_vocabulary = [*LETTERS, '"', *(f"{c}</w>" for c in [*LETTERS, '"']), *("".join(m) for m in merges)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *dict.fromkeys(symbols_in_vocabulary)]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=merges, model_max_length=MAX_CLIP_TOKENS
    )


def build_pipeline(images: Tensor, seed: int) -> FluxPipeline:
    """A complete FluxPipeline with random weights and an autoencoder fitted to pictures.

    Args:
        images: ``[N, 3, 32, 128]`` in [-1, 1], to fit the autoencoder to.
        seed: of the random weights.
    """
    torch.manual_seed(seed)
    tokenizer, tokenizer_2 = clip_tokenizer(), t5_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=MAX_CLIP_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    text_encoder_2 = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer_2),
            d_model=128,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_heads=4,
            # One bucket a distance: which letter is third must be read off the distance to the quotes.
            relative_attention_num_buckets=48,
            relative_attention_max_distance=64,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )
    vae = PatchAutoencoder.fit(images)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * vae.config.latent_channels,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=128,
        pooled_projection_dim=64,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    )
