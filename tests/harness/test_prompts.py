"""Prompt lists: what is accepted, and imports that are disjoint by construction."""

import json
import re
import shlex
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.cli import main
from harness.config import ROOT, ConfigError, compose
from harness.prompts.imported import SPLITS, Shares, import_prompts, split_of, write_lists
from harness.prompts.lists import (
    MAX_CHARACTERS,
    draw_candidates,
    normalise,
    problem_with,
    prompt_key,
    read_prompts,
    read_texts,
)

CASES = ROOT / "tests" / "data" / "cases"
SHARES = Shares(60, 20, 20)
NUMBERED = [f"a drawing of {n} boats" for n in range(200)]


def written(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8", newline="")
    return path


def test_a_table_of_tabs_needs_no_quotation(tmp_path: Path) -> None:
    rows = ['"G I G G L E" painted on a wall\tIllustrations\t', 'a sign, "OPEN"\tArtifacts\tlong: "a word']
    content = "Prompt\tCategory\tNote\n" + "".join(f"{row}\n" for row in rows)
    assert read_prompts(written(tmp_path, "parti.tsv", content)).prompts == tuple(row.split("\t")[0] for row in rows)


def test_text_and_json_lists_hold_the_same_prompts_and_other_keys_are_kept_out(tmp_path: Path) -> None:
    prompts = ("a red fox", "a café, one cup")
    objects = [{"prompt": prompt, "image_path": ["x.png"], "rank": [1]} for prompt in prompts]
    for name, content in {
        "list.txt": "\ufeff  a red fox \r\n\n a café, one cup\n",
        "list.jsonl": "".join(json.dumps(item) + "\n" for item in objects),
        "list.json": json.dumps(objects),
        "strings.json": json.dumps(prompts),
        "LIST.NDJSON": "".join(json.dumps({"Prompt": prompt, "text": "x"}) + "\r\n" for prompt in prompts),
        "list.CSV": '\ufeffid,Prompt\r\n1,a red fox\r\n\r\n2," a café,\r\none cup"\r\n',
        "drawbench.csv": 'Prompts,Category\na red fox,Colors\n"a café, one cup",Counting\n',
        "parti.tsv": "Prompt\tCategory\tNote\na red fox\tAnimals\t\na café, one cup\tFood\t\n",
        "list.tsv": "caption\tnote\na  red fox\t\na cafe\u0301, one cup\tx\n",
    }.items():
        assert read_prompts(written(tmp_path, name, content)).prompts == prompts


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.txt", "\n \n", "has no prompts"),
        ("twice.txt", "a  red fox\na cat\n a red\tfox\n", "line 3 repeats line 1, 'a red fox'"),
        ("long.txt", "a" * (MAX_CHARACTERS + 1), "line 1 is too long: 2001 characters, at most 2000"),
        ("bell.txt", "a cat\na \x07dog", "line 2 is unprintable: has the control character U\\+0007"),
        ("torn.jsonl", '{"prompt": "a cat"}\n{"prom', "line 2: is not valid JSON"),
        ("keyless.jsonl", '{"title": "a cat"}', "no column 'prompt' but 'title'"),
        (
            "other.jsonl",
            '{"prompt": "a cat"}\n{"text": "a dog"}',
            'line 2 must be an object with a text, as in {"prompt"',
        ),
        ("both.csv", "caption,text\na cat,b\n", "columns 'caption', 'text'; name one by  --column"),
        ("none.csv", "a cat\na dog\n", "no column 'prompt' but 'a cat'"),
        ("twice.csv", "prompt,id,prompt\na cat,1,a dog\n", "line 1: has 'prompt' 2 times"),
        ("twice.json", '[{"prompt": "a", "prompt": "b"}]', "has 'prompt' 2 times"),
        ("unquoted.csv", "prompt,id\na cat, a dog,1\n", "line 2 has not as many cells as the header"),
        ("open.csv", 'prompt\n"a cat\n', "line 2 is no row of a table"),
        (
            "table.txt",
            "Prompt\tCategory\na cat\tAnimals\n",
            r"header of a table, not a prompt; call the file \.csv or \.tsv",
        ),
        ("lines.txt", 'a dog\n{"prompt": "a cat"}\n', r"line 2 is not a prompt: .*\.jsonl"),
        ("list.txt", '[\n"a cat",\n"a dog"\n]', r"is JSON, not a prompt per line; call the file \.json"),
        ("list.md", "a cat\n", "its suffix must say what it holds"),
        ("separator.json", '["a \\u2028cat"]', r"U\+2028"),
        ("joined.txt", "a\u200d cat", r"invisible character U\+200D"),
        ("filler.txt", "a \u3164 cat", r"invisible character U\+3164"),
        ("wide.txt", "a cat’s\na\u00a0\uff43at's\n", "line 2 repeats line 1"),
        ("bare.jsonl", '"a cat"', "line 1 must be an object"),
        ("object.json", '{"prompt": "a cat"}', "must hold a JSON list"),
    ],
)
def test_a_list_that_cannot_be_used_is_named_with_the_place(
    tmp_path: Path, name: str, content: str, expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected) as error:
        read_prompts(written(tmp_path, name, content))
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_joined_emoji_and_accents_are_fine_and_invisible_characters_are_not() -> None:
    assert problem_with("a family \U0001f469\u200d\U0001f467 at the café") is None
    assert problem_with("key 1\ufe0f\u20e3, \u2764\ufe0f and नमस्\u200dते") is None
    for character in ("\x00", "\u200b", "\ue000", "\u202e", "\x85", "\u2029", "\x1d", "\ufe0f", "\ufeff"):
        assert problem_with(f"a {character}cat") is not None


