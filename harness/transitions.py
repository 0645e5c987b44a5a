"""Stochastic steps of the three base methods: how they draw the next latents, and the log-probability of a draw.

Convention: sigma falls from 1 (noise) to 0 (data); x = (1 - sigma) x0 + sigma eps; the network predicts the velocity
v = eps - x0. A step goes from sigma to s' = sigma_next < sigma; d = s' - sigma < 0, and::

    x0_hat = x - sigma v          eps_hat = x + (1 - sigma) v

``FlowSDE(eta=0.7).step(x, velocity, sigma, sigma_next)`` returns a `Transition`: draw with ``.sample()``, keep the
draw, and pass it to ``.log_prob()`` of the same step computed with gradient. Siblings of a branch share x and
velocity: expand both to ``[G, ...]`` after one forward of the network.

All arithmetic is float32, whatever the network's precision. If a draw is to be stored in lower precision, round it
before computing its log-probability, or the ratio is not 1 at the first update. Neither eta nor a clip range is
comparable between kernels.
"""

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Sigma: TypeAlias = float | Tensor  # a float, a scalar tensor, or one value per sample, [batch]

SIGMA_TOLERANCE = 1e-6
"""A step's sigma within this of 1 is 1: shifting a schedule in float32 errs by a few 1e-7 even at its start."""


@dataclass(frozen=True, eq=False)
class Transition:
    """Gaussian distribution of the next latents, N(mean, std^2), with the log-probability as a method defines it.

    Attributes:
        mean: ``[batch, ...]`` float32, in the latents' unit; carries the gradient of the velocity.
        std: ``[]`` or ``[batch]`` float32, >= 0, in the latents' unit, per dimension.
    """

    mean: Tensor
    std: Tensor

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """Draw the next latents, mean + std * noise.

        The draw is float32, shaped like the mean, and detached, because a policy gradient treats it as a constant: if
        it carried its gradient, its log-probability would not depend on the mean at all.

        Args:
            generator: draws the noise, on its own device; None uses torch's global generator on the mean's device.
            noise: standard normal, shaped like the mean, in place of a generator; ValueError for both or another shape.
        """
        if noise is None:
            device = self.mean.device if generator is None else generator.device
            noise = torch.randn(self.mean.shape, generator=generator, device=device)
        elif generator is not None:
            raise ValueError("give sample() a generator or the noise, not both")
        self._check_shape(noise)
        return (self.mean + _over_latents(self.std, self.mean) * noise.to(self.mean)).detach()

    def log_prob(self, x_next: Tensor) -> Tensor:
        """Log-probability of the next latents, as the method defines it: ``[batch]``, a mean over latent dimensions.

        Raises ValueError if `x_next` is not shaped like the mean, or for a Gaussian density of a step with std 0.
        """
        raise NotImplementedError

    def kl(self, other: "Transition") -> Tensor:
        """KL divergence from the same step of a reference model, as the method defines it: ``[batch]``, >= 0.

        Raises ValueError if `other` is of another type or shape.
        """
        raise NotImplementedError

    def _squared_error(self, x_next: Tensor) -> Tensor:
        self._check_shape(x_next)
        return (x_next.float() - self.mean).square().flatten(1).mean(1)

    def _squared_distance(self, other: "Transition") -> Tensor:
        if type(other) is not type(self):
            raise ValueError(f"kl compares two steps of one method, got {type(self).__name__}, {type(other).__name__}")
        return self._squared_error(other.mean)

    def _check_shape(self, value: Tensor) -> None:
        if value.shape != self.mean.shape:
            raise ValueError(f"expected the shape of the mean {[*self.mean.shape]}, got {[*value.shape]}")


