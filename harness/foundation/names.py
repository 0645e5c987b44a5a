"""Names of the parts of a run: one registry per kind, used for settings, labels, colours and sizes.

Each entry is a valid value of its setting. Nothing heavy is imported: the analysis reads these registries, too.
"""

from dataclasses import dataclass

METHODS: dict[str, str] = {"flow_grpo": "Flow-GRPO", "dance_grpo": "DanceGRPO", "flow_cps": "Flow-CPS"}
"""Values of ``method.kernel`` with their names in papers; the kernels are in ``harness.transitions.KERNELS``."""

# Okabe and Ito's palette, distinguishable with any colour vision, for the paper's five.
SELECTIONS: dict[str, str] = {
    "random": "#D55E00",
    "easiest": "#E69F00",
    "hardest": "#CC79A7",
    "medium": "#56B4E9",
    "curriculum": "#009E73",
    "quantile": "#6B4C9A",
    "fixed": "#9A6B4C",
    "anchored": "#2F4F4F",
    "preview": "#7FBF7F",
    "screened": "#B8860B",
    "predicted": "#1B3A6B",
    "predicted_hardest": "#8B1A4A",
    "predicted_spread": "#4A7A8C",
    "thompson": "#5A5A2A",
    "beta": "#3D5A3D",
    "skipping": "#7A3E9D",
    "belief": "#2E8B57",
    "variance": "#C04000",
    "replay": "#A0522D",
    "bandit": "#708090",
}
"""Values of ``selection``, the paper's five first and in its order, with their colours in figures; the rules are in
``harness.rules.selection.RULES``, their requirements in ``harness.config.selection``."""
PAPER_SELECTIONS = tuple(SELECTIONS)[:5]

FUSIONS: dict[str, str] = {
    "fused": "advantage fusion",
    "rescaled": "rescaled advantages",
    "uncentred": "uncentred advantages",
    "shrinkage": "shrunk baseline",
    "ema_std": "capability's std",
    "gated": "gated advantages",
}
"""Values of ``fusion.kind`` with labels, see docs/fusion.md; implemented in ``harness.rules.advantages.FUSIONS``."""

NORMALISATIONS: tuple[str, ...] = ("group", "batch_std")
"""Values of ``objective.normalisation``, see ``harness.training.advantages``."""

ENGINES: tuple[str, ...] = ("ddp", "fsdp2")
"""Values of ``runtime.engine``; implemented in ``harness.training.engine``, launched with the files in
harness/experiments/jobs/accelerate."""


@dataclass(frozen=True)
class RewardModel:
    """Size of a reward's model."""

    parameters: int
    bytes_per_parameter: int


@dataclass(frozen=True)
class RewardName:
    """A reward: its label in tables, and where and how it is computed."""

    label: str
    backends: tuple[str, ...]
    """Valid values of ``rewards.NAME.backend``, the default first."""
    path: str = ""
    """Published checkpoint on the hub, if there is one: ``owner/name`` or ``owner/name/file``."""
    base: str | None = None
    """Hub id of architecture, tokenizer or preprocessing, if the checkpoint's own repository lacks them."""
    model: RewardModel | None = None
    """Size of the model, if it is one that needs a GPU."""

    @property
    def is_judge(self) -> bool:
        """Whether the reward is a chat model that answers with a number."""
        return self.backends == ("url",)


_HERE, _PACKAGE, _URL = "native", "package", "url"
_CLIP_H = RewardModel(986_109_441, 4)  # ViT-H/14

REWARDS: dict[str, RewardName] = {
    "ocr": RewardName("Ocr", (_HERE, _URL)),
    "ocr-v4": RewardName("Ocr-v4", (_HERE, _URL)),
    "colour": RewardName("Colour", (_HERE, _URL)),
    # Version 2.1, as in the paper; 2.0 is xswu/HPSv2/HPS_v2_compressed.pt.
    "hpsv2": RewardName("HPS-v2", (_HERE, _PACKAGE, _URL), "xswu/HPSv2/HPS_v2.1_compressed.pt", None, _CLIP_H),
    "hpsv3": RewardName(
        "HPS-v3",
        (_HERE, _PACKAGE, _URL),
        "MizzenAI/HPSv3/HPSv3.safetensors",
        "Qwen/Qwen2-VL-7B-Instruct",
        RewardModel(7_754_000_000, 2),  # without its language head
    ),
    "clip": RewardName("CLIP", (_HERE, _URL), "openai/clip-vit-large-patch14", None, RewardModel(427_616_513, 4)),
    "pickscore": RewardName(
        "PickScore",
        (_HERE, _URL),
        "yuvalkirstain/PickScore_v1",
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        _CLIP_H,
    ),
    "imagereward": RewardName(
        "ImageReward",
        (_PACKAGE, _URL),
        "THUDM/ImageReward",
        "google-bert/bert-base-uncased",
        RewardModel(446_000_000, 4),  # BLIP
    ),
    "unifiedreward-v1": RewardName("UR-v1", (_URL,)),
    "unifiedreward-v2": RewardName("UR-v2", (_URL,)),
}
"""Valid names in ``reward`` and ``evaluation.judges``; ``harness.rewards`` builds them."""
RECOGNISERS = ("ocr", "ocr-v4")
"""Rewards that recognise text on the CPU, in float32 or, faster, in bfloat16."""
