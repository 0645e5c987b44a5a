"""What a test lets two processes do together, as a worker that the runner starts in place of its own.

``python -m tests.harness.together FOLDER QUEUE CURRENT ...`` runs in each of them. Each leaves in FOLDER what it saw.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

from harness.experiments.jobs import worker
from harness.foundation.errors import CollectiveError, TrainingError
from harness.rules import ledger
from harness.runs.directory import RunDirectory
from harness.training.learner import Learner
from harness.training.processes import Processes
from harness.training.session import Session
from harness.training.trainer import Trainer
from tests.harness.conftest import build_trainer, selecting

UNLUCKY_ITERATION = 3
PLUG_INS = Path(__file__).parents[1] / "data" / "plug_ins.py"
OF_PLUG_INS = {"selection": "Either", "reward": "Contrast", "fusion.kind": "Lifted"}
EXCHANGING = ("random", "curriculum", "screened", "predicted", "beta", "replay", "bandit")
"""Rules that differ in what processes tell each other: nothing, rewards of one sample or two, what to predict from,
counts of a prompt's own, which prompt is taken again, strategies."""
RULE = [
    "rollout={candidates: 2, group_size: 2, prompts_per_iteration: 2, branch_indices: [1]}",
    "model={max_batch: 2, num_steps: 4, execution: {max_train_batch: 1, compile: never}}",
    "choice.explore=0.2",
]


@contextmanager
def predicting_soon() -> Iterator[None]:
    """Within: the ledger predicts, and prompts may be repeated, from the second iteration on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "MIN_OUTCOMES", 2)
        patch.setattr(ledger, "COOLDOWN", 0)
        yield


def rules_of_every_kind() -> dict[str, list[dict[str, Any]]]:
    """What rules, and a plug-in with a reward and advantages that are plug-ins, chose and logged in two iterations of
    two prompts, in however many processes this is one of.
    """
    seen = {}
    own = {rule: ["reward={colour: 1}", *selecting(rule)] for rule in EXCHANGING}
    own["plug-ins"] = [f"{key}={PLUG_INS}:{name}" for key, name in OF_PLUG_INS.items()] + ["fusion.enabled=true"]
    with predicting_soon():
        for rule, settings in own.items():
            trainer = build_trainer(*RULE, *settings)
            lines = [trainer.iterate() for _ in range(2)]
            seen[rule] = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
    return seen


@contextmanager
def writes_noted(folder: Path) -> Iterator[list[str]]:
    """Within: paths under a folder that this process opens for writing, makes, renames or removes."""
    written: list[str] = []
    noting = True

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if not noting or event not in ("open", "os.rename", "os.mkdir", "os.remove"):
            return
        is_writing = event != "open" or (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"))
        if is_writing and str(arguments[0]).startswith(str(folder)):
            written.append(f"{event} {arguments[0]}")

    sys.addaudithook(note)
    try:
        yield written
    finally:
        noting = False


def is_shared_out(trainer: Trainer) -> bool:
    """Whether weights, averages, moments and the reference are, each process having about half of their numbers."""
    engine = trainer.engine
    moments = [state["exp_avg"] for state in engine.optimizer.state.values()]
    reference = trainer.policy.networks[1].parameters()
    for tensors in (engine.parameters.values(), engine.averages.values(), moments, reference):
        whole = [*tensors]
        if not whole or not all(isinstance(tensor, DTensor) for tensor in whole):
            return False
        mine = sum(tensor.to_local().numel() for tensor in whole)
        if not 0.4 < mine / sum(tensor.numel() for tensor in whole) < 0.6:
            return False
    return True


def waits(accelerator: Accelerator) -> dict[str, Any]:
    """What is said of a process that comes too late, and of one that does not come."""
    said: list[str] = []
    processes = Processes(accelerator, 0.5, on_late=lambda error: said.append(str(error)))
    if processes.index == 1:
        time.sleep(1.5)
    with processes.at("iteration 7"):
        gathered = processes.gather(torch.tensor([float(processes.index)]), "gathering rewards")
    # A group of its own, whose exchanges end in failure: the default one would be broken by that.
    group = torch.distributed.new_group(timeout=timedelta(seconds=1), backend="gloo")
    complaint = ""
    if processes.index == 0:
        try:
            with processes.at("iteration 8"):
                torch.distributed.all_reduce(torch.zeros(1), group=group)
        except CollectiveError as error:
            complaint = str(error)
    else:
        time.sleep(2.5)
    accelerator.wait_for_everyone()
    return {"said": said, "gathered": gathered.tolist(), "complaint": complaint}


def main(folder: Path, arguments: list[str]) -> int:
    """A run that needs no sharing out, then those of the queue, of which the second process fails in one."""
    run = RunDirectory(Path((folder / "replicated.txt").read_text()))
    with writes_noted(run.folder) as written, predicting_soon():
        Session(run, say=lambda line: None).execute()
    accelerator = Accelerator(cpu=True)
    seen = {"written": written, **waits(accelerator), "rules": rules_of_every_kind()}
    iterate, missing = Trainer.iterate, Learner._missing
    seen["missing"] = 0

    def counted(self: Learner, *arguments: Any) -> int:
        count = missing(self, *arguments)
        seen["missing"] += count
        return count

    def unlucky(self: Trainer) -> dict[str, Any]:
        if self.iteration + 1 < UNLUCKY_ITERATION or self.config.optimizer.tuning == "lora":
            return iterate(self)
        seen["is shared out"] = is_shared_out(self)
        (folder / f"seen-{accelerator.process_index}.json").write_text(json.dumps(seen))
        if accelerator.process_index == 1:
            raise TrainingError("this is not my day")
        return iterate(self)

    Trainer.iterate, Learner._missing = unlucky, counted  # type: ignore[method-assign]
    return worker.main(arguments)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
