"""Sizes of the CLIP models whose checkpoints do not say theirs."""

from transformers import CLIPConfig

END_OF_TEXT = 49_407


def vit_h_14() -> CLIPConfig:
    """open_clip's ViT-H-14: 32 layers of 1280 for pictures, 24 of 1024 for text, 986 million parameters."""
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    return _clip(1024, vision, text)


def twin_of_clip() -> CLIPConfig:
    """ViT-H/14 at 1/40 of its width, 2 of its 32 and 24 layers."""
    tower = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    return _clip(24, tower, tower)


def _clip(width: int, vision: dict[str, int], text: dict[str, int]) -> CLIPConfig:
    return CLIPConfig(
        projection_dim=width,
        vision_config={**vision, "patch_size": 14, "image_size": 224, "hidden_act": "gelu"},
        text_config={**text, "hidden_act": "gelu", "eos_token_id": END_OF_TEXT},
    )
