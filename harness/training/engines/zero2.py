"""DeepSpeed's ZeRO stage 2: every process holds all weights, but a share of gradients and of the optimiser's state.

AdaGRPO's release trains so. Under accelerate DeepSpeed takes an optimiser step with every backward pass, which makes
each part of a loss an update of its own. Here accelerate is told which backward pass is the last of an update, so that
``updates_per_iteration`` means what it means everywhere.

DeepSpeed is no dependency of this project. Where it is not installed, tests execute ``update`` with a stand-in, and the
rest of this module is not executed; docs/processes.md says what was executed with it, on a CPU.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from accelerate.utils.deepspeed import DeepSpeedEngineWrapper
from torch import Tensor

from harness.config import ConfigError, OptimizerConfig
from harness.experiments.jobs.command import require_deepspeed
from harness.models.pipelines.policy import Policy
from harness.training.engines.base import Engine, flat
from harness.training.engines.optimiser import build_optimizer
from harness.training.processes import Processes

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Zero2(Engine):
    """DeepSpeed averages, clips and steps. Its state is saved whole, so that any engine can go on with it."""

    exchanges_backward: ClassVar[bool] = True

    def __init__(self, policy: Policy, settings: OptimizerConfig, processes: Processes) -> None:
        parameters = policy.trainable()
        super().__init__(parameters, build_optimizer(parameters, settings), settings, processes)
        self._wrapped = DeepSpeedEngineWrapper(initialize(policy.transformer, self.optimizer, settings, processes))
        self._incoming: dict[str, Tensor] = {}

    def update(self, losses: Sequence[Callable[[], Tensor]]) -> float:
        """See ``Engine``. DeepSpeed has taken the step, however the norm turns out."""
        before = self._wrapped.engine.global_steps
        for number, loss in enumerate(losses, start=1):
            self._wrapped.backward(loss(), sync_gradients=number == len(losses))
        steps = self._wrapped.engine.global_steps - before
        if steps != 1:
            raise RuntimeError(f"DeepSpeed took {steps} optimiser steps in one update; this version of it is not known")
        return float(self._wrapped.get_global_grad_norm())

    def _clip(self, gradients: Sequence[Tensor]) -> float:
        raise NotImplementedError("DeepSpeed clips by itself")

    # --- state: DeepSpeed keeps the moments in flat pieces, of which each process has one ---

    def state_dict(self) -> dict[str, Any]:
        """See ``Engine``. Whole; the moments are complete in the main process alone."""
        from deepspeed.utils import safe_get_full_optimizer_state

        moments: dict[int, dict[str, Tensor]] = {}
        if step := self._step():
            for index, parameter in enumerate(self.parameters.values()):
                whole = {key: safe_get_full_optimizer_state(parameter, key) for key in _MOMENTS}
                if self.processes.is_main:
                    moments[index] = {"step": torch.tensor(step), **{key: t.cpu() for key, t in whole.items()}}
        return {
            "parameters": {name: p.detach() for name, p in self.parameters.items()},
            "averages": self.averages,
            "optimizer": {"state": moments},
        }

    def tensors(self) -> dict[str, Tensor]:
        """See ``Engine``. The moments go through main memory."""
        self._incoming = {
            f"optimizer/state/{index}/{key}": torch.tensor(0.0) if key == "step" else torch.zeros(parameter.shape)
            for index, parameter in enumerate(self.parameters.values())
            for key in ("step", *_MOMENTS)
        }
        weights = {name: p.detach() for name, p in self.parameters.items()}
        return flat({"parameters": weights, "averages": self.averages}) | self._incoming

    def loaded(self) -> None:
        """Hand what was loaded to DeepSpeed, which has copies of the weights too."""
        from deepspeed.utils import safe_set_full_optimizer_state

        deepspeed_optimizer = self._wrapped.engine.optimizer
        deepspeed_optimizer.refresh_fp32_params()
        step = max(self._incoming[f"optimizer/state/{index}/step"] for index in range(len(self.parameters)))
        if step:
            for piece in self._pieces():
                moments = {key: torch.zeros_like(piece) for key in _MOMENTS}
                self.optimizer.state[piece] = {"step": step.clone(), **moments}
            # DeepSpeed has no public way to say that there are moments before the first step.
            deepspeed_optimizer._lazy_init_hp_params_optimizer_state()
            for index, parameter in enumerate(self.parameters.values()):
                for key in _MOMENTS:
                    value = self._incoming[f"optimizer/state/{index}/{key}"].to(parameter.device)
                    safe_set_full_optimizer_state(parameter, value, key)
        self._incoming = {}

    def _pieces(self) -> list[Tensor]:
        return [piece for group in self.optimizer.param_groups for piece in group["params"]]

    def _step(self) -> float:
        """Optimiser steps that the moments are of."""
        return max((float(self.optimizer.state[piece].get("step", 0.0)) for piece in self._pieces()), default=0.0)


def initialize(
    network: torch.nn.Module, optimizer: torch.optim.Optimizer, settings: OptimizerConfig, processes: Processes
) -> Any:
    """DeepSpeed's engine around a network, which stays what it is, and an optimiser, whose groups get flat pieces.

    Raises:
        ConfigError: DeepSpeed is not installed, or accelerate was launched for another kind of it.
    """
    require_deepspeed()
    import deepspeed

    _check_launch(processes.accelerator)
    config = {
        "train_micro_batch_size_per_gpu": 1,  # counts nothing here: what is in a batch is the trainer's affair
        "gradient_accumulation_steps": 1,  # a loss is not to be divided
        "gradient_clipping": settings.max_grad_norm,
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=config, dist_init_required=False)
    return engine


def _check_launch(accelerator: Accelerator) -> None:
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is None:
        return
    zero = plugin.deepspeed_config["zero_optimization"]
    devices = {zero.get(part, {}).get("device", "none") for part in ("offload_optimizer", "offload_param")}
    if zero["stage"] != 2 or devices != {"none"}:
        raise ConfigError(
            "runtime.engine=zero2 is DeepSpeed's stage 2 without offloading, but accelerate was launched for stage "
            f"{zero['stage']}, offloading to {', '.join(sorted(devices))}: launch with adagrpo launch"
        )
