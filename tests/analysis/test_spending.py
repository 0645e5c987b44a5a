"""What runs spent is counted from their logs."""

import json
from pathlib import Path

from fabricated import WriteRun, study_of

from analysis.cells.logs import load_logs
from analysis.cells.spending import FORWARDS, REWARD_CALLS, SECONDS, spent


def test_spending_is_summed_up_to_each_iteration(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("ours", selection="curriculum", rewards=(0.1, 0.2, 0.3, 0.4))
    table = spent(load_logs(tmp_path / "runs").runs).set_index("iteration")
    # Fabricated iterations: 200 forwards, 10 trained samples, 20 reward calls, as many seconds as their number.
    assert table[FORWARDS].tolist() == [230, 460, 690]
    assert table[REWARD_CALLS].tolist() == [20, 40, 60]
    assert table[SECONDS].tolist() == [1, 3, 6]


def test_seconds_are_averaged_over_runs_of_the_processor_that_made_most(write_run: WriteRun, tmp_path: Path) -> None:
    for seed, processor in enumerate(("slow", "fast", "fast")):
        run = write_run(f"run-{seed}", seed=seed)
        (run / "environment.json").write_text(json.dumps({"processor": processor}))
    study = study_of(tmp_path / "runs")
    assert study.processor == "fast"
    assert set(study.timed(study.summary)["run_id"]) == {"run-1", "run-2"}
