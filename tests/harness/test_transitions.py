"""The three kernels: the releases' numbers, and a Gaussian whose flow is known exactly.

The Gaussian: data x0 ~ N(M, S^2), so x_sigma ~ N((1 - sigma) M, V) with V = (1 - sigma)^2 S^2 + sigma^2, and the exact
velocity E[eps - x0 | x] = -M + k (x - (1 - sigma) M) with k = (sigma - (1 - sigma) S^2) / V is affine in x. So is each
step's mean, and a chain's mean and variance follow in closed form, without drawing anything.
"""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from harness.transitions import KERNELS, DanceSDE, FlowCPS, FlowSDE, Kernel, SDETransition

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())
ALL_KERNELS = [FlowSDE(), DanceSDE(), FlowCPS()]
SDE_KERNELS = [FlowSDE(), DanceSDE()]
M, S = 1.0, 0.5


def latents(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape or (3, 5, 4), generator=torch.Generator().manual_seed(seed))


# --- The releases' numbers


@pytest.mark.golden
@pytest.mark.parametrize("method", KERNELS)
@pytest.mark.parametrize("case", VECTORS["kernels"])
def test_kernels_equal_the_releases(case: dict[str, Any], method: str) -> None:
    sigmas, index, expected = case["sigmas"], case["index"], case[method]
    x, velocity, x_next = (torch.tensor(case[name]) for name in ("x", "velocity", "x_next"))
    transition = KERNELS[method](case["eta"]).step(x, velocity, sigmas[index], sigmas[index + 1], sigmas[1])
    assert_close(transition.mean, torch.tensor(expected["mean"]), rtol=1e-5, atol=0)
    assert_close(transition.std, torch.tensor(expected["std"]), rtol=1e-5, atol=0)
    assert_close(transition.log_prob(x_next), torch.tensor(expected["log_prob"]), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("kernel", "stds"),
    [
        (FlowSDE(0.7), [0.70, 0.52, 0.37, 0.31]),
        (FlowCPS(0.7), [0.87, 0.83, 0.77, 0.71]),
        (DanceSDE(0.3), [0.044, 0.048, 0.053, 0.059]),
    ],
)
def test_stds_of_the_papers_branch_steps(kernel: Kernel, stds: list[float]) -> None:
    sigmas = shifted_schedule(16, shift=3)
    x = torch.zeros(1, 1)
    for index, std in zip((0, 2, 4, 6), stds, strict=True):
        assert kernel.step(x, x, sigmas[index], sigmas[index + 1]).std.item() == pytest.approx(std, rel=0.012)


# --- Sigmas, shapes and precision


@pytest.mark.parametrize("kernel", ALL_KERNELS)
def test_scalar_and_per_sample_sigmas_agree(kernel: Kernel) -> None:
    x, velocity, x_next = latents(0), latents(1), latents(2)
    sigmas, sigmas_next = torch.tensor([1.0, 0.6, 0.3]), torch.tensor([0.9, 0.5, 0.0])
    batch = kernel.step(x, velocity, sigmas, sigmas_next)
    assert batch.std.shape == (3,)
    for i in range(3):
        one = slice(i, i + 1)
        for single in (
            kernel.step(x[one], velocity[one], float(sigmas[i]), float(sigmas_next[i])),
            kernel.step(x[one], velocity[one], sigmas[i], sigmas_next[i]),
        ):
            assert single.std.shape == ()
            assert_close(batch.mean[one], single.mean)
            assert_close(batch.std[i], single.std)
            assert_close(batch.log_prob(x_next)[one], single.log_prob(x_next[one]))
            assert_close(batch.sample(noise=x_next)[one], single.sample(noise=x_next[one]))