@dataclass(frozen=True, eq=False)
class SDETransition(Transition):
    """Step of `FlowSDE` or `DanceSDE`, whose log-probability is a true Gaussian density.

    log_prob = mean over dims of -(x' - mean)^2 / (2 std^2) - log(std) - log(sqrt(2 pi))
    kl       = mean over dims of (mean - mean_ref)^2 / (2 g^2)

    `diffusion` is g, ``[]`` or ``[batch]``. Because std^2 = g^2 |d|, this kl is |d| times the true divergence per
    dimension. Flow-GRPO's release computes it this way, and its published betas refer to it.
    """

    diffusion: Tensor

    def log_prob(self, x_next: Tensor) -> Tensor:
        if not (self.std > 0).all():
            raise ValueError("a deterministic step (std 0) has no Gaussian log-probability: do not train this step")
        return -self._squared_error(x_next) / (2 * self.std.square()) - self.std.log() - 0.5 * math.log(2 * math.pi)

    def kl(self, other: Transition) -> Tensor:
        return self._squared_distance(other) / (2 * self.diffusion.square())


@dataclass(frozen=True, eq=False)
class CPSTransition(Transition):
    """Step of `FlowCPS`, whose log-probability is no density: the method drops 1 / (2 std^2) and the constants.

    log_prob = mean over dims of -(x' - mean)^2
    kl       = mean over dims of (mean - mean_ref)^2
    Both are finite at the last step (s' = 0, std = 0), but a sample there is the mean, where log_prob has gradient 0.
    """

    def log_prob(self, x_next: Tensor) -> Tensor:
        return -self._squared_error(x_next)

    def kl(self, other: Transition) -> Tensor:
        return self._squared_distance(other)


@dataclass(frozen=True)
class Kernel:
    """Stochastic step of a method. `eta` sets the amount of noise; ValueError if it is outside the kernel's range."""

    eta: float

    def __post_init__(self) -> None:
        if not 0 < self.eta < math.inf:
            raise ValueError(f"eta of {type(self).__name__} must be finite and above 0, got {self.eta}")

    def step(
        self, x: Tensor, velocity: Tensor, sigma: Sigma, sigma_next: Sigma, sigma_fallback: Sigma | None = None
    ) -> Transition:
        """Distribution of the latents at `sigma_next`, given those at `sigma` and the velocity there.

        Args:
            x: latents, ``[batch, ...]``, any floating dtype (converted to float32).
            velocity: the network's prediction of eps - x0, shaped like x.
            sigma: noise level at the start of the step, in (0, 1]: a float, a scalar tensor or ``[batch]``; within
                `SIGMA_TOLERANCE` of 1 it counts as 1.
            sigma_next: noise level at its end, in [0, sigma), of the same types.
            sigma_fallback: the sigma in [0, 1) that replaces sigma = 1 in the g of `FlowSDE`, which is singular there;
                otherwise unused. None means sigma_next, as in the release: the schedule's second sigma on a first step.

        Raises ValueError for a sigma out of range or out of order, and for a wrong shape.
        """
        if x.ndim < 2 or x.shape != velocity.shape:
            raise ValueError(f"x, velocity must have one shape [batch, ...], got {[*x.shape]}, {[*velocity.shape]}")
        sigma = _checked_sigma("sigma", sigma, x)
        sigma = torch.where((sigma - 1).abs() <= SIGMA_TOLERANCE, 1.0, sigma)
        sigma_next = _checked_sigma("sigma_next", sigma_next, x)
        fallback = sigma_next if sigma_fallback is None else _checked_sigma("sigma_fallback", sigma_fallback, x)
        if not ((sigma <= 1) & (sigma > sigma_next) & (sigma_next >= 0)).all():
            raise ValueError(f"a step needs 1 >= sigma > sigma_next >= 0, got {sigma.tolist()}, {sigma_next.tolist()}")
        return self._transition(x.float(), velocity.float(), sigma, sigma_next, fallback)

    def _transition(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor, fallback: Tensor) -> Transition:
        raise NotImplementedError


@dataclass(frozen=True)
class _MarginalPreservingSDE(Kernel):
    """Euler-Maruyama step of the reverse-time SDE with the flow's marginals and a diffusion coefficient g."""

    def _diffusion(self, sigma: Tensor, fallback: Tensor) -> Tensor:
        raise NotImplementedError

    def _transition(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor, fallback: Tensor) -> Transition:
        d = sigma_next - sigma
        g = self._diffusion(sigma, fallback)
        eps_hat = x + _over_latents(1 - sigma, x) * v
        drift = v + _over_latents(g.square() / (2 * sigma), x) * eps_hat
        return SDETransition(mean=x + drift * _over_latents(d, x), std=g * (-d).sqrt(), diffusion=g)


