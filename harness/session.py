"""A run from start to end: set-up or resume, iterations, evaluations, checkpoints, logs."""

import time
from collections.abc import Callable, Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from harness.config import ConfigError, RunConfig
from harness.evaluation import evaluate, sample_images, save_gallery
from harness.mirror import Mirror
from harness.models.flux import FluxPolicy
from harness.prompts import read_prompts
from harness.rewards import build_reward, build_weighted
from harness.runs import RunDirectory, environment
from harness.stopping import StopRun
from harness.trainer import Trainer

_SAY_EVERY = 5  # iterations

OnValidation = Callable[[int, Mapping[str, float]], None]
"""Receives an iteration and the metrics measured there on validation prompts; may raise StopRun."""


class Session:
    """Executes a prepared run directory, from the start or from its checkpoint.

    Args:
        run: the run.
        say: receives a line of progress now and then, on the main process.
        on_validation: called after each validation, on the main process. StopRun needs a run of one process: others
            would wait for ever.

    Raises:
        ConfigError: the world size is not the one asked for, or a prompt cannot be drawn by the model.
    """

    def __init__(
        self,
        run: RunDirectory,
        say: Callable[[str], None] = print,
        on_validation: OnValidation = lambda iteration, metrics: None,
    ) -> None:
        self.run, self.config = run, run.config
        self.on_validation = on_validation
        runtime = self.config.runtime
        torch.set_num_threads(runtime.threads)
        self.accelerator = _accelerator(self.config)
        self.is_main = self.accelerator.is_main_process
        self.say = say if self.is_main else (lambda line: None)
        self.prompts = {s: read_prompts(getattr(self.config.prompts, s)).prompts for s in self.config.prompt_splits}
        policy = FluxPolicy(self.config.model, self.config.optimizer, self.accelerator.device, seed=self.config.seed)
        for prompts in self.prompts.values():
            policy.check_prompts(prompts)
        reward = build_weighted(self.config.reward, runtime.threads)
        judges = [build_reward(name, runtime.threads) for name in self.config.evaluation.judges]
        self.judges = [reward, *(judge for judge in judges if judge.name != reward.name)]
        self.trainer = Trainer(self.config, policy, reward, self.prompts["train"], self.accelerator)

    def execute(self) -> None:
        """Train to the end: validation at the interval, and one test when training is over.

        Raises:
            StopRun: ``on_validation`` did; the checkpoint has what was trained so far.
            TrainingError: training cannot go on.
        """
        trainer, config = self.trainer, self.config
        self._resume()
        with Mirror(self.run, config.logging, enabled=self.is_main) as mirror:
            if trainer.iteration == 0:
                self._validate(mirror)
                if config.evaluation.base_test:
                    self._evaluate("test", mirror)
            began, first = time.monotonic(), trainer.iteration
            while trainer.iteration < config.iterations:
                start = time.perf_counter()
                record = trainer.iterate()
                record["seconds"]["iteration"] = time.perf_counter() - start
                if self.is_main:
                    self.run.append("metrics.jsonl", record)
                    mirror.log(record, step=trainer.iteration)
                self._after_iteration(mirror)
                if trainer.iteration % _SAY_EVERY == 0 or trainer.iteration == config.iterations:
                    each = (time.monotonic() - began) / (trainer.iteration - first)
                    self.say(
                        f"{trainer.iteration}/{config.iterations}  reward {record['reward_mean']:.3f}  {each:.2f} s an "
                        f"iteration, {each * (config.iterations - trainer.iteration):.0f} s left"
                    )
        if self.is_main:
            with trainer.averaged_weights():
                trainer.policy.save(self.run.folder / "checkpoints" / "final")
            self.run.set_status("finished", trainer.iteration, config.iterations)

    def _after_iteration(self, mirror: Mirror) -> None:
        trainer, config = self.trainer, self.config
        last = trainer.iteration == config.iterations
        if last or trainer.iteration % config.evaluation.interval == 0:
            self._validate(mirror)
        if last and config.evaluation.test:
            self._evaluate("test", mirror)
        # After the evaluations: a run resumed from this checkpoint need not repeat them.
        if last or trainer.iteration % config.runtime.checkpoint_interval == 0:
            self._save("running")

    def _validate(self, mirror: Mirror) -> None:
        metrics = self._evaluate("validation", mirror)
        if not self.is_main:
            return
        try:
            self.on_validation(self.trainer.iteration, metrics)
        except StopRun as stop:
            self._save("waiting", str(stop))
            raise

    def _save(self, state: str, reason: str | None = None) -> None:
        checkpoint = self.trainer.state_dict()
        if self.is_main:
            # A run stopped before its first iteration begins again, with the evaluations that precede it.
            if self.trainer.iteration:
                self.run.save_checkpoint(checkpoint)
            self.run.set_status(state, self.trainer.iteration, self.config.iterations, reason)

    def _resume(self) -> None:
        state = self.run.load_checkpoint()
        if state is not None:
            self.trainer.load_state_dict(state)
            self.say(f"continuing at iteration {self.trainer.iteration}")
        # Nobody may append before the main process has cut the logs back to the checkpoint.
        if self.is_main:
            self.run.forget_after(self.trainer.iteration if state else -1)
            self.run.write_environment(environment())
            self.run.set_status("running", self.trainer.iteration, self.config.iterations)
        self.accelerator.wait_for_everyone()

    def _evaluate(self, split: str, mirror: Mirror) -> dict[str, float]:
        """Measure every judge on a list, shared among processes, and append it to eval.jsonl; means over prompts."""
        settings, began, iteration = self.config.evaluation, time.perf_counter(), self.trainer.iteration
        policy = self.trainer.policy
        is_test = split == "test"
        prompts = self.prompts[split] if is_test else self.prompts[split][: settings.validation_prompts]
        noises = settings.test_noises if is_test else 1
        gallery = () if is_test else prompts[: settings.gallery]
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        with self.trainer.averaged_weights():
            measured = evaluate(policy, prompts[rank::world], self.judges, noises)
            if gallery and self.is_main:
                images = sample_images(policy, gallery, noise_index=0)
                name = f"{split}-{iteration:05d}"
                save_gallery(images, gallery, self.run.folder / "images", name)
                mirror.image(split, self.run.folder / "images" / f"{name}.png", step=iteration)
        shares: list[dict[str, list[float]]] = gather_object([measured])
        per_prompt = {
            metric: [round(shares[i % world][metric][i // world], 6) for i in range(len(prompts))]
            for metric in measured
        }
        metrics = {metric: sum(values) / len(values) for metric, values in per_prompt.items()}
        if not self.is_main:
            return metrics
        self.run.append(
            "eval.jsonl",
            {
                "iteration": iteration,
                "split": split,
                "num_prompts": len(prompts),
                "num_noises": noises,
                "seconds": time.perf_counter() - began,
                "metrics": metrics,
                "per_prompt": per_prompt,
            },
        )
        mirror.log({f"{split}/{metric}": value for metric, value in metrics.items()}, step=iteration)
        self.say(f"{split} at {iteration}: " + "  ".join(f"{k} {v:.3f}" for k, v in metrics.items()))
        return metrics


def _accelerator(config: RunConfig) -> Accelerator:
    wanted = config.runtime.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("runtime.device=cuda, but no CUDA device is there; use auto or cpu")
    use_cuda = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
    accelerator = Accelerator(cpu=not use_cuda)
    if accelerator.num_processes != config.runtime.processes:
        raise ConfigError(
            f"runtime.processes={config.runtime.processes} was asked for, but {accelerator.num_processes} are running"
        )
    return accelerator