@pytest.mark.parametrize("kernel", ALL_KERNELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_arithmetic_is_float32_whatever_the_input(kernel: Kernel, dtype: torch.dtype) -> None:
    x, velocity, x_next = (latents(seed).to(dtype) for seed in range(3))
    transition = kernel.step(x, velocity, torch.tensor(0.75, dtype=dtype), torch.tensor(0.5, dtype=dtype))
    reference = kernel.step(x.float(), velocity.float(), 0.75, 0.5)
    assert transition.mean.dtype == transition.std.dtype == torch.float32
    assert torch.equal(transition.mean, reference.mean)
    assert torch.equal(transition.log_prob(x_next), reference.log_prob(x_next.float()))
    assert transition.sample(noise=x_next).dtype == torch.float32


# --- Sampling and log-probabilities


@pytest.mark.parametrize("kernel", ALL_KERNELS)
def test_samples_have_the_mean_and_the_std(kernel: Kernel) -> None:
    transition = kernel.step(latents(0, 2, 40_000), latents(1, 2, 40_000), 0.8, 0.6)
    deviation = transition.sample(generator=torch.Generator().manual_seed(0)) - transition.mean
    std = transition.std.item()
    # Six standard errors of a mean, and of a standard deviation, of 80,000 draws.
    assert abs(deviation.mean().item()) < 6 * std / math.sqrt(80_000)
    assert abs(deviation.std().item() - std) < 6 * std / math.sqrt(160_000)


@pytest.mark.parametrize("kernel", SDE_KERNELS)
def test_the_sde_log_probability_is_the_gaussian_density_averaged_over_dims(kernel: Kernel) -> None:
    x_next = latents(2)
    transition = kernel.step(latents(0), latents(1), 0.8, 0.6)
    density = torch.distributions.Normal(transition.mean, transition.std).log_prob(x_next)
    assert_close(transition.log_prob(x_next), density.mean((1, 2)))


def test_log_probability_gradients_by_hand() -> None:
    # With D dims: d logp / d mean = (x' - mean) / (D std^2), and 2 (x' - mean) / D for CPS, whose 1/(2 std^2) is gone.
    for kernel in ALL_KERNELS:
        transition = kernel.step(latents(0), latents(1).requires_grad_(), 0.8, 0.6)
        draw = transition.sample(torch.Generator().manual_seed(0))
        (gradient,) = torch.autograd.grad(transition.log_prob(draw).sum(), transition.mean)
        scale = 2.0 if isinstance(kernel, FlowCPS) else 1 / transition.std.item() ** 2
        assert_close(gradient, scale * (draw - transition.mean).detach() / 20)


def test_kl_of_each_release_by_hand() -> None:
    # From sigma .8 to .6, so d = -.2, x and the reference velocity 0, the policy's velocity 1 in one of two dims:
    # SDE: mean = v d (1 + g^2 (1 - sigma) / (2 sigma)); CPS: mean = -(1 - s') sigma v + s' cos(eta pi/2) (1 - sigma) v
    x, velocity, reference = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)
    for kernel, g_squared in ((FlowSDE(0.7), 0.49 * 0.8 / 0.2), (DanceSDE(0.3), 0.09)):
        difference = -0.2 * (1 + g_squared * 0.2 / 1.6)
        kl = kernel.step(x, velocity, 0.8, 0.6).kl(kernel.step(x, reference, 0.8, 0.6))
        assert kl.tolist() == pytest.approx([difference**2 / 2 / (2 * g_squared)])
    difference = -0.4 * 0.8 + 0.6 * math.cos(0.35 * math.pi) * 0.2
    kl = FlowCPS(0.7).step(x, velocity, 0.8, 0.6).kl(FlowCPS(0.7).step(x, reference, 0.8, 0.6))
    assert kl.tolist() == pytest.approx([difference**2 / 2])


@pytest.mark.parametrize("kernel", SDE_KERNELS)
def test_the_sde_kl_is_the_true_one_per_dimension_times_the_step(kernel: Kernel) -> None:
    sigma, sigma_next = torch.tensor([0.9, 0.7, 0.2]), torch.tensor([0.8, 0.4, 0.0])
    policy = kernel.step(latents(0), latents(1), sigma, sigma_next)
    reference = kernel.step(latents(0), latents(2), sigma, sigma_next)
    std = policy.std.reshape(3, 1, 1)
    true_kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(policy.mean, std), torch.distributions.Normal(reference.mean, std)
    )
    assert_close(policy.kl(reference), (sigma - sigma_next) * true_kl.mean((1, 2)))


