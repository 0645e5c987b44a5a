"""How long a grid takes, from counted forwards and the seconds one forward is taken to need."""

from collections.abc import Callable, Sequence

from harness.config import RunConfig
from harness.experiments.doctor.architecture import Architecture
from harness.training.accounting import expected_cost

PEAK_TERAFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "RTX 4090": 165, "RTX 3090": 71, "A10": 125}
"""Dense bf16 tensor arithmetic, as the maker states it, by a part of the GPU's name."""
ASSUMED_GPU = "H100"
"""Where no GPU is there, or an unknown one."""
UTILISATION = 0.4
"""Share of the peak that a transformer's forward reaches: typical of attention in bf16 without compilation."""

PromptCounter = Callable[[RunConfig, str], int]
"""How many prompts a run's ``train``, ``validation`` or ``test`` list has."""


def forwards_of(configs: Sequence[RunConfig], count_prompts: PromptCounter) -> int:
    """Sample-forwards of runs, over all processes: in training, where a trained sample counts three, and evaluation."""
    total = 0
    for config in configs:
        pictures = evaluation_pictures(config, count_prompts(config, "validation"), count_prompts(config, "test"))
        total += pictures * (config.evaluation.num_steps or config.model.num_steps)
        total += config.iterations * expected_cost(config).forwards
    return total


def most_prompts(configs: Sequence[RunConfig], count_prompts: PromptCounter) -> int:
    """Most different prompts that runs of the same lists can ask for: what they draw, or all there are."""
    of_a_seed = {c.seed: c.iterations * c.rollout.prompts_per_update * c.rollout.candidates for c in configs}
    train, validation, test = (count_prompts(configs[0], split) for split in ("train", "validation", "test"))
    return min(train, sum(of_a_seed.values())) + validation + test


def evaluation_pictures(config: RunConfig, num_validation: int, num_test: int) -> int:
    """How many pictures a run's evaluations draw: before, at the interval, at the end, and on the test list.

    Args:
        config: of the run.
        num_validation: prompts in the validation list.
        num_test: prompts in the test list.
    """
    settings = config.evaluation
    validations = 1 - -config.iterations // settings.interval  # the last iteration counts, on the interval or not
    of_each = min(settings.validation_prompts, num_validation) + min(settings.gallery, num_validation)
    return validations * of_each + (2 if settings.base_test else 1) * num_test * settings.test_noises


def seconds_per_forward(architecture: Architecture, config: RunConfig, gpu: str | None) -> tuple[float, str]:
    """Of one sample through the network: its arithmetic, 2 P T + 4 T^2 d L, over what the GPU achieves.

    P parameters, T tokens, d channels, L blocks; the second term is attention's.

    Args:
        architecture: of the model.
        config: picture size, text length, guidance.
        gpu: its name; where it is None or not known, ``ASSUMED_GPU``.

    Returns:
        Seconds, and the GPU that they are of.
    """
    known = max((key for key in PEAK_TERAFLOPS if key in (gpu or "")), key=len, default=ASSUMED_GPU)
    tokens = architecture.tokens(config.model)
    operations = 2 * architecture.parameters * tokens + 4 * tokens**2 * architecture.width * architecture.num_blocks
    achieved = PEAK_TERAFLOPS[known] * 1e12 * UTILISATION
    return architecture.forwards_per_velocity(config.model) * operations / achieved, known
