"""Samples an untrained model as training would, to see whether choosing its prompts can matter."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.config import ConfigError, RunConfig
from harness.models.pipelines.policy import Policy
from harness.prompts.lists import generator_for
from harness.rewards import Reward, build_rewards
from harness.rollout import anchor_branch, full_sde, in_batches, ode_trajectory
from harness.trained.checkpoints import Checkpoint
from harness.trained.loading import load_policy
from harness.training.evaluation import sample_images
from harness.training.scoring import start_scoring
from harness.training.steps import stochastic_steps
from harness.transitions import KERNELS


@dataclass(frozen=True)
class Probed:
    """Rewards of an untrained model's pictures.

    Attributes:
        rewards: ``[prompts, noises]`` float64, of deterministic samples, by what is trained on.
        groups: ``[prompts, groups, G]`` float64, of siblings as a rollout draws them.
        judged: ``[prompts, noises]`` of the pictures of ``rewards``, by the judges that are no part of it.
    """

    rewards: Tensor
    groups: Tensor
    judged: dict[str, Tensor]


def num_pictures(config: RunConfig, num_prompts: int, num_noises: int) -> int:
    """How many pictures ``probe`` draws."""
    rollout = config.rollout
    groups = 1 if rollout.kind == "full_sde" else len(stochastic_steps(rollout, config.seed, 1, 0))
    return num_prompts * (num_noises + groups * rollout.group_size)


def probe(
    config: RunConfig, prompts: Sequence[str], num_noises: int, device: torch.device, say: Callable[[str], None]
) -> Probed:
    """Draw and score every prompt with several noises, and one rollout of each.

    Args:
        config: the run that would be trained.
        prompts: to draw; not the training list's, which a run would learn from.
        num_noises: deterministic samples per prompt.
        device: where the policy lives.
        say: receives lines of progress.

    Raises:
        ConfigError: the model or a reward is not here or does not fit the prompts.
    """
    try:
        reward, judges = build_rewards(config.reward, config.evaluation.judges, config.rewards, config.runtime.threads)
        for judge in judges:
            judge.check_ready()
            for prompt in prompts:
                judge.check_prompt(prompt)
    except ValueError as error:
        raise ConfigError(f"reward or evaluation.judges: {error}") from None
    policy = load_policy(Checkpoint("base", config), device, prompts)
    rewards: list[Tensor] = []
    judged: dict[str, list[Tensor]] = defaultdict(list)
    for noise_index in range(num_noises):
        images = sample_images(policy, prompts, noise_index)
        rewards.append(start_scoring(reward, lambda part: part, images, prompts, len(prompts)).wait().total)
        for judge in judges[1:]:
            judged[judge.name].append(judge.score(images, prompts).double())
        say(f"noise {noise_index + 1} of {num_noises}: mean reward {rewards[-1].mean():.3f}")
    groups = torch.stack([_groups(config, policy, reward, prompt) for prompt in prompts])
    say(f"{groups.shape[0] * groups.shape[1]} groups of {groups.shape[2]}: mean reward {groups.mean():.3f}")
    return Probed(torch.stack(rewards, 1), groups, {name: torch.stack(of, 1) for name, of in judged.items()})


@torch.no_grad()
def _groups(config: RunConfig, policy: Policy, reward: Reward, prompt: str) -> Tensor:
    """Rewards ``[groups, G]`` of one rollout of a prompt, drawn as in training."""
    rollout, text = config.rollout, policy.encode([prompt])
    kernel = KERNELS[config.method.kernel](eta=config.method.eta)
    sigmas, velocity = policy.sigmas(config.model.num_steps), in_batches(policy.velocity, config.model.max_batch)
    indices = stochastic_steps(rollout, config.seed, 1, 0)
    generator = generator_for(config.seed, "probe", prompt)
    noise = torch.stack([policy.noise(generator, rollout.group_size) for _ in indices])
    with policy.sampling():
        if rollout.kind == "full_sde":
            count = 1 if rollout.shared_noise else rollout.group_size
            start = policy.noise(generator, count).expand_as(noise[0])
            drawn = full_sde(velocity, kernel, start, text, sigmas, indices, noise)
        else:
            anchor = ode_trajectory(velocity, policy.noise(generator), text, sigmas)
            drawn = anchor_branch(velocity, kernel, anchor, text, sigmas, indices, noise)
    prompts = [prompt] * len(drawn.finals)
    scores = start_scoring(reward, policy.decode, drawn.finals, prompts, config.model.max_batch).wait()
    return scores.grouped(rollout.group_size).total