# --- A Gaussian whose flow is known exactly


def shifted_schedule(num_steps: int, shift: float = 1.0, start: float = 1.0, stop: float = 0.0) -> list[float]:
    times = [start + (stop - start) * i / num_steps for i in range(num_steps + 1)]
    return [shift * t / (1 + (shift - 1) * t) for t in times]


def marginal_variance(sigma: float) -> float:
    return (1 - sigma) ** 2 * S**2 + sigma**2


def exact_velocity(x: Tensor, sigma: float, data_mean: float = M) -> Tensor:
    k = (sigma - (1 - sigma) * S**2) / marginal_variance(sigma)
    return -data_mean + k * (x - (1 - sigma) * data_mean)


def propagate(
    kernel: Kernel, sigmas: Sequence[float], mean: float, variance: float, data_mean: float = M
) -> tuple[float, float]:
    """Mean and variance at the end of a chain, each step's mean being slope * x + intercept."""
    probe = torch.tensor([[0.0], [1.0]])
    for sigma, sigma_next in itertools.pairwise(sigmas):
        transition = kernel.step(probe, exact_velocity(probe, sigma, data_mean), sigma, sigma_next)
        intercept, at_one = transition.mean.flatten().tolist()
        slope = at_one - intercept
        mean, variance = slope * mean + intercept, slope**2 * variance + transition.std.item() ** 2
    return mean, variance


@pytest.mark.parametrize("kernel", SDE_KERNELS)
@pytest.mark.parametrize("data_mean", [0.0, 1.0, -3.0])
def test_the_marginal_mean_is_kept_exactly_at_any_number_of_steps(kernel: Kernel, data_mean: float) -> None:
    # At the marginal mean the velocity is the straight line's and eps_hat is 0: there is no bias to converge.
    for num_steps in (2, 16):
        end, _ = propagate(kernel, shifted_schedule(num_steps, shift=3), 0.0, 1.0, data_mean)
        assert end == pytest.approx(data_mean, abs=2e-5)


def memory_of_flow_sde(eta: float, start: float, end: float) -> float:
    # int g^2 / (2 V) from start to end, with g^2 = eta^2 sigma / (1 - sigma): by partial fractions
    # sigma / ((1 - sigma) V) = 1 / (1 - sigma) + V' / (2 V).
    variances = marginal_variance(end) / marginal_variance(start)
    return math.sqrt(variances) * (variances**0.25 * math.sqrt((1 - start) / (1 - end))) ** eta**2


def memory_of_dance_sde(eta: float, start: float, end: float) -> float:
    # int 1 / V = arctan(((1 + S^2) sigma - S^2) / S) / S
    integral = [math.atan(((1 + S**2) * sigma - S**2) / S) / S for sigma in (start, end)]
    variances = marginal_variance(end) / marginal_variance(start)
    return math.sqrt(variances) * math.exp(eta**2 / 2 * (integral[1] - integral[0]))


@pytest.mark.parametrize(("kernel", "memory"), [(FlowSDE(), memory_of_flow_sde), (DanceSDE(), memory_of_dance_sde)])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_mean_of_a_displaced_start_converges_at_first_order(
    kernel: Kernel, memory: Callable[[float, float, float], float], shift: float
) -> None:
    """A displacement D from the marginal mean obeys D' = (V' / (2 V) + g^2 / (2 V)) D: solved in closed form."""
    errors = []
    for num_steps in (64, 128):
        sigmas = shifted_schedule(num_steps, shift, start=0.9)
        end, _ = propagate(kernel, sigmas, (1 - sigmas[0]) * M + 1.0, 1.0)
        errors.append(end - M - memory(kernel.eta, sigmas[0], sigmas[-1]))
    assert abs(errors[0]) > 1e-3
    assert 0.4 < errors[1] / errors[0] < 0.6


