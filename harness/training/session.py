"""Execution of a run from start to end: set-up or resume, iterations, evaluations, checkpoints, logs."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from accelerate.utils import set_seed

from harness.config import depends_on_processes, numeric_settings
from harness.foundation import records
from harness.foundation.errors import CollectiveError, Preempted, SignError, StopRun, TrainingError
from harness.models.miniature.prompts import is_miniature
from harness.models.pipelines.policy import Policy
from harness.models.pipelines.registry import build_policy
from harness.models.pipelines.truncation import ReadsText, truncations
from harness.prompts.lists import drawn_prompts, read_prompts
from harness.rewards import RewardError, build_rewards
from harness.runs import checkpoints
from harness.runs.directory import RunDirectory
from harness.runs.identity import doubts, environment, record_execution, require_unchanged
from harness.training import untrained
from harness.training.checkpointing import load_state, save_state
from harness.training.divergence import dump
from harness.training.evaluation import evaluate, sample_images, save_gallery
from harness.training.mirror import Mirror
from harness.training.observation import Observer
from harness.training.processes import Processes, make_accelerator, print_late
from harness.training.signs import warn
from harness.training.trainer import Trainer

_SAY_EVERY = 5  # iterations

OnValidation = Callable[[int, Mapping[str, float]], None]
"""Callback that receives an iteration and its metrics on validation prompts; may raise StopRun."""


class Session:
    """Executes a prepared run directory, from the start or from its checkpoint.

    Args:
        run: directory of the run.
        say: receives lines of progress, on the main process.
        on_validation: called after each validation, on the main process; a StopRun that it raises ends all processes.
        asked_to_end: returns the signal that asks this process to save and end, or None.

    Raises:
        ConfigError: the run has changed since its directory was made, the world size is not ``runtime.processes``, or
            the model cannot take a prompt.
        RewardError: something that a reward needs is missing.
    """

    def __init__(
        self,
        run: RunDirectory,
        say: Callable[[str], None] = print,
        on_validation: OnValidation = lambda iteration, metrics: None,
        asked_to_end: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.run, self.config = run, run.config
        self.asked_to_end = asked_to_end
        self._saved_at, self._validated = 0, (0, 0.0)
        require_unchanged(run.folder, self.config)
        self.on_validation = on_validation
        runtime = self.config.runtime
        torch.set_num_threads(runtime.threads)
        # Independent of what an earlier run in this process has drawn; numpy's seeds have 32 bits.
        set_seed(self.config.seed % 2**32)
        accelerator = make_accelerator(self.config)
        self.processes = Processes(accelerator, runtime.timeout_seconds, self._note_late)
        self.is_main = self.processes.is_main
        self.say = say if self.is_main else (lambda line: None)
        self.prompts = {s: read_prompts(getattr(self.config.prompts, s)).prompts for s in self.config.prompt_splits}
        policy = build_policy(self.config.model, self.config.optimizer, self.processes.device, seed=self.config.seed)
        for prompts in self.prompts.values():
            policy.check_prompts(prompts)
        if self.config.model.execution.text_encoders == "free":
            self._prepare_text(policy)
        judges = self.config.evaluation.judges
        reward, self.judges = build_rewards(self.config.reward, judges, self.config.rewards, runtime.threads)
        for judge in self.judges:
            judge.check_ready()
        self.warnings = [*self._cut_prompts(policy), *doubts(self.config, self.prompts)] if self.is_main else []
        for line in self.warnings:
            self.say(f"warning: {line}")
        self.trainer = Trainer(self.config, policy, reward, self.prompts["train"], accelerator)
        self.trainer.processes.on_late = self._note_late
        self.processes = self.trainer.processes

    def _note_late(self, error: CollectiveError) -> None:
        print_late(error)
        self.run.note_failure(error)

    def _cut_prompts(self, policy: Policy) -> list[str]:
        """Warnings about prompts of each list that the model's text encoders or the rewards truncate."""
        rewards = {part.name: part for judge in self.judges for part in judge.parts}
        readers: list[ReadsText] = [policy, *rewards.values()]
        lists = self.prompts.items()
        return [line for split, prompts in lists for line in truncations(readers, prompts, f"prompts.{split}")]

    def _prepare_text(self, policy: Policy) -> None:
        """Encode all prompts of the run, a share in each process, and wait until all are on disk.

        Machines need not share the folder of embeddings: each then encodes what only others have on theirs.
        """
        drawn = drawn_prompts(self.prompts["train"], self.config)
        needed = [*drawn, *self.prompts["validation"], *self.prompts.get("test", ())]
        self.say(f"encoding {len(needed)} prompts, but those that are cached")
        for count in dict.fromkeys((self.processes.count, self.processes.count // self.config.runtime.machines)):
            policy.prepare_prompts(needed, self.processes.index % count, count)
            self.processes.wait("encoding prompts")

    def execute(self) -> None:
        """Train to the end, with a validation at each interval and one test after the last iteration.

        Raises:
            StopRun: ``on_validation`` raised it; the checkpoint has everything trained so far.
            Preempted: ``asked_to_end`` returned a signal; the checkpoint has everything trained so far.
            ConfigError: the run is finished but has lost a file, and no checkpoint is saved.
            TrainingError: training cannot go on.
        """
        trainer, config = self.trainer, self.config
        self._resume()
        with Mirror(self.run, config.logging, enabled=self.is_main) as mirror:
            try:
                self._train(mirror)
            except Preempted as asked:  # saved before the mirror is left, which may take longer than there is
                self._save("preempted", f"{asked}, saved at iteration {trainer.iteration}")
                raise Preempted(
                    f"{self.run.folder}: {asked}, saved at iteration {trainer.iteration} of {config.iterations}; the "
                    "same command goes on there"
                ) from None
        with self.processes.at("the end of training"), trainer.engine.averaged_weights():
            weights = trainer.engine.whole_weights()
            if self.is_main:
                trainer.policy.save(self.run.folder / records.FINAL, weights)
                if gaps := records.gaps_of(self.run.folder, config.model_dump(), config.iterations):
                    raise TrainingError(f"{self.run.folder}: has been trained, but {'; '.join(gaps)}")
                self.run.set_status("finished", trainer.iteration, config.iterations)
                self.run.remove_unneeded()

    def _train(self, mirror: Mirror) -> None:
        trainer, config = self.trainer, self.config
        if trainer.iteration == 0:
            self._validate(mirror)
            if config.evaluation.base_test:
                self._evaluate("test", mirror)
        else:
            self._evaluate_due(mirror, self._on_record())
        began, first = time.monotonic(), trainer.iteration
        while trainer.iteration < config.iterations:
            reward = self._iterate(mirror)["reward_mean"]
            if trainer.iteration % _SAY_EVERY == 0 or trainer.iteration == config.iterations:
                each = (time.monotonic() - began) / (trainer.iteration - first)
                self.say(
                    f"{trainer.iteration}/{config.iterations}  reward {reward:.3f}  {each:.2f} s per iteration, "
                    f"{each * (config.iterations - trainer.iteration):.0f} s left"
                )

    def _iterate(self, mirror: Mirror) -> dict[str, Any]:
        """Run an iteration, then the evaluations and the checkpoint that are due; returns its metrics.jsonl record."""
        trainer, config = self.trainer, self.config
        iteration, tracker, start = trainer.iteration, trainer.tracker.state_dict(), time.perf_counter()
        has_learnt = False
        try:
            record = trainer.iterate()
            has_learnt = True
            record["seconds"]["iteration"] = time.perf_counter() - start
            if self.is_main:
                self.run.append("metrics.jsonl", record)
                mirror.training(record)
            self._end_if_asked()
            self._evaluate_due(mirror)
        except SignError:
            raise
        except TrainingError as error:
            path = dump(self.run.folder, trainer, error)
            told = f"{error}; {path} says what it was at"
            if not depends_on_processes(config):
                told += f", adagrpo replay {self.run.folder} {trainer.iteration}  makes it again"
            raise TrainingError(told, error.tensors) from error
        except RewardError as error:
            if error.image is not None:
                self.say(f"{dump(self.run.folder, trainer, error)} says what it was at")
            # Several processes cannot agree on a checkpoint when one of them has failed.
            if self.processes.count == 1:
                if not has_learnt:  # undo an iteration whose scores did not arrive
                    trainer.iteration = iteration
                    trainer.tracker.load_state_dict(tracker)
                self._save("running", str(error))  # a resumed run makes a missing evaluation up
            raise
        # Saved after the evaluations, so that a run resumed from this checkpoint need not repeat them.
        if trainer.iteration == config.iterations or trainer.iteration % config.runtime.checkpoint_interval == 0:
            self._save("running")
        return record

    def _end_if_asked(self) -> None:
        """Raise Preempted in all processes if any of them has been asked to end. Collective."""
        asked = self.asked_to_end()
        if self.processes.count > 1:
            everyone = self.processes.gather_objects(asked, "asking whether to end")
            asked = next(filter(None, everyone), None)
        if asked is not None:
            raise Preempted(f"{asked} received")

    def _seen(self, observer: Observer, images: torch.Tensor) -> None:
        """Hand an evaluation's pictures to the observer; raise Preempted if a lone process was asked to end."""
        observer.add(images)
        if self.processes.count == 1:  # several processes cannot agree in the middle of an evaluation
            self._end_if_asked()

    def _evaluate_due(self, mirror: Mirror, on_record: Collection[str] = ()) -> None:
        """Make the evaluations that are due at the present iteration, except the splits in ``on_record``."""
        iteration, config = self.trainer.iteration, self.config
        last = iteration == config.iterations
        if (last or iteration % config.evaluation.interval == 0) and "validation" not in on_record:
            self._validate(mirror)
        if last and config.evaluation.test and "test" not in on_record:
            self._evaluate("test", mirror)

    def _on_record(self) -> list[str]:
        """Splits that eval.jsonl already has for the present iteration."""
        lines = records.read_lines(self.run.folder / "eval.jsonl") if self.is_main else []
        splits = [line["split"] for line in lines if line["iteration"] == self.trainer.iteration]
        found: list[str] = self.processes.broadcast(splits, "looking for evaluations on record")
        return found

    def _validate(self, mirror: Mirror) -> None:
        metrics = self._evaluate("validation", mirror)
        self._validated = iteration, value = self.trainer.iteration, self.config.trained_reward(metrics)
        if self.is_main and iteration and iteration == self._saved_at:  # an interrupted validation, made up
            checkpoints.note_validation(checkpoints.folder_of(self.run.checkpoints, iteration), value)
        stopped: str | None = None
        if self.is_main:
            try:
                self.on_validation(self.trainer.iteration, metrics)
            except StopRun as stop:
                stopped = str(stop)
        sign = warn(self.run, self.say) if self.is_main else None
        stopped, sign = self.processes.broadcast((stopped, sign), "asking whether to go on")
        if sign is not None:
            self._save("running")
            raise SignError(f"at iteration {self.trainer.iteration} {sign} (stop.on); the same command goes on")
        if stopped is not None:
            self._save("waiting", stopped)
            raise StopRun(stopped)

    def _save(self, state: str, reason: str | None = None) -> None:
        # No checkpoint at iteration 0: a run stopped there begins again, with the evaluations before training.
        iteration, (measured_at, value) = self.trainer.iteration, self._validated
        if iteration and iteration != self._saved_at:
            validation = value if measured_at == iteration else None
            save_state(self.run, self.trainer.state_dict(), self.processes, validation)
            self._saved_at = iteration
        if self.is_main:
            self._set_status(state, reason)

    def _set_status(self, state: str, reason: str | None = None) -> None:
        # Another process may have failed since the last exchange.
        several = self.processes.count > 1
        self.run.set_status(state, self.trainer.iteration, self.config.iterations, reason, keep_failure=several)

    def _resume(self) -> None:
        self.run.require_resumable()
        state = load_state(self.run, self.trainer.engine, self.processes)
        if state is not None:
            self.trainer.load_state_dict(state)
            self._saved_at = self.trainer.iteration
            self.say(f"continuing at iteration {self.trainer.iteration}")
        # No process may append to the logs before the main process has cut them back to the checkpoint.
        if self.is_main:
            self.run.forget_after(self.trainer.iteration if state else -1)
            found = {"settings": numeric_settings(self.config), "warnings": self.warnings}
            for line in record_execution(self.run.folder, environment() | found):
                self.say(line)
            self._set_status("running")
        self.processes.wait("beginning to train")

    def _evaluate(self, split: str, mirror: Mirror) -> dict[str, float]:
        """Measure every reward on a split, shared among processes; append to eval.jsonl; return means over prompts."""
        began, iteration, settings = time.perf_counter(), self.trainer.iteration, self.config.evaluation
        is_test = split == "test"
        prompts = self.prompts[split] if is_test else self.prompts[split][: settings.validation_prompts]
        with self.processes.at(f"the {split} of iteration {self.trainer.iteration}"):
            per_prompt = self._remembered(split, prompts) if iteration == 0 else self._measure(split, prompts)
            gallery = () if is_test else prompts[: settings.gallery]
            metrics = {metric: sum(values) / len(values) for metric, values in per_prompt.items()}
            if gallery and (self.is_main or self.trainer.engine.keeps_step):
                with self.trainer.engine.averaged_weights():
                    images = sample_images(self.trainer.policy, gallery, noise_index=0, settings=settings)
        if not self.is_main:
            return metrics
        if gallery:
            save_gallery(images, gallery, self.run.folder / "images", f"{split}-{iteration:05d}")
        record = {
            "iteration": iteration,
            "split": split,
            "num_prompts": len(prompts),
            "num_noises": settings.num_noises(split),
            "seconds": time.perf_counter() - began,
            "metrics": metrics,
            "per_prompt": per_prompt,
        }
        self.run.append("eval.jsonl", record)
        mirror.evaluation(record)
        said = {metric: value for metric, value in metrics.items() if not metric.startswith("pictures/")}
        self.say(f"{split} at {iteration}: " + "  ".join(f"{k} {v:.3f}" for k, v in said.items()))
        return metrics

    def _measure(self, split: str, prompts: Sequence[str]) -> dict[str, list[float]]:
        """Value of every reward and picture statistic (``Observer``) for each prompt; the same on every process."""
        index, count, settings = self.processes.index, self.processes.count, self.config.evaluation
        # Some engines need equally many prompts in all processes: an uneven list is filled up from its start.
        mine = [prompts[i % len(prompts)] for i in range(index, -(-len(prompts) // count) * count, count)]
        observer = Observer(mine, is_miniature(prompts))
        with self.trainer.engine.averaged_weights():
            measured = evaluate(
                self.trainer.policy,
                mine,
                self.judges,
                settings.num_noises(split),
                settings,
                partial(self._seen, observer),
            )
        measured |= observer.metrics()
        shares: list[dict[str, list[float]]] = self.processes.gather_objects(measured, f"evaluating on {split} prompts")
        return {
            metric: [round(shares[i % count][metric][i // count], 6) for i in range(len(prompts))]
            for metric in measured
        }

    def _remembered(self, split: str, prompts: Sequence[str]) -> dict[str, list[float]]:
        """``_measure`` for the untrained model, cached in a file that all runs of an experiment share."""
        # Only the main process computes the digest, which may read tens of GB of model files.
        digest = ""
        if self.is_main:
            noises = self.config.evaluation.num_noises(split)
            digest = untrained.digest(self.config, self.judges, split, len(prompts), noises)
        path = self.run.folder.parent / "untrained" / f"{split}-{digest}.json"
        found = untrained.read(path) if self.is_main else None
        measured: dict[str, list[float]] | None = self.processes.broadcast(
            found, "looking for the untrained model's numbers"
        )
        if measured is None:
            measured = self._measure(split, prompts)
            if self.is_main:
                untrained.write(path, measured)
        return measured
