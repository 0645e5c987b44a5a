"""How long a grid takes, from counted forwards and the seconds one forward is taken to need."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.config import RunConfig
from harness.experiments.doctor.architecture import Architecture
from harness.names import REWARDS
from harness.training.accounting import Counters, expected_cost

PEAK_TERAFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "RTX 4090": 165, "RTX 3090": 71, "A10": 125}
"""Dense bf16 tensor arithmetic, as the maker states it, by a part of the GPU's name."""

ASSUMED_GPU = "H100"
"""Where no GPU is there, or an unknown one."""

UTILISATION = 0.4
"""Share of the peak that a transformer's forward reaches: typical of attention in bf16 without compilation."""


PromptCounter = Callable[[RunConfig, str], int]
"""How many prompts a run's ``train``, ``validation`` or ``test`` list has."""


@dataclass(frozen=True)
class Work:
    """What a list of runs will do, over all processes."""

    num_runs: int
    iterations: int
    training: Counters
    evaluation_forwards: int

    @property
    def forwards(self) -> int:
        """Sample-forwards, a trained one counting three."""
        return self.training.forwards + self.evaluation_forwards


def work_of(configs: Sequence[RunConfig], count_prompts: PromptCounter) -> Work:
    """Count the work of runs."""
    training, forwards = Counters(), 0
    for config in configs:
        spent = vars(expected_cost(config))
        training.add({name: count * config.iterations for name, count in spent.items()})
        pictures = evaluation_pictures(config, count_prompts(config, "validation"), count_prompts(config, "test"))
        forwards += pictures * (config.evaluation.num_steps or config.model.num_steps)
    return Work(len(configs), sum(config.iterations for config in configs), training, forwards)


def most_prompts(configs: Sequence[RunConfig], count_prompts: PromptCounter) -> int:
    """Most different prompts that runs of the same lists can ask for: what they draw, or all there are."""
    of_a_seed = {c.seed: c.iterations * c.rollout.prompts_per_update * c.rollout.candidates for c in configs}
    first = configs[0]
    drawn = min(count_prompts(first, "train"), sum(of_a_seed.values()))
    return drawn + count_prompts(first, "validation") + count_prompts(first, "test")


def evaluation_pictures(config: RunConfig, num_validation: int, num_test: int) -> int:
    """How many pictures a run's evaluations draw: before, at the interval, at the end, and on the test list.

    Args:
        config: of the run.
        num_validation: prompts in the validation list.
        num_test: prompts in the test list.
    """
    settings = config.evaluation
    at_interval = -(-config.iterations // settings.interval)  # the last iteration counts, on the interval or not
    validations = (1 + at_interval) * min(settings.validation_prompts, num_validation)
    tests = (2 if settings.base_test else 1) * num_test * settings.test_noises
    return validations + tests + (1 + at_interval) * min(settings.gallery, num_validation)


def seconds_per_forward(architecture: Architecture, config: RunConfig, gpu: str) -> float:
    """Of one sample through the network: its arithmetic, 2 P T + 4 T^2 d L, over what the GPU achieves.

    P parameters, T tokens, d channels, L blocks; the second term is attention's.

    Args:
        architecture: of the model.
        config: picture size, text length, guidance.
        gpu: a key of ``PEAK_TERAFLOPS``.
    """
    tokens = architecture.tokens(config.model)
    attention = 4 * tokens**2 * architecture.width * architecture.num_blocks
    operations = 2 * architecture.parameters * tokens + attention
    achieved = PEAK_TERAFLOPS[gpu] * 1e12 * UTILISATION
    return architecture.forwards_per_velocity(config.model) * operations / achieved


def scoring_seconds(config: RunConfig, gpu: str) -> float:
    """Of a run's training rewards, by their models' arithmetic; a reward without a model listed here counts nothing."""
    models = [model for name in config.reward if (model := REWARDS[name].model) is not None]
    operations = sum(2 * model.parameters * model.tokens for model in models)
    calls = config.iterations * expected_cost(config).reward_calls
    return calls * operations / (PEAK_TERAFLOPS[gpu] * 1e12 * UTILISATION)


def known_gpu(name: str | None) -> str | None:
    """The key of ``PEAK_TERAFLOPS`` that is part of a GPU's name, the longest; None if there is none."""
    fitting = [key for key in PEAK_TERAFLOPS if name is not None and key in name]
    return max(fitting, key=len, default=None)
