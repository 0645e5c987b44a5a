"""A reward: adagrpo train reward=example.py:Example, or evaluation.judges='[example.py:Example]'"""


def Example(images, prompts):
    """How bright each picture is, in [0, 1]: the mean of its pixels and channels."""
    return images.mean(dim=(1, 2, 3))  # [B], of pictures [B, 3, H, W] in [0, 1]
