"""What the tests of the harness share: a cache of their own, policies on the twins, and short finished runs."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from harness.adagrpo import CapabilityTracker
from harness.config import ROOT, ModelConfig, OptimizerConfig, compose
from harness.foundation.records import LOGS
from harness.models.pipelines import policy as policy_module
from harness.models.pipelines.compiled import compile_for_sampling
from harness.models.pipelines.policy import Policy
from harness.models.pipelines.registry import build_policy
from harness.prompts.lists import read_prompts
from harness.rewards import build_weighted
from harness.rewards.native.ocr import OcrReward
from harness.runs.directory import RunDirectory, prepare_run
from harness.training.advantages import Advantages
from harness.training.processes import Processes
from harness.training.scoring import Scores
from harness.training.session import Session
from harness.training.trainer import Trainer

hypothesis.settings.register_profile("harness", max_examples=40, deadline=None)
hypothesis.settings.load_profile("harness")

Serve = Callable[[ThreadingHTTPServer], str]
SHORT = [
    "iterations=1",
    "reward={colour: 1}",
    "rollout.candidates=1",
    "rollout.group_size=2",
    "rollout.branch_indices=[1]",
    "evaluation.judges=[colour]",
    "evaluation.validation_prompts=2",
    "evaluation.gallery=0",
    f"prompts.train={ROOT}/tests/data/few-prompts.txt",  # a run reads every prompt of its list before it begins
]
TARGETS = {
    "flux2-klein": ["attn.to_q", "attn.to_out.0", "ff.linear_in", "attn.to_qkv_mlp_proj"],
    "qwen-image": ["attn.to_q", "attn.add_k_proj", "img_mlp.net.2"],
    "z-image": ["attention.to_q", "attention.to_out.0", "feed_forward.w2"],
}
"""Layers to adapt of twins that have none of the usual names, or others beside them."""


def begin(folder: Path, *overrides: str) -> RunDirectory:
    """A short run of the miniature, prepared in a folder, whose test list has four prompts."""
    lines = (ROOT / "harness/models/miniature/data/test.txt").read_text().splitlines()[:4]
    prompts = folder / "test-prompts.txt"
    folder.mkdir(parents=True, exist_ok=True)
    prompts.write_text("\n".join(lines) + "\n")
    return prepare_run(compose("miniature-luck", overrides=[*SHORT, f"prompts.test={prompts}", *overrides]), folder)


def finish(folder: Path, *overrides: str) -> RunDirectory:
    """A run made by ``begin``, trained to its end."""
    torch.set_num_threads(1)
    run = begin(folder, *overrides)
    Session(run, say=lambda line: None).execute()
    return run


def numbers(run: RunDirectory, *logs: str) -> list[dict[str, Any]]:
    """Records of a run's logs, without the seconds that they took."""
    records = [json.loads(line) for name in logs or LOGS for line in (run.folder / name).open()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


@pytest.fixture(scope="session")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished run of LoRA, alpha twice the rank; not to be written to."""
    return finish(tmp_path_factory.mktemp("lora"), "optimizer.learning_rate=0.02", "evaluation.base_test=true")


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished run of full fine-tuning; not to be written to."""
    return finish(tmp_path_factory.mktemp("full"), "optimizer.tuning=full", "optimizer.learning_rate=1e-3")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Twins, embeddings and fingerprints of tests go to a folder of theirs; that of the user stays as it is."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAGRPO_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def uncompiled() -> Iterator[None]:
    """Nothing is compiled in this process: the numbers are the same up to rounding, and a minute is saved each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy_module, "compile_for_sampling", lambda network, device: network)
        yield


@pytest.fixture
def compiled(uncompiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling is compiled in this test, where settings say so."""
    monkeypatch.setattr(policy_module, "compile_for_sampling", compile_for_sampling)


LEVELS = {"quantile": "0.5", "fixed": "0.3", "anchored": "1", "replay": "0.5"}


def selecting(rule: str) -> list[str]:
    """Settings of a rule, with a level where it needs one."""
    return [f"selection={rule}", *([f"choice.level={LEVELS[rule]}"] if rule in LEVELS else [])]


_POLICIES: dict[str, Policy] = {}
"""Untrained policies by what they are made from; reading one takes much longer than a copy."""


def build_trainer(*overrides: str) -> Trainer:
    """A trainer in this process, of the profile miniature-luck."""
    torch.set_num_threads(1)
    config = compose("miniature-luck", overrides=overrides)
    key = repr((config.model, config.optimizer.tuning, config.optimizer.lora, config.seed))
    if key not in _POLICIES:
        _POLICIES[key] = build_policy(config.model, config.optimizer, torch.device("cpu"), config.seed)
    reward = build_weighted(config.reward, 1, config.rewards)
    prompts = read_prompts(config.prompts.train).prompts
    return Trainer(config, copy.deepcopy(_POLICIES[key]), reward, prompts, Accelerator(cpu=True))


def advantages_of(rewards: Tensor, seen: Sequence[float], *overrides: str) -> Tensor:
    """Advantages of groups ``[groups, G]`` as a configuration says, after the capability has seen some rewards."""
    reward: Any = SimpleNamespace(resolution=OcrReward.resolution)
    tracker = CapabilityTracker()
    tracker.update(torch.tensor(seen, dtype=torch.float64))
    made = Advantages(compose("miniature-luck", overrides=overrides), reward, Processes(Accelerator(cpu=True)))
    return made.of([Scores({}, rewards)], tracker)[0]


@pytest.fixture(scope="session")
def make_policy(own_cache: Path) -> Callable[..., Policy]:
    """Makes policies on twins: pictures of 32 x 64, 32 or 64 tokens of text, 4 steps, adapters of rank 4."""

    def make(name: str, tuning: str = "lora", lora: Mapping[str, object] | None = None, **model: object) -> Policy:
        torch.set_num_threads(1)
        length = 32 if name in ("flux", "sd3") else 64  # a chat's template takes some
        settings = {"height": 32, "width": 64, "num_steps": 4, "max_sequence_length": length} | model
        targets = {"target_modules": TARGETS[name]} if name in TARGETS else {}
        lora = {"rank": 4, "alpha": 8, **targets, **(lora or {})}
        optimizer = OptimizerConfig.model_validate({"tuning": tuning, "lora": lora})
        config = ModelConfig.model_validate({"path": f"twin:{name}", **settings})
        return build_policy(config, optimizer, torch.device("cpu"), seed=0)

    return make


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers, which end with the test; their address."""
    running: list[ThreadingHTTPServer] = []

    def start(server: ThreadingHTTPServer) -> str:
        running.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()
