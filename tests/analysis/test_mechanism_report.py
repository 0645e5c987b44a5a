"""A measurement's tables become statistics, tables in words and figures; made here from gradients that are known."""

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import fabricated
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis import paper
from analysis.figures.fusion import example_panels, sign_panel
from analysis.formats import entry_text
from analysis.gradients import MechanismTableError, read_mechanism_report, write_mechanism_report
from analysis.gradients.effects import FUSED, LOCAL, METRICS, RESCALED, Advantage, Measured, contrasts
from analysis.gradients.signs import corrected_signs, needed_weights, sign_errors, sign_frame
from analysis.gradients.summary import FUSION, PROMPTS
from analysis.gradients.tables import load_mechanism_tables

KINDS = ("unbiased", "local", "global", "rescaling", "capability")
STRATEGIES = ("random", "easiest", "hardest", "medium", "curriculum")
ROUNDS, A_BLOCK, DIMENSIONS, GROUP = 24, 3, 30, 4
NUM_BLOCKS = ROUNDS // A_BLOCK
REFERENCE_COUNTS = [4] * 9 + [2]


class Known:
    """Gradients from which tables are fabricated: a unit a round and strategy, but random and easiest share theirs."""

    def __init__(self, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.direction = generator.standard_normal(DIMENSIONS)
        self.rows: list[dict[str, Any]] = []
        for number in range(ROUNDS):
            for strategies in (("random", "easiest"), ("hardest",), ("medium",), ("curriculum",)):
                gradients = generator.standard_normal((len(KINDS), DIMENSIONS))
                # Curriculum prompts have the more signal.
                gradients += (2.0 if "curriculum" in strategies else 1.0) * self.direction
                anchor = float(generator.uniform())
                rewards = generator.uniform(size=2 * GROUP)
                self.rows.append(
                    {"round": number, "strategies": strategies, "gradients": gradients, "anchor": anchor}
                    | {"rewards": rewards, "difficulty": int(anchor * 5)}
                )
        self.reference = [
            sum(self.direction + generator.standard_normal(DIMENSIONS) for _ in range(count))
            for count in REFERENCE_COUNTS
        ]

    @property
    def mean_reference(self) -> np.ndarray:
        return sum(self.reference) / sum(REFERENCE_COUNTS)

    def of(self, name: str, kind: str) -> np.ndarray:
        """``[n, dimensions]`` gradients of a set."""
        k = KINDS.index(kind)
        return np.stack([row["gradients"][k] for row in self.rows if self.is_in(row, name)])

    @staticmethod
    def is_in(row: dict[str, Any], name: str) -> bool:
        return name in row["strategies"] or name == f"difficulty-{row['difficulty']}"

    def block_sums(self, name: str, kind: str) -> np.ndarray:
        sums = np.zeros((NUM_BLOCKS, DIMENSIONS))
        for row in self.rows:
            if self.is_in(row, name):
                sums[row["round"] // A_BLOCK] += row["gradients"][KINDS.index(kind)]
        return sums

    def write(self, folder: Path, labels: dict[str, int]) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        units, blocks = (pd.concat([make(label) for label in labels]) for make in (self._units, self._blocks))
        units.to_parquet(folder / "units.parquet", index=False)
        blocks.to_parquet(folder / "blocks.parquet", index=False)
        about = {
            "kinds": KINDS,
            "strategies": STRATEGIES,
            "difficulty_edges": [0.2, 0.4, 0.6, 0.8],
            "checkpoints": [{"label": label, "iteration": iteration} for label, iteration in labels.items()],
            "reference_lengths": [float(np.linalg.norm(self.mean_reference))] * len(labels),
            "reference_counts": REFERENCE_COUNTS,
            "reference_prompts": sum(REFERENCE_COUNTS),
            "groups_per_unit": 2,
            "rounds": ROUNDS,
            "parameters": DIMENSIONS,
            "seconds": [{"reference": 30.0, "candidates": 30.0, "groups": 60.0}] * len(labels),
            "config": {"rollout": {"group_size": GROUP}},
        }
        (folder / "about.json").write_text(json.dumps(about))
        return folder

    def _units(self, label: str) -> pd.DataFrame:
        rows = []
        for row in self.rows:
            rewards, mean = row["rewards"].reshape(2, GROUP), 0.5
            local = (rewards - rewards.mean(1, keepdims=True)) / rewards.std(1, ddof=1, keepdims=True)
            above, below = (np.clip(s * (rewards - mean), 0, None).sum(1, keepdims=True) for s in (1, -1))
            two_sided = (above > 0) & (below > 0)
            sides = np.where(rewards > mean, above, below)
            global_ = np.where(two_sided, (rewards - mean) / np.where(sides > 0, sides, 1), local)
            gram = row["gradients"] @ row["gradients"].T
            record = {"checkpoint": label, "block": row["round"] // A_BLOCK, "round": row["round"]}
            record |= {"anchor_reward": row["anchor"], "difficulty": row["difficulty"], "capability_mean": mean}
            record |= {name: name in row["strategies"] for name in STRATEGIES}
            record |= {"rewards": rewards.ravel(), "local": local.ravel(), "global": global_.ravel()}
            with_reference = row["gradients"] @ self.mean_reference
            record |= {f"{kind}|reference": value for kind, value in zip(KINDS, with_reference, strict=True)}
            for a, b in combinations_with_replacement(range(len(KINDS)), 2):
                record[f"{KINDS[a]}|{KINDS[b]}"] = gram[a, b]
            rows.append(record)
        return pd.DataFrame(rows)

    def _blocks(self, label: str) -> pd.DataFrame:
        reference = np.stack(self.reference)
        parts = [within("reference", "reference", "reference", reference, reference)]
        for name in (*STRATEGIES, *(f"difficulty-{number}" for number in range(5))):
            sums = {kind: self.block_sums(name, kind) for kind in KINDS}
            parts += [within(name, a, b, sums[a], sums[b]) for a, b in combinations_with_replacement(KINDS, 2)]
            for kind in KINDS:
                products = sums[kind] @ reference.T
                block, other = np.indices(products.shape).reshape(2, -1)
                parts.append(frame(name, kind, "reference", block, other, products.ravel()))
        return pd.concat(parts).assign(checkpoint=label)


def within(name: str, kind: str, other_kind: str, ours: np.ndarray, theirs: np.ndarray) -> pd.DataFrame:
    products = ours @ theirs.T
    block, other = np.triu_indices(len(ours), k=1)
    return frame(name, kind, other_kind, block, other, ((products + products.T) / 2)[block, other])


def frame(name: str, kind: str, other_kind: str, block: Any, other: Any, value: Any) -> pd.DataFrame:
    content = {"set": name, "kind": kind, "other_kind": other_kind, "block": block, "other_block": other}
    return pd.DataFrame(content | {"value": value})


@pytest.fixture(scope="module")
def known() -> Known:
    return Known()


@pytest.fixture(scope="module")
def folder(known: Known, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A measurement of two checkpoints with its report; not to be written to."""
    folder = known.write(tmp_path_factory.mktemp("mechanism"), {"base": 0, "run-a@80": 80})
    write_mechanism_report(folder)
    return folder


def between_blocks(sums: np.ndarray, others: np.ndarray | None = None) -> float:
    """Sum of products of different blocks."""
    products = sums @ (sums if others is None else others).T
    return float(products.sum() - np.trace(products))


# --- Statistics of known gradients


@pytest.mark.parametrize("advantage", [LOCAL, FUSED[2], RESCALED[2], Advantage("unbiased")])
def test_effects_equal_those_of_the_gradients_themselves(folder: Path, known: Known, advantage: Advantage) -> None:
    parts = {"local": {"local": 1}, "unbiased": {"unbiased": 1}}.get(advantage.name)
    parts = parts or {"local": 1, "global" if advantage.name == "fused" else "rescaling": 5}
    gradients = sum(c * known.of("curriculum", kind) for kind, c in parts.items())
    sums = sum(c * known.block_sums("curriculum", kind) for kind, c in parts.items())
    r = known.mean_reference
    cosine = (gradients @ r / np.linalg.norm(gradients, axis=1) / np.linalg.norm(r)).mean()
    pairs = ROUNDS**2 - NUM_BLOCKS * A_BLOCK**2
    signal = between_blocks(sums) / pairs
    noise = (gradients**2).sum(1).mean() - signal
    theirs = between_blocks(np.stack(known.reference))
    theirs /= sum(REFERENCE_COUNTS) ** 2 - sum(count**2 for count in REFERENCE_COUNTS)
    aligned = (gradients.mean(0) @ r) / math.sqrt(signal * theirs)

    measured = Measured(load_mechanism_tables(folder), "base")
    found = {m: statistic.interval() for m, statistic in measured.metrics("curriculum", advantage).items()}
    # r weighs its blocks by their sizes, which is the mean over all of its gradients.
    assert found["cosine"].estimate == pytest.approx(cosine, rel=1e-5)
    assert found["snr"].estimate == pytest.approx(signal / noise, rel=1e-5)
    assert found["alignment"].estimate == pytest.approx(aligned, rel=1e-5)
    assert all(interval.low < interval.estimate < interval.high for interval in found.values())
    # The same tables give the same numbers, at any time.
    table = pd.read_csv(folder / "effects.csv").query("checkpoint == 'run-a@80' and set == 'curriculum'")
    written = table[(table["advantage"] == advantage.name) & (table["weight"] == advantage.weight)]
    for metric, interval in found.items():
        row = written[written["metric"] == metric][["value", "low", "high"]].to_numpy()[0]
        assert row.tolist() == pytest.approx(list(interval), rel=1e-5)


def test_a_strategy_with_more_signal_is_found_to_be_better(folder: Path) -> None:
    table = pd.read_csv(folder / "comparisons.csv")
    rows = table[(table["question"] == "selection") & (table["metric"] == "snr") & (table["checkpoint"] == "base")]
    low = rows.set_index("treatment")["low"]
    assert low["curriculum, local"] > 0
    assert (low.drop("curriculum, local") <= 0).all()
    # Random and easiest prompts are the same ones here.
    assert rows.set_index("treatment").loc["easiest, local", ["difference", "low", "high"]].tolist() == [0, 0, 0]


def test_prompts_of_a_bin_count_once_and_empty_bins_not_at_all(folder: Path, known: Known) -> None:
    table = pd.read_csv(folder / "effects.csv")
    rows = table[(table["checkpoint"] == "base") & (table["metric"] == "cosine") & (table["advantage"] == "local")]
    updates = rows.set_index("set")["updates"]
    for number in range(5):
        assert updates[f"difficulty-{number}"] == sum(row["difficulty"] == number for row in known.rows)
    assert (updates[list(STRATEGIES)] == ROUNDS).all()


def test_the_comparisons_are_those_of_the_claims() -> None:
    made = list(contrasts(STRATEGIES))
    assert [c.treatment[0] for c in made if c.question == "selection"] == ["easiest", "hardest", "medium", "curriculum"]
    for contrast in made:
        if contrast.question == "kink":
            (strategy, fused), (other, rescaled) = contrast.treatment, contrast.control
            assert (strategy, fused.name, fused.weight) == (other, "fused", rescaled.weight)
            assert rescaled.name == "rescaled"
    for question in ("fusion", "kink"):  # no strategy is left out: a claim on fusion is one on all of them
        asked = [c.treatment for c in made if c.question == question]
        assert asked == [(strategy, fused) for strategy in STRATEGIES for fused in FUSED]
    assert made[-1].treatment == ("curriculum", FUSED[0])


# --- Signs


def test_wrong_signs_of_hand_made_groups() -> None:
    # Capability 2. One group below it, one on both sides; local signs are those of reward - mean.
    rewards = np.array([[0.0, 1.0, 1.5, 1.9], [1.0, 1.6, 2.2, 3.6]])
    local = np.array([[-2.0, -0.2, 0.8, 1.4], [-1.0, -0.4, -0.1, 1.5]])
    global_ = np.array([[-1.0, -0.1, 0.4, 0.7], [-0.7, -0.3, 0.1, 0.9]])
    signs = sign_errors(rewards, local, np.array([2.0, 2.0]))
    assert signs.one_sided.tolist() == [[True] * 4, [False] * 4]
    assert signs.wrong.tolist() == [[False, False, True, True], [False, False, True, False]]
    assert corrected_signs(signs, local, global_, 0.9).sum() == 0
    assert corrected_signs(signs, local, global_, 1.1).tolist() == [[False] * 4, [False, False, True, False]]
    # In a one-sided group global and local agree, so that no weight helps.
    needed = needed_weights(signs, local, global_)
    assert needed[0].tolist() == pytest.approx([math.nan, math.nan, math.inf, math.inf], nan_ok=True)
    assert needed[1, 2] == pytest.approx(1.0)


def test_a_reward_at_the_capability_has_no_wrong_sign() -> None:
    signs = sign_errors(np.array([2.0, 2.0, 3.0]), np.array([-0.6, -0.6, 1.2]), np.array(2.0))
    assert not signs.wrong.any()
    assert signs.one_sided.all()


def test_the_paper_s_examples_need_the_weights_that_are_known_of_them() -> None:
    table = paper.example_groups()
    needed = []
    for _, rows in table.groupby("group", sort=False):
        rewards, local, global_ = (rows[name].to_numpy() for name in ("reward", "local", "global"))
        signs = sign_errors(rewards, local, rows["capability_mean"].to_numpy()[0])
        weights = needed_weights(signs, local, global_)
        needed += weights[np.isfinite(weights)].round(2).tolist()
    assert needed == pytest.approx([5.41, 12.28, 0.96, 2.61], abs=0.01)


def test_shares_of_corrected_signs_count_samples(folder: Path, known: Known) -> None:
    table = sign_frame(load_mechanism_tables(folder)).query("checkpoint == 'base' and set == 'all' and weight == 5")
    wrong = corrected = one_sided = 0
    needed: list[float] = []
    for row in known.rows:
        for rewards in row["rewards"].reshape(2, GROUP):
            is_one_sided = (rewards > 0.5).all() or (rewards < 0.5).all()
            one_sided += is_one_sided
            if is_one_sided:
                continue
            local = (rewards - rewards.mean()) / rewards.std(ddof=1)
            right = rewards - 0.5
            sides = np.where(right > 0, right.clip(0).sum(), (-right).clip(0).sum())
            is_wrong = local * right < 0
            wrong += is_wrong.sum()
            needed += (-local / (right / sides))[is_wrong].tolist()
            corrected += (is_wrong & ((local + 5 * right / sides) * right > 0)).sum()
    of = table.set_index("sides")
    assert 0 < corrected < wrong
    assert of.loc["two-sided", "corrected"] == pytest.approx(corrected / wrong)
    assert of.loc["two-sided", "median_weight"] == pytest.approx(np.median(needed))
    assert of.loc["one-sided", "median_weight"] == math.inf
    assert of.loc["one-sided", "groups"] == one_sided > 0
    assert of.loc["one-sided", ["corrected", "low", "high"]].tolist() == [0, 0, 0]


# --- Report


def test_the_report_has_words_tables_and_figures(folder: Path) -> None:
    text = (folder / "summary.md").read_text()
    assert "24 updates (48 groups of 4) for each strategy at each checkpoint" in text
    assert "- untrained (`base`): 96 different prompts" in text
    assert "- 80 iterations (`run-a@80`)" in text
    assert "- untrained, signal to noise of one update. Better: curriculum, local. No difference seen: 3 of 4." in text
    assert "| 80 iterations, one-sided |" in text
    assert re.search(
        r"- untrained, cosine of one update with the reference\. Highest: rewards .+; lowest: .+ overlap\.", text
    )
    figures = folder / "figures"
    names = {path.stem for path in figures.glob("*.svg")}
    assert names == {"fusion-example-weak", "fusion-example-strong", "mechanism-signs"} | {
        f"mechanism-{name}-{metric}" for name in ("selection", "difficulty", "fusion") for metric in METRICS
    }
    for picture in re.findall(r"\]\((.*?\.svg)\)", text):
        assert (folder / picture).is_file()
    words = [t.strip() for t in ElementTree.parse(figures / "mechanism-difficulty-snr.svg").getroot().itertext()]
    for word in ("below 0.2", "0.2 to 0.4", "from 0.8", "untrained", "80 iterations"):
        assert word in words


def test_a_page_reads_what_the_summary_says(folder: Path) -> None:
    text = (folder / "summary.md").read_text()
    part = read_mechanism_report(folder)
    assert part.opening in text
    assert all(f"- {sentence}\n" in text for sentence in part.checkpoints)
    assert {section.topic for section in part.sections} == {PROMPTS, FUSION}
    for section in part.sections:
        assert all(f"- {sentence}\n" in text for sentence in section.sentences)
        assert all(f"**{table.title}**" in text for table in section.tables)
        assert set(section.figures) <= set(part.drawings)
    first = part.sections[0].tables[0]
    assert f"{first.rows[-1][0]} | {entry_text(first.rows[-1][1][0])} |" in text


def test_a_page_names_a_table_that_is_not_there(tmp_path: Path) -> None:
    folder = fabricated.write_measurement(tmp_path / "measurement")
    (folder / "signs.csv").unlink()
    with pytest.raises(MechanismTableError, match=r"signs\.csv: cannot be read: .*; python -m analysis\.gradients "):
        read_mechanism_report(folder)


def test_example_figure_shows_the_published_rewards() -> None:
    weak, strong = example_panels()
    axes = Figure().subplots()
    weak.draw(axes)
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["local"].get_xdata().tolist() == [11.9472, 12.6452, 13.3292, 13.4154, 13.8508]
    assert "group mean 13.04" in lines
    assert "capability 13.53" in lines
    fused = lines["fused, weight 15"].get_ydata()
    # The two samples between the group's mean and the capability: wrong before, right with weight 15.
    assert (lines["local"].get_ydata()[2:4] > 0).all()
    assert (fused[2:4] < 0).all()
    assert "strong" in strong.title


def test_sign_figure_has_a_line_a_side(folder: Path) -> None:
    signs = sign_frame(load_mechanism_tables(folder)).query("set == 'all'")
    axes = Figure().subplots()
    sign_panel(signs, {"base": "untrained"}).draw(axes)
    by_label = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert (by_label["untrained, one-sided groups"] == 0).all()
    assert (np.diff(by_label["untrained, two-sided groups"]) >= 0).all()
    assert by_label["untrained, two-sided groups"][-1] > 0


def test_a_missing_or_broken_table_is_named(known: Known, tmp_path: Path) -> None:
    with pytest.raises(MechanismTableError, match=r"about\.json: cannot be read"):
        write_mechanism_report(tmp_path)
    known.write(tmp_path, {"base": 0})
    (tmp_path / "units.parquet").write_text("no parquet")
    with pytest.raises(MechanismTableError, match=r"units\.parquet: cannot be read"):
        write_mechanism_report(tmp_path)