@dataclass(frozen=True)
class FlowSDE(_MarginalPreservingSDE):
    """Kernel of Flow-GRPO (release yifan123/flow_grpo) and of AdaGRPO (release Bujiazi/GRPO-Series). eta > 0.

    mean = x + v d + g^2 / (2 sigma) * eps_hat * d          std = g sqrt(-d)
    g    = eta sqrt(sigma / (1 - sigma~)),  sigma~ = sigma, but sigma_fallback where sigma = 1

    AdaGRPO's release drops the constants of the log-probability, which leaves the ratios unchanged.
    """

    eta: float = 0.7

    def _diffusion(self, sigma: Tensor, fallback: Tensor) -> Tensor:
        regular = torch.where(sigma == 1, fallback, sigma)
        if not ((regular >= 0) & (regular < 1)).all():
            raise ValueError(f"FlowSDE from sigma = 1 needs sigma_fallback in [0, 1), got {fallback.tolist()}")
        return self.eta * (sigma / (1 - regular)).sqrt()


@dataclass(frozen=True)
class DanceSDE(_MarginalPreservingSDE):
    """Kernel of DanceGRPO (release XueZeyue/DanceGRPO). eta > 0.

    mean = x + v d + g^2 / (2 sigma) * eps_hat * d          std = g sqrt(-d)
    g    = eta

    The release has no KL term; `kl` is Flow-GRPO's formula with this g.
    """

    eta: float = 0.3

    def _diffusion(self, sigma: Tensor, fallback: Tensor) -> Tensor:
        return torch.full_like(sigma, self.eta)


@dataclass(frozen=True)
class FlowCPS(Kernel):
    """Coefficient-preserving kernel of Flow-CPS (release IamCreateAI/FlowCPS). 0 < eta <= 1.

    std  = s' sin(eta pi / 2)
    mean = (1 - s') x0_hat + sqrt(s'^2 - std^2) eps_hat
    """

    eta: float = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.eta <= 1:
            raise ValueError(f"eta of FlowCPS must be in (0, 1], got {self.eta}")

    def _transition(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor, fallback: Tensor) -> Transition:
        x0_hat = x - _over_latents(sigma, x) * v
        eps_hat = x + _over_latents(1 - sigma, x) * v
        std = sigma_next * math.sin(self.eta * math.pi / 2)
        # Mathematically this root is s' cos(eta pi / 2); computed as in the release, it agrees in the last digits too.
        eps_coefficient = (sigma_next.square() - std.square()).sqrt()
        mean = _over_latents(1 - sigma_next, x) * x0_hat + _over_latents(eps_coefficient, x) * eps_hat
        return CPSTransition(mean=mean, std=std)


KERNELS: dict[str, type] = {"flow_grpo": FlowSDE, "dance_grpo": DanceSDE, "flow_cps": FlowCPS}
"""Kernel of each base method. Each takes `eta`, whose default is that of the method's release."""


def _checked_sigma(name: str, value: Sigma, x: Tensor) -> Tensor:
    """A sigma as a float32 tensor on x's device, ``[]`` or ``[batch]``."""
    sigma = torch.as_tensor(value, dtype=torch.float32, device=x.device)
    if sigma.ndim > 0 and sigma.shape != x.shape[:1]:
        raise ValueError(f"{name} must be a scalar or [batch] = [{len(x)}], got shape {list(sigma.shape)}")
    return sigma


def _over_latents(coefficient: Tensor, x: Tensor) -> Tensor:
    """Reshape a ``[]`` or ``[batch]`` coefficient so that it broadcasts over ``[batch, ...]`` latents."""
    return coefficient.reshape(-1, *([1] * (x.ndim - 1))) if coefficient.ndim else coefficient
