"""Benchmarks by name: lists as they are, GenEval's folders, and a contact sheet that is one file."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from harness.config import ConfigError
from harness.trained.suites import SUITES, geneval_metadata, read_suite
from tests.harness.test_benchmark import run_command

TWIN = ["--profile", "paper-dry", "--steps", "2", "--grid-prompts", "0"]
HOSTILE = '<img src=x onerror=y> "><script>alert(1)</script>'
METADATA = [
    {"tag": "counting", "include": [{"class": "fox", "count": 2}], "exclude": [], "prompt": "a photo of two  foxes"},
    {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}], "prompt": "a photo of a red cup"},
]


class Sheet(HTMLParser):
    """Tags, addresses of pictures and texts of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.pictures += [dict(attrs)] if tag == "img" else []

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_benchmark_is_drawn_once_per_prompt_and_the_sheet_is_one_file_that_shows_text_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "drawbench.csv"
    quoted = HOSTILE.replace('"', '""')
    listed.write_text(f'Prompts,Category\na red fox,Colors\n"{quoted}",Text\nA red fox,Reddit\n', encoding="utf-8")
    suite = ["--suite", "drawbench", "--prompts", str(listed), "--rewards", "hpsv2", "--output", str(tmp_path / "out")]
    assert run_command("evaluate", "base", *TWIN, *suite) == 0
    said = capsys.readouterr().out
    assert "1 of 3 prompts repeat" in said
    assert re.search(r"\| base \(paper-dry\) \| -?[\d.]+ ± [\d.]+ \| –", said)
    sheet = Sheet(tmp_path / "out" / "sheet.html")
    assert "script" not in sheet.tags
    assert HOSTILE in "".join(sheet.texts)
    assert [str(picture["src"])[:22] for picture in sheet.pictures] == ["data:image/webp;base64"] * 2
    assert {picture["loading"] for picture in sheet.pictures} == {"lazy"}
    assert not [name for picture in sheet.pictures for name in picture if name.startswith("on")]
    values = json.loads((tmp_path / "out" / "evaluation.json").read_text())["checkpoints"][0]["per_prompt"]["hpsv2"]
    captions = [text.rpartition(" ")[2] for text in sheet.texts if ", hpsv2 " in text]
    assert captions == [f"{value:.3f}" for value in values]


def test_geneval_gets_the_folders_that_its_evaluator_reads_and_no_score_of_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "evaluation_metadata.jsonl"
    listed.write_text("".join(json.dumps(one) + "\n" for one in METADATA), encoding="utf-8")
    output = tmp_path / "out"
    arguments = ["--suite", "geneval", "--prompts", str(listed), "--output", str(output)]
    assert run_command("evaluate", "base", *TWIN, *arguments) == 0
    assert "evaluate_images.py" in capsys.readouterr().out
    [checkpoint] = (output / "geneval").iterdir()
    assert sorted(path.name for path in checkpoint.iterdir()) == ["00000", "00001"]
    for number, one in enumerate(METADATA):
        folder = checkpoint / f"{number:05}"
        assert json.loads((folder / "metadata.jsonl").read_text(encoding="utf-8")) == one
        assert sorted(path.name for path in (folder / "samples").iterdir()) == [f"{n:04}.png" for n in range(4)]
        assert len({Image.open(path).tobytes() for path in (folder / "samples").iterdir()}) == 4
    assert json.loads((output / "evaluation.json").read_text())["checkpoints"][0]["metrics"] == {}


def test_what_a_benchmark_lacks_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("drawbench", "partiprompts", "geneval"):
        assert run_command("evaluate", "base", "--suite", name) == 2
        assert f"--suite {name}: give its list, {SUITES[name].file}" in capsys.readouterr().err
    plain = tmp_path / "list.jsonl"
    plain.write_text('{"prompt": "a fox"}\n', encoding="utf-8")
    prompts, _ = read_suite(plain)
    with pytest.raises(ConfigError, match="line 1 must be an object with tag, include, prompt"):
        geneval_metadata(plain, prompts.prompts)


def test_the_benchmark_of_words_is_read_by_the_recogniser(tmp_path: Path) -> None:
    listed = tmp_path / "words.txt"
    listed.write_text('the word "harbor" in red on yellow\n', encoding="utf-8")
    arguments = ["--suite", "ocr", "--prompts", str(listed), "--steps", "2", "--output", str(tmp_path / "out")]
    assert run_command("evaluate", "base", "--profile", "miniature-luck", *arguments) == 0
    metrics = json.loads((tmp_path / "out" / "evaluation.json").read_text())["checkpoints"][0]["metrics"]
    assert {name.partition("/")[0] for name in metrics} == {"ocr"}