@given(st.text(max_size=40))
@settings(max_examples=50, deadline=None)
def test_a_prompt_has_one_list_whatever_its_case_and_spaces(prompt: str) -> None:
    split = split_of(prompt, SHARES)
    assert split in SPLITS
    assert split_of(f"  {normalise(prompt)}\n", SHARES) == split
    assert split_of(normalise(prompt).casefold(), SHARES) == split


def test_an_import_is_disjoint_without_repetitions_and_counts_what_it_leaves_out(tmp_path: Path) -> None:
    first = written(tmp_path, "first.txt", "\n".join([*NUMBERED, "a  drawing of 3 boats", "x" * 50]))
    second = written(tmp_path, "second.json", json.dumps([*NUMBERED[:50], "a bird", "\x07", " "]))
    benchmark = written(tmp_path, "benchmark.txt", "A drawing of 7 boats\n")
    imported = import_prompts([first, second], SHARES, exclude=[benchmark], max_characters=40)
    together = [prompt for prompts in imported.lists.values() for prompt in prompts]
    assert sorted(together) == sorted(set(NUMBERED) - {"a drawing of 7 boats"} | {"a bird"})
    assert imported.num_read == 255
    assert imported.left_out == {"repeated": 50, "too long": 1, "unprintable": 1, "empty": 1, "excluded": 2}
    for split, prompts in imported.lists.items():
        assert all(split_of(prompt, SHARES) == split for prompt in prompts)
    assert {split: len(prompts) for split, prompts in imported.lists.items()} == pytest.approx(
        {"train": 120, "validation": 40, "test": 40}, abs=20
    )


def test_spellings_of_one_prompt_are_in_one_list_and_excluded_together(tmp_path: Path) -> None:
    source = CASES / "nfc-nfd.txt"
    imported = import_prompts([source], Shares(50, 25, 25))
    together = [prompt for prompts in imported.lists.values() for prompt in prompts]
    assert len({prompt_key(prompt) for prompt in together}) == len(together) == 9  # one of them ends in a full stop
    assert imported.left_out == {"repeated": 13, "unprintable": 4}
    composed = [text for _, text in read_texts(source) if unicodedata.is_normalized("NFC", text)]
    assert len(composed) > 9
    exclude = written(tmp_path, "composed.txt", "\n".join(composed))
    with pytest.raises(ConfigError, match="gets none"):
        import_prompts([source], Shares(100, 0, 0), exclude=[exclude])


