"""What the parts of a run are called: one registry a kind, from which settings, labels, colours and sizes are taken.

An entry here is a valid value of its setting. Nothing heavy is imported: the analysis reads these, too.
"""

from dataclasses import dataclass

METHODS: dict[str, str] = {"flow_grpo": "Flow-GRPO", "dance_grpo": "DanceGRPO", "flow_cps": "Flow-CPS"}
"""``method.kernel`` and how papers call it; the step itself is in ``harness.transitions.KERNELS``."""

# Okabe and Ito's palette, told apart with any colour vision.
SELECTIONS: dict[str, str] = {
    "random": "#D55E00",
    "easiest": "#E69F00",
    "hardest": "#CC79A7",
    "medium": "#56B4E9",
    "curriculum": "#009E73",
}
"""``selection`` in the paper's order, and its colour; the choice itself is in ``harness.adagrpo.select_prompt``."""

FUSIONS: dict[str, str] = {"fused": "advantage fusion", "rescaled": "rescaled advantages"}
"""``fusion.kind`` in words; see docs/fusion.md."""

ENGINES: tuple[str, ...] = ("ddp", "fsdp2")
"""``runtime.engine``; what each is stands in ``harness.training.engine``, how it is launched
in harness/experiments/jobs/accelerate."""


@dataclass(frozen=True)
class RewardModel:
    """Size of a reward's model."""

    parameters: int
    bytes_per_parameter: int


@dataclass(frozen=True)
class RewardName:
    """A reward or judge as tables call it, and its model where it is one that needs a GPU."""

    label: str
    model: RewardModel | None = None


REWARDS: dict[str, RewardName] = {
    "ocr": RewardName("Ocr"),
    "ocr-v4": RewardName("Ocr-v4"),
    "colour": RewardName("Colour"),
    "hpsv2": RewardName("HPS-v2", RewardModel(986_109_441, 4)),  # ViT-H/14
    "hpsv3": RewardName("HPS-v3", RewardModel(7_754_000_000, 2)),  # Qwen2-VL-7B without its language head
    "clip": RewardName("CLIP", RewardModel(427_616_513, 4)),  # ViT-L/14
    "pickscore": RewardName("PickScore", RewardModel(986_109_441, 4)),
    "imagereward": RewardName("ImageReward", RewardModel(446_000_000, 4)),  # BLIP
    "unifiedreward-v1": RewardName("UR-v1"),
    "unifiedreward-v2": RewardName("UR-v2"),
}
"""What ``reward`` and ``evaluation.judges`` may name; how each is computed is in ``harness.rewards``."""
