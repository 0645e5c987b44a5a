"""Flow-GRPO in a trainer of your own, and AdaGRPO in it: the lines marked so, without which the rest runs as well.

A toy flow draws a point for each of 8 prompts. Run: python docs/example_loop.py
"""

import torch

import harness.adagrpo as adagrpo
from harness.transitions import FlowSDE

CANDIDATES, GROUP, STEPS, BRANCHES = 6, 16, 10, (0, 2, 4)
SIGMAS = torch.linspace(1, 0, STEPS + 1).tolist()
PLACES = 2 * torch.view_as_real(torch.polar(torch.ones(8), torch.arange(8) * torch.pi / 4))


def velocity(model, x, sigma, prompts):  # of a flow to N(place of the prompt, 0.4^2), exactly; plus what is learned
    gain = (sigma - (1 - sigma) * 0.16) / ((1 - sigma) ** 2 * 0.16 + sigma**2)
    known = gain * (x - (1 - sigma) * PLACES[prompts]) - PLACES[prompts]
    return known + model(torch.cat((x, torch.full_like(x[:, :1], sigma), torch.eye(8)[prompts]), dim=1))


@torch.no_grad()
def ode(model, x, start, prompts):  # all latents from step `start` to the end, without noise
    path = [x]
    for sigma, sigma_next in zip(SIGMAS[start:-1], SIGMAS[start + 1 :], strict=True):
        path.append(path[-1] + (sigma_next - sigma) * velocity(model, path[-1], sigma, prompts))
    return path


def score(points, prompts):  # at most 0; only this tells the model that the points should be farther out
    return -(points - 1.4 * PLACES[prompts]).norm(dim=1)


def train(iterations=120, seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(11, 64), torch.nn.SiLU(), torch.nn.Linear(64, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    kernel = FlowSDE(eta=0.7)
    tracker = adagrpo.CapabilityTracker(decay=0.8)  # AdaGRPO
    held_out, everyone, history = torch.randn(256, 2), torch.arange(256) % 8, []
    for iteration in range(iterations):
        prompts, chosen = torch.randint(8, (CANDIDATES,)), 0  # any of them: they are drawn at random
        path = ode(model, torch.randn(CANDIDATES, 2), 0, prompts)  # plain: the chosen one's is enough
        candidate_rewards = score(path[-1], prompts)  # AdaGRPO
        tracker.update(candidate_rewards)  # AdaGRPO
        chosen = adagrpo.select_prompt(candidate_rewards, "curriculum", tracker)  # AdaGRPO
        for i in BRANCHES:  # one forward and backward of the network for a whole group
            x, prompt, siblings = path[i][[chosen]], prompts[[chosen]], prompts[[chosen] * GROUP]
            v = velocity(model, x, SIGMAS[i], prompt)
            transition = kernel.step(x.expand(GROUP, 2), v.expand(GROUP, 2), SIGMAS[i], SIGMAS[i + 1], SIGMAS[1])
            x_next = transition.sample()
            rewards = score(ode(model, x_next, i + 1, siblings)[-1], siblings)
            advantages = adagrpo.local_advantage(rewards)
            level = adagrpo.global_advantage(rewards, tracker.mean, tracker.std)  # AdaGRPO
            advantages = adagrpo.fuse_advantages(advantages, level)  # AdaGRPO
            log_prob = transition.log_prob(x_next)  # the ratio is 1, with the gradient of the log-probability
            (-(advantages * (log_prob - log_prob.detach()).exp()).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if iteration % 20 == 0 or iteration == iterations - 1:
            history.append(score(ode(model, held_out, 0, everyone)[-1], everyone).mean().item())
    return history


if __name__ == "__main__":
    print("held-out reward:", *(f"{reward:.3f}" for reward in train()))