@pytest.mark.parametrize(
    ("kernel", "start"),
    # FlowSDE's g is singular at sigma = 1 (see the test below), so its chain starts below, from the exact marginal.
    [(FlowSDE(), 0.9), (DanceSDE(), 0.9), (DanceSDE(), 1.0)],
)
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("stop", [0.0, 0.05])
def test_the_marginal_variance_converges_at_first_order(
    kernel: Kernel, start: float, shift: float, stop: float
) -> None:
    """Every step is stochastic, the last one to sigma = 0 too."""
    errors = []
    for num_steps in (64, 128):
        sigmas = shifted_schedule(num_steps, shift, start, stop)
        _, variance = propagate(kernel, sigmas, (1 - sigmas[0]) * M, marginal_variance(sigmas[0]))
        errors.append(variance - marginal_variance(sigmas[-1]))
    assert abs(errors[0]) > 1e-3
    assert 0.4 < errors[1] / errors[0] < 0.6


@pytest.mark.parametrize("eta", [0.3, 0.7])
def test_flow_sdes_first_step_from_pure_noise_errs_at_any_step_size(eta: float) -> None:
    """g^2 |d| is eta^2 there however small the step: the variance falls by (1 - eta^2/2)^2 and grows by eta^2."""
    for step in (1e-2, 1e-3):
        _, variance = propagate(FlowSDE(eta), [1.0, 1 - step], 0.0, 1.0)
        assert variance - marginal_variance(1 - step) == pytest.approx(eta**4 / 4, abs=2 * eta**2 * step + 1e-5)


@pytest.mark.parametrize("eta", [0.1, 0.3, 0.7, 0.95, 1.0])
@pytest.mark.parametrize(("sigma", "sigma_next"), [(1.0, 0.96), (0.6, 0.3), (0.1, 0.0)])
def test_flow_cps_keeps_the_noise_level_exactly(eta: float, sigma: float, sigma_next: float) -> None:
    # x = sigma, v = 1 has x0_hat = 0 and eps_hat = 1; x = 1 - sigma, v = -1 has 1 and 0.
    x, velocity = torch.tensor([[sigma], [1 - sigma]]), torch.tensor([[1.0], [-1.0]])
    transition = FlowCPS(eta).step(x, velocity, sigma, sigma_next)
    eps_coefficient, x0_coefficient = transition.mean.flatten().tolist()
    assert transition.std.item() ** 2 + eps_coefficient**2 == pytest.approx(sigma_next**2, abs=1e-6)
    assert x0_coefficient == pytest.approx(1 - sigma_next, abs=1e-6)


# --- The deterministic step


def test_flow_cps_last_step_is_deterministic_finite_and_teaches_nothing() -> None:
    x, velocity = latents(0), latents(1).requires_grad_()
    transition = FlowCPS().step(x, velocity, 0.3, 0.0)
    assert transition.std.item() == 0.0
    draw = transition.sample()
    assert_close(draw, (x - 0.3 * velocity).detach())
    log_prob = transition.log_prob(draw)
    assert (log_prob == 0).all()
    (gradient,) = torch.autograd.grad(log_prob.sum(), velocity)
    assert (gradient == 0).all()


def test_a_gaussian_of_no_width_has_no_log_probability() -> None:
    still = SDETransition(mean=latents(0), std=torch.tensor([0.1, 0.0, 0.1]), diffusion=torch.ones(3))
    with pytest.raises(ValueError, match="deterministic step"):
        still.log_prob(latents(1))


# --- Errors


@pytest.mark.parametrize("eta", [0.0, -0.1, math.nan, math.inf])
@pytest.mark.parametrize("kernel", KERNELS.values())
def test_an_eta_out_of_range_is_refused(kernel: type, eta: float) -> None:
    with pytest.raises(ValueError, match="eta of"):
        kernel(eta)


