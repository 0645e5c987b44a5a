"""The study's protocol speaks of cells that its grid files have, with as many seeds as it counts on."""

from collections import defaultdict
from pathlib import Path

from analysis.cells.labels import Cell
from analysis.cells.variants import name_variants
from analysis.verdicts.planned import FAMILIES
from harness.config import EXPERIMENTS, numeric_settings
from harness.experiments.study import read_study

STUDY = EXPERIMENTS / "study" / "all.yaml"


def test_every_claim_has_its_cells_and_seeds() -> None:
    study = read_study(Path(STUDY))
    configs = [config for name in study.names for config in study.configs(name)]
    dumps = [config.model_dump(mode="json") for config in configs]
    variants = name_variants(dumps, [{"settings": numeric_settings(config)} for config in configs])
    seeds: dict[tuple[str, Cell], set[int]] = defaultdict(set)
    for config, variant in zip(configs, variants, strict=True):
        weight = config.fusion.weight if config.fusion.enabled else 0.0
        cell = Cell(config.method.kernel, config.selection, config.fusion.enabled, weight, variant)
        seeds[config.experiment, cell].add(config.seed)
    claimed = set()
    for family in FAMILIES:
        for claim, pairs in family.claims:
            sides = [family.experiment, *claim.comparisons[0]]
            shared = [seeds[family.experiment, side.cell(claim.methods[0])] for side in claim.comparisons[0]]
            assert len(set.intersection(*shared)) == pairs, sides
            claimed |= {(family.experiment, side.cell(claim.methods[0])) for side in claim.comparisons[0]}
    assert claimed == set(seeds)
