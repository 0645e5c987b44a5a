"""Files that runs were made from, as far as recorded: runs from different files are never averaged as seeds."""

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
    """Name the files in which each run differs from most of its kind, such as "test list 3f9a1c"; else empty.

    Facts that a run did not record, or had not measured yet, are not compared; but a run that recorded its files is
    never pooled with one of the same kind that did not.

    Args:
        kinds: kind of each run, such as its experiment, reward and method.
        environments: environments of the same runs, with ``fingerprints`` from identity.json and ``numerics_version``.
        num_prompts: number of evaluated prompts by split, for the same runs.
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
    """Most frequent value of every key that varies; ties are broken by text order."""
    counts: dict[str, Counter[str]] = {}
    for own in facts:
        for key, value in own.items():
            counts.setdefault(key, Counter())[value] += 1
    return {key: min(c, key=lambda v: (-c[v], v)) for key, c in counts.items() if len(c) > 1}


def name_repeats(cells: Sequence[Hashable], run_ids: Sequence[str]) -> list[str]:
    """Name runs that share cell and seed, as in "run 1a2b3c", since their ids show that they differ; others get "".

    Args:
        cells: key of each run: everything that names its cell, with the seed.
        run_ids: ids of the same runs.
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
