"""Several processes: the same numbers as one, whatever they share out; a run that changes hands; a failure ends all."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate.utils import DistributedType
from diffusers import FluxTransformer2DModel
from torch import Tensor

from harness.config import ROOT, ConfigError, compose
from harness.experiments.jobs import process
from harness.experiments.jobs.command import Placement, worker_command
from harness.experiments.runs import run_all
from harness.foundation.errors import CollectiveError, StopRun
from harness.runs.directory import RunDirectory, prepare_run
from harness.trained.export import export, latest_weights
from harness.training import processes as processes_module
from harness.training.accounting import joined, summary_of_updates
from harness.training.checkpointing import read_weights
from harness.training.processes import Processes, make_accelerator
from harness.training.session import Session
from harness.training.trainer import Trainer
from tests.harness.together import EXCHANGING, predicting_soon, rules_of_every_kind

# Equal up to the last bit only where equal batches go through the network: one term of the loss in a forward, and
# batches of two, into which all counts divide alike.
ALIKE = [
    "model={max_batch: 2, num_steps: 4, execution: {max_train_batch: 1, compile: never}}",
    "rollout={candidates: 2, group_size: 2, prompts_per_iteration: 2, branch_indices: [0, 2]}",
    "reward={ocr: 1}",
    "runtime.device=cpu",
    "logging.wandb=off",
]

REPLICATED = [
    *ALIKE,
    "iterations=3",
    # With a clip range the ratio is not 1 by definition: its largest deviation is another one in each process.
    "objective={updates_per_iteration: 2, update_on: steps, clip_range: 0.1}",
    "optimizer.weight_ema=0.9",
    "selection=bandit",  # reads candidates, capability and ledger
    "choice.floor=0.2",
    "fusion.enabled=true",
    "evaluation={interval: 3, validation_prompts: 4, gallery: 1, judges: [ocr], base_test: false}",
]

# Full fine-tuning of FLUX.1-dev, on its twin.
TWIN = {
    "use_model": "flux-twin",
    "use_method": "adagrpo_flux",
    "experiment": "twin",
    "model": {"height": 32, "width": 64, "max_sequence_length": 64, "execution": {"text_encoders": "free"}},
    "prompts": {split: f"harness/models/miniature/data/{split}.txt" for split in ("train", "validation", "test")},
    "runtime": {"checkpoint_interval": 1},
}

SHARED_OUT = [
    *ALIKE,
    "iterations=3",
    "objective={updates_per_iteration: 2, kl_beta: 0.1}",
    "optimizer={learning_rate: 1e-4, weight_ema: 0.9, max_grad_norm: 0.01}",
    "evaluation={interval: 1, validation_prompts: 3, gallery: 1, judges: [ocr], base_test: false}",
]

# Each sample of a prompt is trained at a step of its own: one prompt's transitions need three forwards, the other's 2.
ADAPTERS = [
    *SHARED_OUT,
    "seed=1",
    "iterations=2",
    "optimizer.lora.merge_while_sampling=true",
    "model.execution.max_train_batch=2",
    "rollout={kind: full_sde, group_size: 4, branch_indices: [0, 1, 2], trained_share: 0.34, trained_draw: sample}",
    "objective={updates_per_iteration: 2, update_on: all, clip_range: 1.0e-3, old_log_prob: recomputed}",
    "optimizer={tuning: lora, lora: {rank: 4, alpha: 8}}",
    "evaluation={interval: 2, test: false}",
]

# A difference in the last bit of a weight turns a pixel here and there from one of 256 levels to the next.
ROUNDING = 1e-3

IN_TWO = ["runtime.processes=2", "runtime.engine=fsdp2"]


def logs(run: RunDirectory) -> list[dict[str, Any]]:
    lines = [json.loads(line) for name in ("metrics.jsonl", "eval.jsonl") for line in (run.folder / name).open()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def difference(ours: Any, theirs: Any) -> float:
    """The largest one between numbers of two structures, equal in all else; relative between large ones."""
    if isinstance(ours, Tensor):
        return float((ours - theirs).detach().abs().max())
    if isinstance(ours, Mapping):
        assert ours.keys() == theirs.keys()
        return max((difference(value, theirs[key]) for key, value in ours.items()), default=0.0)
    if isinstance(ours, list):
        return max((difference(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)
    if isinstance(ours, float):
        return abs(ours - theirs) / max(1.0, abs(theirs))
    assert ours == theirs
    return 0.0


def state(run: RunDirectory) -> dict[str, Any]:
    loaded = run.load_checkpoint()
    assert loaded is not None
    return loaded


def weights(run: RunDirectory) -> dict[str, Tensor]:
    read = read_weights(run)
    assert read is not None
    return read


class Runs:
    """Runs in one process, and what two processes made of the same runs."""

    def __init__(self, folder: Path) -> None:
        test = (ROOT / "harness/models/miniature/data/test.txt").read_text().splitlines()[:4]
        (folder / "test.txt").write_text("\n".join(test) + "\n")
        self.folder = folder
        self.twin = folder / "twin.yaml"
        self.twin.write_text(yaml.safe_dump(TWIN))
        self.alone = {
            "replicated": self.prepare("alone", "miniature-luck", *REPLICATED),
            "shared out": self.prepare("alone", str(self.twin), *SHARED_OUT),
            "adapters": self.prepare("alone", str(self.twin), *ADAPTERS),
        }
        for run in self.alone.values():
            with predicting_soon():
                Session(run, say=lambda line: None).execute()
        begin(self.prepare("together", str(self.twin), *SHARED_OUT))
        self.together = {
            "replicated": self.prepare("together", "miniature-luck", *REPLICATED, "runtime.processes=2"),
            "shared out": self.prepare("together", str(self.twin), *SHARED_OUT, *IN_TWO),
            "adapters": self.prepare("together", str(self.twin), *ADAPTERS, *IN_TWO),
        }
        (folder / "replicated.txt").write_text(str(self.together["replicated"].folder))
        self.said: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(process, "worker_command", self._command)
            self.outcome = run_all([self.together["adapters"], self.together["shared out"]], 1, self.said.append)
        assert self.together["replicated"].status()["state"] == "finished", self.said
        self.seen = [json.loads((folder / f"seen-{index}.json").read_text()) for index in range(2)]

    def prepare(self, place: str, profile: str, *overrides: str) -> RunDirectory:
        config = compose(profile, overrides=[*overrides, f"prompts.test={self.folder / 'test.txt'}"])
        return prepare_run(config, self.folder / place)

    def _command(self, placement: Placement, module: str, arguments: list[str]) -> list[str]:
        return worker_command(placement, "tests.harness.together", [str(self.folder), *arguments])


def begin(run: RunDirectory) -> None:
    """The first iteration of a run."""

    def stop(iteration: int, metrics: Mapping[str, float]) -> None:
        if iteration == 1:
            raise StopRun("far enough")

    with pytest.raises(StopRun):
        Session(run, say=lambda line: None, on_validation=stop).execute()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    torch.set_num_threads(1)
    return Runs(tmp_path_factory.mktemp("processes"))


def test_two_processes_of_one_prompt_equal_one_process_of_two(runs: Runs) -> None:
    alone, together = runs.alone["replicated"], runs.together["replicated"]
    assert together.run_id == alone.run_id
    assert len(logs(together)) == 3 + 3  # iterations; validations at 0 and 3, a test at 3
    assert difference(logs(together), logs(alone)) <= 1e-6
    trained = [line for line in logs(together) if "prompts" in line]
    assert all(len(set(line["prompts"])) == 2 for line in trained)  # each process has a prompt of its own
    assert all(line["ratio_max_deviation"] > 0 for line in trained)
    ours, theirs = state(together), state(alone)
    assert len(ours["trackers"]) == 2
    assert ours["trackers"][0] == ours["trackers"][1]
    for kind in ("parameters", "averages", "optimizer"):
        assert difference(ours[kind], theirs[kind]) <= 1e-6
    assert difference(ours["trackers"][0], theirs["trackers"][0]) <= 1e-6
    assert len(ours["ledger"]["outcomes"]) == 6
    assert difference(ours["ledger"], theirs["ledger"]) <= 1e-6


def test_rules_of_every_kind_and_plug_ins_choose_and_train_in_two_processes_as_in_one(runs: Runs) -> None:
    alone = rules_of_every_kind()
    assert alone.keys() == {*EXCHANGING, "plug-ins"}
    assert len({rank for line in alone["plug-ins"] for rank in line["ranks"]}) == 2  # by the generator
    ours, theirs = (seen["rules"] for seen in runs.seen)
    assert difference(ours, json.loads(json.dumps(alone))) <= 1e-6
    assert difference(theirs, ours) == 0


def test_the_second_process_writes_nothing(runs: Runs) -> None:
    main, other = (seen["written"] for seen in runs.seen)
    assert any(path.endswith("metrics.jsonl") for path in main)
    assert other == []


def test_adapters_that_are_shared_out_train_alike_merged_or_not(runs: Runs) -> None:
    alone, together = runs.alone["adapters"], runs.together["adapters"]
    assert alone.config.optimizer.lora.merge_while_sampling
    assert [seen["missing"] for seen in runs.seen] == [0, 2 * (1 + 2)]  # iterations, log-probabilities and updates
    assert difference(logs(together), logs(alone)) <= ROUNDING
    assert difference(weights(together), weights(alone)) <= 1e-6
    names = ("checkpoints", "final", "pytorch_lora_weights.safetensors")
    ours, theirs = (run.folder.joinpath(*names) for run in (together, alone))
    assert ours.stat().st_size == theirs.stat().st_size


def test_a_process_that_comes_late_is_named_by_what_it_is_waited_for(runs: Runs) -> None:
    waiting, late = runs.seen
    wanted = "the other processes have not come within runtime.timeout_seconds=0.5; raise it if they are only slow"
    assert waiting["said"] == [f"gathering rewards at iteration 7: {wanted}"]
    assert waiting["complaint"] == f"exchanging weights or gradients at iteration 8: {wanted}"
    assert late["said"] == []
    assert waiting["gathered"] == late["gathered"] == [0.0, 1.0]


def test_a_failure_in_one_process_ends_all_and_is_the_reason_everywhere(runs: Runs) -> None:
    run, reason = runs.together["shared out"], "rank 1: TrainingError: this is not my day"
    assert [job.id for job in runs.outcome.finished] == [runs.together["adapters"].run_id]
    assert list(runs.outcome.failed) == [run.run_id]
    assert runs.outcome.failed[run.run_id].startswith(reason)
    assert any(line.startswith(f"FAILED {run.run_id}: {reason}") for line in runs.said)
    assert "harness.foundation.errors.TrainingError: this is not my day" in (run.folder / "log.txt").read_text()


def test_a_run_that_changes_hands_equals_one_that_stays_in_one_process(runs: Runs, tmp_path: Path) -> None:
    """The first iteration in one process, the second in two that share the model out, the third in one again."""
    alone, run = runs.alone["shared out"], runs.together["shared out"]
    assert all(seen["is shared out"] for seen in runs.seen)
    saved = state(run)
    assert saved["iteration"] == 2
    assert all(tensor.is_meta for tensor in saved["parameters"].values())
    assert [path.parent.name for path in run.checkpoints.glob("iteration-*/shards")] == ["iteration-0000002"]
    with latest_weights(run.folder) as checkpoint:
        export(checkpoint, tmp_path / "exported", licence="other")
    transformer = FluxTransformer2DModel.from_pretrained(tmp_path / "exported" / "transformer")
    assert difference(dict(transformer.named_parameters()), weights(run)) == 0
    assert "for 2 of 3 iterations" in (tmp_path / "exported" / "README.md").read_text()

    Session(runs.prepare("together", str(runs.twin), *SHARED_OUT), say=lambda line: None).execute()
    assert not (run.checkpoints / "iteration-0000003" / "shards").exists()
    assert difference(state(run)["parameters"], state(alone)["parameters"]) <= 1e-6
    assert difference(state(run)["averages"], state(alone)["averages"]) <= 1e-6
    assert difference(logs(run), logs(alone)) <= ROUNDING


def test_what_updates_log_depends_neither_on_how_many_processes_log_it_nor_on_their_order() -> None:
    """One process has one term of the loss, the other has three."""
    logged = [
        {"loss": [0.1], "ratio_max_deviation": [0.002]},
        {"loss": [0.2, 1e9, -1e9], "ratio_max_deviation": [0.0, 0.005, 0.001]},
    ]

    whole = {name: [*logged[0][name], *logged[1][name]] for name in logged[0]}
    assert joined(logged) == whole
    assert summary_of_updates(joined(logged[::-1])) == summary_of_updates(whole)
    assert summary_of_updates(whole) == {"loss": (0.1 + 0.2) / 4, "ratio_max_deviation": 0.005}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.distributed.DistStoreError("Timed out after 14 seconds"), "have not come within .*=9"),
        (torch.distributed.DistNetworkError("Connection reset by peer"), "another process has failed or was killed"),
    ],
)
def test_processes_that_do_not_join_are_named(
    error: RuntimeError, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def join(**settings: Any) -> None:
        assert settings["kwargs_handlers"][0].timeout.total_seconds() > 9
        raise error

    monkeypatch.setattr(processes_module, "Accelerator", join)
    config = compose("miniature-luck", overrides=["runtime.device=cpu", "runtime.timeout_seconds=9"])
    with pytest.raises(CollectiveError, match=f"^joining the other processes: .*{message}"):
        make_accelerator(config)


def test_processes_that_were_launched_for_another_engine_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = SimpleNamespace(num_processes=1, distributed_type=DistributedType.FSDP)
    monkeypatch.setattr(processes_module, "Accelerator", lambda **settings: launched)
    with pytest.raises(ConfigError, match=r"runtime\.engine=ddp was asked for, but accelerate was launched for fsdp2"):
        make_accelerator(compose("miniature-luck", overrides=["runtime.device=cpu"]))


def test_capabilities_of_each_process_do_not_change_hands() -> None:
    config = compose("miniature-luck", overrides=["capability.sync=per_rank", "selection=curriculum"])
    trainer: Any = SimpleNamespace(config=config, processes=SimpleNamespace(count=1))
    with pytest.raises(ConfigError, match=r"sync=per_rank: 2 processes made the checkpoint, 1 run now"):
        Trainer.load_state_dict(trainer, {"trackers": [{}, {}]})


def test_another_world_size_than_asked_for_is_an_error(runs: Runs) -> None:
    run = runs.prepare("elsewhere", "miniature-luck", *REPLICATED, "runtime.processes=2")
    with pytest.raises(ConfigError, match=r"runtime\.processes=2 was asked for, but 1 are running"):
        Session(run)


def test_memory_that_runs_out_in_an_exchange_is_no_other_process_s_fault() -> None:
    def failing(error: RuntimeError) -> Processes:
        def gather(values: torch.Tensor) -> torch.Tensor:
            raise error

        ours = {"process_index": 0, "num_processes": 2, "is_main_process": True, "device": torch.device("cpu")}
        return Processes(SimpleNamespace(**ours, gather=gather))  # type: ignore[arg-type]

    with pytest.raises(torch.OutOfMemoryError):
        failing(torch.OutOfMemoryError("no memory")).gather(torch.zeros(1), "scores")
    with pytest.raises(CollectiveError, match="scores: another process has failed"):
        failing(RuntimeError("Connection closed by peer")).gather(torch.zeros(1), "scores")
