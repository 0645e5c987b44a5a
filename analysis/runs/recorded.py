"""Which files runs were made from, as far as they recorded it: runs of other files are never averaged as seeds."""

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

_NAMES = {"model": "model file", "train": "train list", "validation": "validation list", "test": "test list"}


def name_files(
    kinds: Sequence[Hashable],
    environments: Sequence[Mapping[str, Any]],
    num_prompts: Sequence[Mapping[str, int]],
) -> list[str]:
    """In which files each run differs from most of its kind, as in "test list 3f9a1c"; empty for one that does not.

    What a run did not record, or did not come to measure, is not compared; but a run that recorded its files is never
    taken for one of the same kind that did not.

    Args:
        kinds: of each run: experiment, reward and method, say.
        environments: of the same runs; ``fingerprints`` are those of identity.json, ``numerics_version`` counts too.
        num_prompts: of the same runs, how many prompts were evaluated, by split.
    """
    facts = [_facts(environment, counts) for environment, counts in zip(environments, num_prompts, strict=True)]
    names = [""] * len(facts)
    for kind in dict.fromkeys(kinds):
        members = [i for i, other in enumerate(kinds) if other == kind]
        usual = usual_values([facts[i] for i in members])
        for i in members:
            own = {key: facts[i][key] for key in usual if facts[i].get(key, usual[key]) != usual[key]}
            names[i] = ", ".join(f"{key} {value}" for key, value in own.items())
    return names


def usual_values(facts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The most frequent value of every key that varies; of equally frequent ones the first by text."""
    counts: dict[str, Counter[str]] = {}
    for own in facts:
        for key, value in own.items():
            counts.setdefault(key, Counter())[value] += 1
    return {key: min(c, key=lambda v: (-c[v], v)) for key, c in counts.items() if len(c) > 1}


def name_repeats(cells: Sequence[Hashable], run_ids: Sequence[str]) -> list[str]:
    """ "run 1a2b3c" for runs of one cell and seed, else "": they differ in something, since their ids do.

    Args:
        cells: of each run: all that names it, with the seed.
        run_ids: of the same runs.
    """
    counts = Counter(cells)
    return [
        f"run {run_id.rsplit('-', 1)[-1]}" if counts[cell] > 1 else ""
        for cell, run_id in zip(cells, run_ids, strict=True)
    ]


def _facts(environment: Mapping[str, Any], num_prompts: Mapping[str, int]) -> dict[str, str]:
    fingerprints = environment.get("fingerprints") or {}
    facts = {"files": "recorded" if fingerprints else "not recorded"}
    facts |= {
        _NAMES.get(name, name): hashlib.sha256(str(fingerprint).encode()).hexdigest()[:6]
        for name, fingerprint in fingerprints.items()
    }
    if "numerics_version" in environment:
        facts["numerics"] = str(environment["numerics_version"])
    return facts | {f"{split} prompts": str(count) for split, count in num_prompts.items()}
