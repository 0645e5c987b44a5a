"""The checks of a GPU, on a CPU with tiny widths, so that only the device is new there."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from markupsafe import escape

from harness import cli
from harness.config import compose
from harness.experiments.doctor.checks import check
from harness.experiments.doctor.speed import read_measured
from harness.experiments.gpu_check import checks, report
from harness.experiments.gpu_check.bench import Bench, Outcome, qwen2_vl
from harness.foundation.errors import ConfigError
from harness.rewards.native.hpsv3 import RewardModel
from harness.runs.directory import prepare_run


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, own_cache: Path) -> Path:
    """Folder of the checks of one network; ``make gpu-check`` runs all of them."""
    folder = tmp_path_factory.mktemp("check")
    bench = Bench(torch.device("cpu"), True, folder / "scratch")
    slow = ("iterations", "HPS-v3", "resume", "24 GB")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            report, "CHECKS", {name: c for name, c in report.CHECKS.items() if not any(word in name for word in slow)}
        )
        assert report.run_checks(bench, folder, lambda line: None)
    return folder


def test_every_check_passes_or_cannot_be_told_on_a_cpu(found: Path) -> None:
    content = json.loads((found / "gpu-check.json").read_text(encoding="utf-8"))
    untold = [result["name"] for result in content["checks"] if result["passed"] is None]
    assert untold == ["memory of a forward", "FSDP2 on two GPUs"]
    assert [content["device"], content["tiny"]] == ["CPU", True]
    page = (found / "index.html").read_text(encoding="utf-8")
    assert all(escape(result["name"]) in page for result in content["checks"])


def test_each_check_of_two_gpus_executes_a_run_of_its_own_and_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def launch(command: list[str], **how: object) -> subprocess.CompletedProcess[str]:
        config = compose("paper-dry", overrides=command[command.index("paper-dry") + 1 :])
        given.append(prepare_run(config, tmp_path / "runs").folder)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(checks.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(checks.subprocess, "run", launch)
    monkeypatch.setattr(checks, "RUNS", tmp_path / "runs")
    bench = Bench(torch.device("cuda"), True, tmp_path / "scratch")
    assert checks.two_processes(bench).passed
    assert checks.two_processes(bench).passed
    assert given[0] != given[1]
    assert not [*(tmp_path / "runs").iterdir()]


def test_hps_v3_is_measured_at_the_published_width() -> None:
    sizes = qwen2_vl(), qwen2_vl(layers=2)
    with torch.device("meta"):
        whole, part = map(RewardModel, sizes)
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (whole, part)]
    assert counts[0] == pytest.approx(7.749e9, rel=1e-4)
    # A block of text has 233 million, one of pictures 20.
    assert counts[0] - counts[1] == pytest.approx(26 * 233.06e6 + 30 * 19.68e6, rel=1e-3)


def test_a_check_that_fails_or_raises_is_told_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(bench: Bench) -> Outcome:
        raise RuntimeError("no <such> kernel")

    checks = {"broken": broken, "wrong": lambda bench: Outcome({"x": 1.0}, False), "right": lambda b: Outcome({}, True)}
    monkeypatch.setattr(report, "CHECKS", checks)
    assert not report.run_checks(Bench(torch.device("cpu"), True, tmp_path), tmp_path, lambda line: None)
    results = json.loads((tmp_path / "gpu-check.json").read_text(encoding="utf-8"))["checks"]
    assert [result["passed"] for result in results] == [False, False, True]
    assert "no &lt;such&gt; kernel" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_the_doctor_takes_measured_figures_and_none_of_tiny_widths(tmp_path: Path, found: Path) -> None:
    measured = tmp_path / "gpu-check.json"
    measured.write_text(json.dumps({"tiny": False, "measured": {"flops": 5e14, "activations": 2.0}}))

    def lines(file: Path | None) -> str:
        return "\n".join(check("paper", measured={} if file is None else read_measured(file)).lines())

    assert "0.0354 s per forward, by 500 measured TFLOP/s" in lines(measured)
    assert "measured" not in lines(None).split("hours")[1].split(";")[0]
    with pytest.raises(ConfigError, match="tiny widths"):
        lines(found / "gpu-check.json")
    with pytest.raises(ConfigError, match="no such file"):
        lines(tmp_path / "none.json")
    measured.write_text("{}")
    with pytest.raises(ConfigError, match="was not written by adagrpo gpu-check"):
        lines(measured)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_gpu_it_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["gpu-check"])
    assert ended.value.code == 2
    assert "--tiny --device cpu" in capsys.readouterr().err