def test_a_list_without_prompts_is_an_error_unless_its_share_is_zero(tmp_path: Path) -> None:
    source = written(tmp_path, "one.txt", "a bird")
    assert import_prompts([source], Shares(0, 0, 100)).lists == {"test": ["a bird"]}
    with pytest.raises(ConfigError, match="gets none of 1 prompts"):
        import_prompts([source], SHARES)
    with pytest.raises(ConfigError, match=r"--column caption: .*one\.txt"):
        import_prompts([source], Shares(0, 0, 100), column="caption")


def test_existing_lists_are_not_overwritten(tmp_path: Path) -> None:
    write_lists({"train": ["a bird"]}, tmp_path)
    with pytest.raises(ConfigError, match=r"train\.txt is there already"):
        write_lists({"validation": ["a cat"], "train": ["a dog"]}, tmp_path)
    assert not (tmp_path / "validation.txt").exists()
    assert read_prompts(tmp_path / "train.txt").prompts == ("a bird",)


def test_shares_must_be_three_percentages_that_add_up() -> None:
    for shares in ("90,5", "90,5,6", "-10,60,50", "a,b,c", "nan,50,50"):
        with pytest.raises(ConfigError, match="--shares"):
            Shares.parse(shares)


def test_the_projects_own_lists_are_disjoint_and_split_by_hash() -> None:
    lists = {split: read_prompts(f"experiments/prompts/{split}.txt").prompts for split in SPLITS}
    assert {split: len(prompts) for split, prompts in lists.items()} == {"train": 200, "validation": 50, "test": 50}
    for split, prompts in lists.items():
        assert {split_of(prompt, Shares(66, 17, 17)) for prompt in prompts} == {split}
    assert len({prompt for prompts in lists.values() for prompt in prompts}) == 300


def test_the_list_of_many_passes_is_the_documented_draw_and_has_no_word_of_validation_or_test() -> None:
    lists = {split: read_prompts(f"experiments/prompts/letters/{split}.txt").prompts for split in SPLITS}
    many = read_prompts(compose("miniature-many").prompts.train).prompts
    assert list(many) == draw_candidates(lists["train"], slots=1, candidates=48, seed=0, iteration=1)[0]
    words = {split: {prompt.split('"')[1] for prompt in prompts} for split, prompts in lists.items()}
    assert not {prompt.split('"')[1] for prompt in many} & (words["validation"] | words["test"])


def test_profiles_read_the_lists_that_the_documented_import_of_hpd_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs/prompts.md").read_text()
    [command] = re.findall(r"adagrpo (prompts import hpd/train\.json .*?[^\\])\n", page, re.S)
    arguments = shlex.split(command.replace("\\\n", " "))
    benchmarks = [arguments[i + 1] for i, word in enumerate(arguments) if word == "--exclude"]
    assert len(benchmarks) == 4
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hpd" / "benchmark").mkdir(parents=True)
    pairs = [f"{prompt}, oil on canvas {n}" for n in range(5) for prompt in NUMBERED]
    objects = [{"prompt": prompt, "file_path": ["1.jpg", "2.jpg"], "human_preference": [1, 0]} for prompt in pairs]
    written(tmp_path, "hpd/train.json", json.dumps([*objects, *objects[:50]]))
    for number, name in enumerate(benchmarks):
        written(tmp_path, name, json.dumps(pairs[10 * number : 10 * number + 10]))
    with pytest.raises(SystemExit, match="0"):
        main(arguments)
    for profile in ("paper", "native-sd35"):
        config = compose(profile)
        lists = {split: read_prompts(tmp_path / getattr(config.prompts, split)).prompts for split in SPLITS}
        assert sum(map(len, lists.values())) == len(pairs) - 40
        assert not set(pairs[:40]) & {prompt for prompts in lists.values() for prompt in prompts}
