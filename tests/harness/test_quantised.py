"""A frozen base in 4 bits and moments in 8, by bitsandbytes, of the extras ``gpu`` and ``dev``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

import harness.runs.directory as directory
from harness.config import ConfigError, compose
from harness.experiments.doctor.sizes import find_architecture, memory
from harness.foundation.records import FINAL
from harness.models.pipelines.locate import find_pipeline
from harness.models.pipelines.policy import Policy
from harness.prompts.lists import generator_for
from harness.runs.directory import prepare_run
from harness.trained.checkpoints import LORA_FILE, find_run_checkpoint
from harness.trained.loading import load_policy
from harness.training.session import Session

MakePolicy = Callable[..., Policy]

TINY = [
    "model.path=twin:flux",
    "model.precision=fp32",
    "model.height=32",
    "model.width=64",
    "model.num_steps=8",
    "model.max_sequence_length=64",
    "iterations=2",
    "rewards.hpsv2.path=twin:hpsv2",
    "rewards.clip.path=twin:clip",
    "rollout.candidates=2",
    "rollout.prompts_per_iteration=1",
    "rollout.group_size=2",
    "rollout.branch_indices=[1, 3]",
    "optimizer.learning_rate=0.01",
    "evaluation.validation_prompts=1",
    "evaluation.gallery=0",
    "evaluation.num_steps=2",
    *(f"prompts.{split}=experiments/prompts/dry/{split}.txt" for split in ("train", "validation", "test")),
    "runtime={device: cpu, processes: 1, engine: ddp, checkpoint_interval: 1, checkpoints_of_finished: keep}",
    "logging.wandb=off",
]


@pytest.fixture(scope="module")
def library() -> Any:
    return pytest.importorskip("bitsandbytes")


def base_of(session: Session) -> dict[str, torch.Tensor]:
    network = session.trainer.policy.transformer
    return {name: p.detach().clone() for name, p in network.named_parameters() if not p.requires_grad}


def test_a_quantised_base_is_small_near_and_frozen(library: Any, make_policy: MakePolicy) -> None:
    exact, small = make_policy("flux"), make_policy("flux", quantise="nf4")
    x, text = exact.noise(generator_for(1), 2), exact.encode(["a boat", "a cat"])
    with torch.no_grad():
        wanted = exact.velocity(x, 0.5, text)
        assert 0 < (small.velocity(x, 0.5, text) - wanted).norm() < 0.3 * wanted.norm()
    layers = [m for m in small.transformer.modules() if isinstance(m, library.nn.Linear4bit)]
    assert len(layers) > 30
    assert all(layer.weight.dtype == torch.uint8 and not layer.weight.requires_grad for layer in layers)
    small.velocity(x, 0.5, text).square().mean().backward()
    gradients = [p.grad for p in small.trainable().values()]
    assert sum(g is not None and bool(g.abs().max() > 0) for g in gradients) >= len(gradients) / 2


def test_a_run_trains_resumes_and_exports(library: Any, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    config = compose("single-gpu-24", overrides=TINY)
    whole, broken = (prepare_run(config, tmp_path / name) for name in ("whole", "broken"))
    session = Session(whole, lambda line: None)
    before = base_of(session)
    session.execute()
    assert before.keys() == base_of(session).keys()
    assert all(torch.equal(now, before[name]) for name, now in base_of(session).items())

    def stop(iteration: int) -> str | None:
        return "SIGTERM" if iteration else None

    first = Session(broken, lambda line: None, asked_to_end=lambda: stop(first.trainer.iteration))
    with pytest.raises(Exception, match="saved at iteration 1"):
        first.execute()
    Session(broken, lambda line: None).execute()
    files = [run.folder / FINAL / LORA_FILE for run in (whole, broken)]
    assert files[0].read_bytes() == files[1].read_bytes()

    policy = load_policy(find_run_checkpoint(whole.folder), torch.device("cpu"), ["a boat"])
    x, text = policy.noise(generator_for(1)), policy.encode(["a boat"])
    pipeline = DiffusionPipeline.from_pretrained(find_pipeline("twin:flux"))
    pipeline.load_lora_weights(files[0].parent)
    with torch.no_grad():
        trained = policy.velocity(x, 0.5, text)
        torch.testing.assert_close(trained, session.trainer.policy.velocity(x, 0.5, text), atol=1e-4, rtol=1e-4)
        policy.transformer = pipeline.transformer
        unquantised = policy.velocity(x, 0.5, text)
        assert (unquantised - trained).norm() < 0.3 * trained.norm()


def test_without_the_library_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"model.quantise=nf4: needs bitsandbytes.*adagrpo\[gpu\]"):
        prepare_run(compose("single-gpu-24", overrides=TINY), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("profile", "override", "expected"),
    [
        ("single-gpu-24", "optimizer.tuning=full", "model.quantise: nf4 is for weights that are frozen"),
        ("paper-lora", "model.quantise=nf4", "cannot be shared out"),
        ("paper-lora", "optimizer.moments=8bit", "cannot be shared out"),
    ],
)
def test_what_cannot_be_quantised_is_one_line(profile: str, override: str, expected: str) -> None:
    overrides = [override, *(["runtime.engine=fsdp2"] if profile == "paper-lora" else [])]
    with pytest.raises(ConfigError, match=expected):
        compose(profile, overrides=overrides)


def test_flux_fits_24_gb_by_the_estimate() -> None:
    config = compose("single-gpu-24")
    architecture = find_architecture(config.model.path, None)
    assert architecture is not None
    assert sum(memory(config, architecture, ("hpsv2", "clip")).values()) * 1.1 < 24 * 0.97 * 2**30
    # 19 + 38 blocks: all but 0.4 billion of the 11.9 billion weights are in their linear layers.
    assert architecture.parameters - architecture.in_linears < 0.5e9