@pytest.mark.parametrize("kernel", ALL_KERNELS)
@pytest.mark.parametrize(
    ("sigma", "sigma_next"),
    [(0.5, 0.5), (0.5, 0.6), (0.5, -0.1), (1.1, 0.5), (math.nan, 0.5), (0.5, math.nan), ([0.9, 0.4, 0.9], 0.5)],
)
def test_sigmas_out_of_range_or_order_are_refused(kernel: Kernel, sigma: Any, sigma_next: float) -> None:
    with pytest.raises(ValueError, match="1 >= sigma > sigma_next >= 0"):
        kernel.step(latents(0), latents(1), torch.tensor(sigma), sigma_next)


@pytest.mark.parametrize("kernel", ALL_KERNELS)
def test_wrong_shapes_are_refused(kernel: Kernel) -> None:
    x = latents(0)
    with pytest.raises(ValueError, match="one shape"):
        kernel.step(x, x[:1], 0.8, 0.6)
    with pytest.raises(ValueError, match="one shape"):
        kernel.step(x[0, 0], x[0, 0], 0.8, 0.6)
    with pytest.raises(ValueError, match=r"sigma must be a scalar or \[batch\] = \[3\]"):
        kernel.step(x, x, torch.full((5,), 0.8), 0.6)
    with pytest.raises(ValueError, match="sigma_next must be"):
        kernel.step(x, x, 0.8, torch.full((3, 1), 0.6))
    transition = kernel.step(x, x, 0.8, 0.6)
    for call in (transition.log_prob, lambda noise: transition.sample(noise=noise)):
        with pytest.raises(ValueError, match="shape of the mean"):
            call(x[:1])
    with pytest.raises(ValueError, match="not both"):
        transition.sample(torch.Generator(), x)
    with pytest.raises(ValueError, match="shape of the mean"):
        transition.kl(kernel.step(x[:1], x[:1], 0.8, 0.6))


def test_kl_refuses_another_methods_step() -> None:
    x = latents(0)
    with pytest.raises(ValueError, match="SDETransition, CPSTransition"):
        FlowSDE().step(x, x, 0.8, 0.6).kl(FlowCPS().step(x, x, 0.8, 0.6))


@pytest.mark.parametrize("kernel", ALL_KERNELS)
@pytest.mark.parametrize("beside", [-4.8e-7, -6e-8, 1.2e-7, 4.8e-7])
def test_a_sigma_beside_one_by_rounding_is_one(kernel: Kernel, beside: float) -> None:
    x = latents(0)
    for sigma in (1 + beside, torch.full((len(x),), 1 + beside)):
        step, at_one = kernel.step(x, x, sigma, 0.9), kernel.step(x, x, 1.0, 0.9)
        assert torch.equal(step.mean, at_one.mean)
        assert bool((step.std == at_one.std).all())


def test_the_fallback_replaces_sigma_at_one_only() -> None:
    x = latents(0)
    assert FlowSDE(0.5).step(x, x, 1.0, 0.9, sigma_fallback=0.75).std.item() == pytest.approx(
        0.5 * math.sqrt(1 / 0.25) * math.sqrt(0.1)
    )
    assert (default := FlowSDE(0.5).step(x, x, 1.0, 0.9)).std.item() == pytest.approx(0.5)
    assert torch.equal(FlowSDE(0.5).step(x, x, 1.0, 0.9, 0.9).mean, default.mean)
    # A fallback of 1 is no fallback where it is needed, and nothing to object to elsewhere.
    assert FlowSDE(0.5).step(x, x, 0.8, 0.6, 1.0).std.item() == FlowSDE(0.5).step(x, x, 0.8, 0.6).std.item()
    for fallback in (1.0, 1.5, -0.5, math.nan):
        with pytest.raises(ValueError, match="sigma_fallback"):
            FlowSDE(0.5).step(x, x, 1.0, 0.9, fallback)
    for kernel in (DanceSDE(), FlowCPS()):
        assert torch.equal(kernel.step(x, x, 1.0, 0.9, 0.5).mean, kernel.step(x, x, 1.0, 0.9).mean)
