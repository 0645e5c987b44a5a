"""Look-up of rules, advantages and kernels by name: the project's own, or plug-ins, whose results are all checked.

A plug-in is called twice (a kernel only at its first step) and refused unless both results are equal: docs/extend.md.
"""

import operator
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.adagrpo import CapabilityTracker, local_advantage
from harness.foundation.plugins import Plugin, find
from harness.rules.advantages import FUSIONS, Group
from harness.rules.selection import RULES, Candidates, Rule
from harness.transitions import KERNELS, Sigma, Transition
from harness.transitions import Kernel as Kernel


def rule_of(selection: str, source: str | None) -> Rule:
    """Rule of a selection. Here and below ``source`` is the reference of a plug-in, None for the project's own."""
    if source is None:
        return RULES[selection]
    plugin = find(source)
    rule = _callable(plugin)

    def choose(candidates: Candidates) -> int:
        state, count = candidates.generator.get_state(), len(candidates.rewards)

        def once() -> int:
            candidates.generator.set_state(state)
            own = replace(candidates, rewards=candidates.rewards.clone(), capability=copy(candidates.capability))
            chosen = rule(own)
            try:
                return operator.index(chosen)
            except TypeError:
                plugin.refuse(f"must return the index of a candidate, a whole number, and returned {_shown(chosen)}")

        chosen = once()
        if not 0 <= chosen < count:
            plugin.refuse(f"must return an index from 0 to {count - 1}, of {count} candidates, and returned {chosen}")
        if (again := once()) != chosen:
            plugin.refuse(f"returned {chosen}, and {again} when called again with the same candidates and generator")
        return chosen

    return choose


def fusion_of(kind: str, source: str | None) -> Callable[[Group, float], Tensor]:
    """Rule that corrects advantages, by ``fusion.kind``."""
    if source is None:
        return FUSIONS[kind]
    plugin = find(source)
    rule = _callable(plugin)

    def fuse(group: Group, weight: float) -> Tensor:
        own = lambda: replace(group, local=group.local.clone(), rewards=group.rewards.clone())  # noqa: E731
        return _advantages(plugin, lambda: rule(own(), weight), group.rewards)

    return fuse


def local_of(source: str) -> Callable[[Tensor], Tensor]:
    """Function from a group's rewards to local advantages, from a plug-in of ``objective.normalisation``."""
    plugin = find(source)
    rule = _callable(plugin)
    return lambda rewards: _advantages(plugin, lambda: rule(rewards.clone()), rewards)


def kernel_of(kernel: str, source: str | None, eta: float) -> Kernel:
    """Stochastic step by ``method.kernel``."""
    if source is None:
        found: Kernel = KERNELS[kernel](eta=eta)
        return found
    return _Checked(find(source), eta)


def try_out(
    selection: str | None, samples: int, fusion: str | None, local: str | None, kernel: str | None, eta: float
) -> None:
    """Test plug-ins, given by their references, on random inputs before a run is made; None skips one.

    A selection rule that reads the ledger must be skipped, since there is no ledger yet.
    """
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(8, max(samples, 1), generator=generator, dtype=torch.float64)
    capability = CapabilityTracker()
    capability.update(rewards.flatten())
    if selection is not None:
        shown = (rewards, capability) if samples else (torch.zeros(8, 1), CapabilityTracker())
        rule_of("", selection)(Candidates(*shown, generator))
    if fusion is not None:
        group = Group(local_advantage(rewards[:, 0]), rewards[:, 0], capability.mean, capability.std)
        fusion_of("", fusion)(group, 1.0)
    if local is not None:
        local_of(local)(rewards[:, 0])
    if kernel is not None:
        x, velocity = torch.randn(2, 3, 4, 4, 4, generator=generator)
        kernel_of("", kernel, eta).step(x, velocity.requires_grad_(), 0.8, 0.6)


def _callable(plugin: Plugin) -> Callable[..., Any]:
    made = plugin.made()
    if not callable(made):
        plugin.refuse(f"must be a function, or a class whose instances can be called, and is {_shown(made)}")
    return made


def _advantages(plugin: Plugin, call: Callable[[], Any], rewards: Tensor) -> Tensor:
    found, again = call(), call()
    if not isinstance(found, Tensor) or found.shape != rewards.shape or not found.is_floating_point():
        plugin.refuse(f"must return a tensor of {len(rewards)} advantages, [G], and returned {_shown(found)}")
    if not found.isfinite().all():
        plugin.refuse(f"returned advantages that are not finite, {found.tolist()}, of rewards {rewards.tolist()}")
    if not torch.equal(found, again):
        plugin.refuse(f"returned other advantages when called again: {found.tolist()}, then {again.tolist()}")
    return found


class _Checked(Kernel):
    """Kernel of a plug-in, whose steps are checked."""

    def __init__(self, plugin: Plugin, eta: float) -> None:
        self.__dict__ |= {"eta": eta, "_plugin": plugin, "_kernel": plugin.made(eta=eta), "_was_called": False}
        if not isinstance(self._kernel, Kernel):
            plugin.refuse("must be a subclass of harness.transitions.Kernel")

    _plugin: Plugin
    _kernel: Kernel
    _was_called: bool

    def step(
        self, x: Tensor, velocity: Tensor, sigma: Sigma, sigma_next: Sigma, sigma_fallback: Sigma | None = None
    ) -> Transition:
        """Same as ``Kernel.step``, with checks; the first step is computed twice and compared."""
        made = self._kernel.step(x, velocity, sigma, sigma_next, sigma_fallback)
        refuse, mean, std = self._plugin.refuse, made.mean, made.std
        if mean.shape != x.shape:
            refuse(f"the mean of a step must be shaped as x, {[*x.shape]}, and is {[*mean.shape]}")
        if std.shape not in (torch.Size([]), x.shape[:1]):
            refuse(f"the std of a step must be a number or [batch] = [{len(x)}], and is {[*std.shape]}")
        if not (std.isfinite() & (std >= 0)).all():
            refuse(f"the std of a step from sigma {sigma} to {sigma_next} is {std.tolist()}")
        if velocity.isfinite().all() and not mean.isfinite().all():
            refuse(f"the mean of a step from sigma {sigma} to {sigma_next} is not finite, though the velocity is")
        if velocity.requires_grad and not mean.requires_grad:
            refuse("the mean of a step must depend on the velocity, or nothing is learned")
        if not self._was_called:
            self.__dict__["_was_called"] = True
            again = self._kernel.step(x, velocity, sigma, sigma_next, sigma_fallback)
            if not (torch.equal(again.mean, mean) and torch.equal(again.std, std)):
                refuse("gave another step when called again with the same latents")
            log_prob = made.log_prob(mean.detach())
            if log_prob.shape != x.shape[:1] or not log_prob.isfinite().all():
                refuse(f"log_prob must be [batch] = [{len(x)}] finite numbers, and is {_shown(log_prob)}")
        return made


def _shown(value: Any) -> str:
    return f"a tensor {[*value.shape]} of {value.dtype}" if isinstance(value, Tensor) else repr(value)[:100]
