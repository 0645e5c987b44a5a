"""What runs spent is counted from their logs, and values at equal cost lie on their curves."""

import json
from pathlib import Path

import pytest
from fabricated import WriteRun, study_of

from analysis.cells.equal_cost import equal_cost_pair
from analysis.cells.labels import ADAGRPO as OURS
from analysis.cells.labels import BASE
from analysis.cells.logs import load_logs
from analysis.cells.spending import FORWARDS, REWARD_CALLS, SECONDS, SPENDING_METRICS, spent


def test_spending_is_summed_up_to_each_iteration(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("ours", selection="curriculum", rewards=(0.1, 0.2, 0.3, 0.4))
    table = spent(load_logs(tmp_path / "runs").runs).set_index("iteration")
    # Fabricated iterations: 200 forwards, 10 trained samples, 20 reward calls, as many seconds as their number.
    assert table[FORWARDS].tolist() == [230, 460, 690]
    assert table[REWARD_CALLS].tolist() == [20, 40, 60]
    assert table[SECONDS].tolist() == [1, 3, 6]


def test_the_dearer_cell_is_read_where_it_has_spent_the_cheaper_one_s_total(
    write_run: WriteRun, tmp_path: Path
) -> None:
    for seed in (0, 1):
        write_run(f"base-{seed}", seed=seed, rewards=(0.5, 0.6, 0.7))
        write_run(f"ours-{seed}", seed=seed, rewards=(0.5, 0.7, 0.8 + 0.1 * seed), selection="curriculum", fusion=True)
    study = study_of(tmp_path / "runs", SPENDING_METRICS)
    seeds, pair = equal_cost_pair(study, OURS, BASE, FORWARDS, among=(0, 1, 2))
    assert seeds == [0, 1]
    assert pair.control.tolist() == [0.7, 0.7]
    # The base spends 2 x 130; the other has 230 at .7 and 460 at .8 or .9.
    assert pair.treatment.tolist() == pytest.approx([0.7 + 0.1 * 30 / 230, 0.7 + 0.2 * 30 / 230])
    # Of reward calls both spend as many, so the last values are compared.
    assert equal_cost_pair(study, OURS, BASE, REWARD_CALLS, among=(1,))[1].treatment.tolist() == [0.9]


def test_seconds_are_compared_where_one_processor_made_both_runs(write_run: WriteRun, tmp_path: Path) -> None:
    for seed, processor in ((0, "slow"), (1, "fast"), (2, "fast")):
        base = write_run(f"base-{seed}", seed=seed)
        _made_by(base, "fast")
        _made_by(write_run(f"ours-{seed}", seed=seed, selection="curriculum", fusion=True), processor)
    study = study_of(tmp_path / "runs", SPENDING_METRICS)
    assert equal_cost_pair(study, OURS, BASE, SECONDS, among=(0, 1, 2))[0] == [1, 2]
    assert equal_cost_pair(study, OURS, BASE, FORWARDS, among=(0, 1, 2))[0] == [0, 1, 2]
    # A mean of seconds is over runs of the processor that made most of them.
    assert study.processor == "fast"
    assert set(study.summary["run_id"]) - set(study.timed(study.summary)["run_id"]) == {"ours-0"}


def _made_by(run: Path, processor: str) -> None:
    file = run / "environment.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"processor": processor}))
