"""What the parts of a run are called: one registry a kind, from which settings, labels, colours and sizes are taken.

An entry here is a valid value of its setting. Nothing heavy is imported: the analysis reads these, too.
"""

from dataclasses import dataclass

METHODS: dict[str, str] = {"flow_grpo": "Flow-GRPO", "dance_grpo": "DanceGRPO", "flow_cps": "Flow-CPS"}
"""``method.kernel`` and how papers call it; the step itself is in ``harness.transitions.KERNELS``."""


@dataclass(frozen=True)
class SelectionName:
    """A rule that chooses the prompt to train on: its colour, and what it asks for."""

    colour: str
    samples: int = 1
    """Deterministic samples of each candidate."""
    reads_capability: bool = False
    reads_ledger: bool = False
    """What it remembers of trained prompts, and the candidates' text embeddings."""
    step_share: float = 1.0
    """Of the schedule's steps that a candidate's sample takes."""
    level: tuple[float, float] | None = None
    """Least and greatest value of the one number that it needs, if any: ``choice.level``."""


_INF = float("inf")
# Okabe and Ito's palette, told apart with any colour vision; the further rules are in greys and browns of their own.
SELECTIONS: dict[str, SelectionName] = {
    "random": SelectionName("#D55E00", samples=0),
    "easiest": SelectionName("#E69F00"),
    "hardest": SelectionName("#CC79A7"),
    "medium": SelectionName("#56B4E9"),
    "curriculum": SelectionName("#009E73", reads_capability=True),
    "quantile": SelectionName("#6B4C9A", level=(0.0, 1.0)),
    "fixed": SelectionName("#9A6B4C", level=(-_INF, _INF)),
    "anchored": SelectionName("#2F4F4F", reads_capability=True, level=(-_INF, _INF)),
    "preview": SelectionName("#7FBF7F", reads_capability=True, step_share=0.25),
    "screened": SelectionName("#B8860B", samples=2),
    "predicted": SelectionName("#1B3A6B", samples=0, reads_ledger=True),
    "predicted_hardest": SelectionName("#8B1A4A", samples=0, reads_ledger=True),
    "predicted_spread": SelectionName("#4A7A8C", samples=0, reads_ledger=True),
    "thompson": SelectionName("#5A5A2A", samples=0, reads_ledger=True),
}
"""``selection``, the paper's five first and in its order; the choices themselves are in ``harness.selection.RULES``."""
PAPER_SELECTIONS = tuple(SELECTIONS)[:5]

FUSIONS: dict[str, str] = {
    "fused": "advantage fusion",
    "rescaled": "rescaled advantages",
    "uncentred": "uncentred advantages",
    "shrinkage": "shrunk baseline",
    "ema_std": "capability's std",
    "gated": "gated advantages",
}
"""``fusion.kind`` in words; see docs/fusion.md. The arithmetic is in ``harness.advantages.FUSIONS``."""

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
    """A reward or judge: how tables call it, and where and how it is computed."""

    label: str
    backends: tuple[str, ...]
    """Valid values of ``rewards.NAME.backend``, the usual one first."""
    path: str = ""
    """The published checkpoint on the hub, where there is one: ``owner/name`` or ``owner/name/file``."""
    base: str | None = None
    """Architecture, tokenizer or preprocessing, where the checkpoint's own repository does not have them."""
    model: RewardModel | None = None
    """Where it is one that needs a GPU."""

    @property
    def is_judge(self) -> bool:
        """Whether it is a chat model that answers with a number."""
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
"""What ``reward`` and ``evaluation.judges`` may name; ``harness.rewards`` builds them."""
