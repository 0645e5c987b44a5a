"""Memory and reading that large models must not cost: measured on layers of real width, and on twins."""

import re
import shlex
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub.cli.hf
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from harness.config import OptimizerConfig
from harness.foundation.errors import TrainingError
from harness.models.pipelines import files, published
from harness.models.pipelines.files import remembered_sha256
from harness.models.pipelines.loading import load_component
from harness.models.pipelines.policy import Policy
from harness.rewards import RewardError
from harness.rewards.files.checkpoints import locate
from harness.training.engine import Engine
from harness.training.processes import Processes

MIB = 2**20


def private_mib() -> float:
    """Memory of this process that no file is behind, in MiB."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1]) / 1024


@contextmanager
def peak() -> Iterator[list[float]]:
    """Within: one number, how far private memory has risen at most since then, in MiB."""
    start, seen, done = private_mib(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            seen[0] = max(seen[0], private_mib() - start)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


class Layers(nn.Module):
    """Eight linear layers of 2048, and how much memory has grown when the last has run."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2048, 2048, bias=False) for _ in range(8))
        self.grown = 0.0

    def forward(self, x: Tensor, return_dict: bool) -> tuple[Tensor]:
        before = private_mib()
        for layer in self.layers:
            x = layer(x)
        self.grown = private_mib() - before
        return (x,)


def test_a_forward_keeps_no_copy_of_float32_weights(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy("flux", tuning="full", precision="bf16")
    policy.transformer = layers = Layers()
    with torch.no_grad():
        policy._forward(x=torch.randn(1, 2048))
    in_bf16 = 2 * sum(p.numel() for p in layers.parameters()) / MIB
    assert layers.grown < 0.5 * in_bf16


def test_what_16_bits_round_away_is_measured_and_gradients_are_gone_after_an_update(
    make_policy: Callable[..., Policy],
) -> None:
    def rounding(precision: str, tuning: str, *rates: float) -> list[dict[str, float]]:
        policy = make_policy("flux", tuning=tuning, precision=precision)
        weights, found = list(policy.trainable().values()), []
        for rate in rates:
            settings = OptimizerConfig.model_validate({"tuning": tuning, "learning_rate": rate, "weight_decay": 0})
            engine = Engine(policy, settings, Processes(Accelerator(cpu=True), 60))
            assert engine.update([lambda: sum((w[..., ::2].sum() for w in weights), torch.zeros(()))])
            assert all(weight.grad is None for weight in weights)
            found.append(engine.rounding)
        return found

    assert rounding("fp32", "full", 1e-3) == [{}]
    assert rounding("bf16", "lora", 1e-3) == [{"tiny_gradients": pytest.approx(0.5, abs=0.2)}]
    little, much = (found["moved_weights"] for found in rounding("bf16", "full", 2e-6, 1e-2))
    assert 0 < little < 0.1
    assert 0.4 < much < 0.6  # those that have a gradient


def test_a_process_whose_weights_differ_by_one_bit_is_noticed(make_policy: Callable[..., Policy]) -> None:
    """What the other process would send is collected here; that they exchange it is seen in test_processes."""
    sums: list[int] = []

    class Pair(Processes):
        def gather_objects(self, one: Any, what: str) -> list[Any]:
            sums.append(one)
            return [*sums]

    policy = make_policy("flux")
    engine = Engine(policy, OptimizerConfig(), Pair(Accelerator(cpu=True), 60))
    for _ in range(2):
        engine.require_alike(1)
    weight = next(iter(engine.parameters.values())).data
    weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(torch.inf))
    with pytest.raises(TrainingError, match="rank 2 are not those of rank 0 at iteration 2"):
        engine.require_alike(2)


def test_weights_are_widened_on_the_device_and_are_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = T5Config(vocab_size=64, d_model=1024, d_kv=64, d_ff=4096, num_layers=2, num_heads=16, dropout_rate=0.0)
    T5EncoderModel(config).bfloat16().save_pretrained(tmp_path / "text_encoder")
    (tmp_path / "model_index.json").write_text('{"text_encoder": ["transformers", "T5EncoderModel"]}')
    with peak() as risen:  # to a device that takes no memory, as a GPU takes none of the machine's
        elsewhere = load_component(tmp_path, "text_encoder", torch.device("meta"), torch.float32)
    in_float32 = 4 * sum(p.numel() for p in elsewhere.parameters()) / MIB
    assert in_float32 > 90
    assert risen[0] < 0.3 * in_float32
    ours = load_component(tmp_path, "text_encoder", torch.device("cpu"), torch.float32).state_dict()
    usual = T5EncoderModel.from_pretrained(tmp_path / "text_encoder", dtype=torch.float32).state_dict()
    assert ours.keys() == usual.keys()
    assert all(ours[name].dtype == torch.float32 and torch.equal(ours[name], usual[name]) for name in usual)


# --- reading


@pytest.fixture
def reads(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files whose sha256 was computed."""
    seen: list[Path] = []
    compute = files.file_sha256
    monkeypatch.setattr(files, "file_sha256", lambda path: seen.append(path) or compute(path))  # type: ignore[func-returns-value]
    return seen


def test_what_the_hub_names_by_its_sha256_is_not_read(tmp_path: Path, reads: list[Path]) -> None:
    blob = tmp_path / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    blob.write_text("weights")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert (remembered_sha256(link), reads) == (blob.name, [])
    small = blob.with_name("0" * 40)  # files in git itself have git's own name
    small.write_text("{}")
    assert remembered_sha256(small) == files.file_sha256(small)


def test_processes_that_start_together_read_a_file_once(tmp_path: Path, reads: list[Path]) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"0" * 30 * MIB)
    with ThreadPoolExecutor(8) as pool:
        digests = set(pool.map(remembered_sha256, [weights] * 8))
    assert (len(digests), len(reads)) == (1, 1)


# --- what to fetch, by the hub's own command


def patterns_of(line: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """What `hf download ...` would ask of the hub: patterns to include and to exclude."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        "huggingface_hub.cli.download.snapshot_download", lambda **given: asked.update(given) or "there"
    )
    monkeypatch.setattr("huggingface_hub.cli.download.hf_hub_download", lambda **given: pytest.fail(str(given)))
    command, *arguments = shlex.split(line)
    assert command == "hf"
    huggingface_hub.cli.hf.app.main(args=arguments, standalone_mode=False)
    return asked["allow_patterns"], asked["ignore_patterns"]


def test_advised_downloads_ask_for_what_is_meant(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RewardError) as error:
        locate("hpsv3", "base", "Qwen/Qwen2-VL-7B-Instruct", weights=False)
    (line,) = re.findall("`(.*)`", str(error.value))
    assert patterns_of(line, monkeypatch) == (["*.json", "*.txt"], None)
    line = published.download_command("black-forest-labs/FLUX.1-dev")
    assert patterns_of(line, monkeypatch) == (list(published.WANTED), list(published.UNWANTED))
