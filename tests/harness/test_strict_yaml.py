"""YAML is read as people mean it, or refused in one line."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config import EXPERIMENTS, ConfigError, read_yaml, strict_yaml


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as error:
        strict_yaml.parse(text, "file.yaml")
    assert "\n" not in str(error.value)
    assert "file.yaml" in str(error.value)
    return str(error.value)


def test_plain_values_are_read() -> None:
    text = "{a: 1, b: -2.5, c: 1e-4, d: .5, e: true, f: null, g: word, h: [0, 2.], i: '010', j: 3E+2, k: 500-501}"
    assert strict_yaml.parse(text, "file.yaml") == {
        "a": 1,
        "b": -2.5,
        "c": 1e-4,
        "d": 0.5,
        "e": True,
        "f": None,
        "g": "word",
        "h": [0, 2.0],
        "i": "010",
        "j": 300.0,
        "k": "500-501",
    }


@pytest.mark.parametrize(
    "word", ["yes", "on", "OFF", "2026-01-02", "010", "+07", "1:30", "1_0", "1_000.5", "0x10", "0o7", ".inf", "nan"]
)
def test_what_readers_disagree_on_is_a_word_that_no_number_or_truth_value_is_taken_from(word: str) -> None:
    assert strict_yaml.parse(f"a: {word}", "file.yaml") == {"a": word}


def test_a_key_that_stands_twice_is_named_with_both_lines() -> None:
    assert "line 3: the key 'a' stands twice, first in line 1" in refusal("a: 1\nb: 2\n'a': 3")
    assert "line 4: the key 'x.a' stands twice, first in line 2" in refusal("x:\n  a: 1\n  b: 2\n  a: 3")


KEYS = [
    "!!str 1: a",
    "? !!str [a]\n: b",
    "1: a",
    "null: a",
    "~: a",
    "true: a",
    "[a]: b",
    "? {a: 1}\n: b",
    "1.5: a",
    ": a",
]
DEEP = ["[" * 20_000, "{a: " * 5_000, "- " * 9_999 + "a", "[" * 100_000]
WRONG = ["a: !!python/name:os.system x", "a: &a [*a]", "<<: 3", "a: *b", "a: 1\n---\nb: 2", "a: [1", "\x00"]
TAGGED = [f"a: {value}" for value in ("!!bool yes", "!!int 010", "!!float abc", "!!str 5", '!!int "5"', "!x 5")]


def test_what_cannot_be_read_safely_or_has_keys_that_are_no_words_is_refused() -> None:
    for text in (*DEEP, *WRONG, *TAGGED, "a: 1e999", "a: [-1e999]"):
        refusal(text)
    for text in KEYS:
        assert "key" in refusal(text)


def test_aliases_are_values_but_not_without_end() -> None:
    assert strict_yaml.parse("a: &x [1, 2]\nb: *x", "file.yaml") == {"a": [1, 2], "b": [1, 2]}
    merged = "a: &x {b: 1, c: 2}\nd: {<<: *x, b: 3}"
    assert strict_yaml.parse(merged, "file.yaml")["d"] == {"b": 3, "c": 2}
    laughs = "a0: &a0 [lol]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
    assert "aliases" in refusal(laughs)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12)
    | st.from_regex(r"[-+]?[0-9._xeE:]{1,8}", fullmatch=True) | st.sampled_from(["on", "no", "~", ".inf", "1e4", "<<"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z]{1,4}", fullmatch=True), values, min_size=1))
def test_what_is_written_is_read_as_it_was_by_this_and_by_any_other_reader(content: dict) -> None:
    text = strict_yaml.dump(content)
    assert yaml.safe_load(text) == content
    assert strict_yaml.parse(text, "file.yaml") == content


def test_every_file_of_the_project_means_the_same_to_other_readers() -> None:
    paths = sorted(EXPERIMENTS.rglob("*.yaml"))
    assert len(paths) > 40
    for path in paths:
        ours, theirs = read_yaml(path), yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(theirs.get("logging"), dict) and theirs["logging"].get("wandb") is False:
            theirs["logging"]["wandb"] = "off"  # a word here
        assert ours == theirs, path
