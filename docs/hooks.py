"""What the site has beside the pages in docs/.

The notebook as a page; every setting, from the models of the configuration; tables of profiles and of grids, from
experiments/; a page per package, from its docstrings. Links out of docs/ are checked here.
"""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from harness.config.composition import VERIFICATIONS, verification
from harness.config.dictionary import DICTIONARY, FAMILIES
from harness.config.run import RunConfig

ROOT = Path(__file__).resolve().parents[1]
_IMAGE = re.compile(r"(!\[[^\]]*\])\(\.\./([^)\s]+)\)")
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((\.\./[^)#\s]*)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    files.append(File.generated(config, "first-run.md", content=_notebook()))
    pages = {"settings.md": _settings()} | {f"reference/{name}.md": _reference(name) for name in _packages()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    for source in sorted((ROOT / "docs").glob("*.md")):
        for _, picture in _IMAGE.findall(source.read_text(encoding="utf-8")):
            files.append(File.generated(config, picture, abs_src_path=str(ROOT / picture)))
    config.nav = [*(config.nav or []), {"Reference": list(pages)}]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in tables, and have links to files of the repository point to their reference or be plain text."""
    found = markdown.replace("<!-- profiles -->", _profiles()).replace("<!-- grids -->", _grids())
    found = found.replace("(first-run.ipynb)", "(first-run.md)")
    return _LINK.sub(lambda link: _outside(link[1], link[2], page), _IMAGE.sub(r"\1(\2)", found))


def _notebook() -> str:
    """docs/first-run.ipynb: its text, its code, and what this showed when it was last executed."""
    parts = []
    for cell in json.loads((ROOT / "docs" / "first-run.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text'])}```")
            elif picture := output["data"].get("image/jpeg"):
                parts.append(f"![what this shows](data:image/jpeg;base64,{''.join(picture).strip()})")
    return "\n\n".join(parts)


def _outside(text: str, target: str, page: Page) -> str:
    path = (ROOT / "docs" / target).resolve()
    if not path.exists():
        raise PluginError(f"{page.file.src_path}: links to {target}, which is not there")
    parts = path.relative_to(ROOT).with_suffix("").parts
    if path.suffix == ".py" and ".".join(parts[:2]) in _packages():
        return f"[{text}](reference/{'.'.join(parts[:2])}.md)"
    return text if text.startswith("`") else f"{text} (`{path.relative_to(ROOT)}`)"


def _packages() -> list[str]:
    tops = [ROOT / "harness", ROOT / "analysis"]
    found = [path for top in tops for path in top.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    return sorted(f"{path.parent.name}.{path.stem}" for path in found if not path.stem.startswith("_"))


def _reference(name: str) -> str:
    return f"# {name}\n\n::: {name}\n"


# --- settings ---------------------------------------------------------------------------------------------------------


def _settings() -> str:
    lines = ["# Every setting", "", "Written from the models in `harness/config/`. How files and words compose: "]
    lines[-1] += (
        "[Settings, and what a run is](config.md). What a setting is called in the releases that it comes from, if it "
    )
    lines[-1] += (
        "has a place there, is from the [dictionary](dictionary.md), which has more of them; all else is of here."
    )
    for title, model, rows in _sections(RunConfig, ""):
        lines += [
            "",
            f"## {title}",
            "",
            _text(model.__doc__),
            "",
            "| key | meaning | type and range | default |",
        ]
        lines += ["|---|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _sections(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel], list[str]]]:
    rows, inner = [], []
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        meaning = _text(_meanings(model).get(name))
        if section := _section_of(field.annotation):
            inner.append((f"{key}.NAME." if "dict" in str(field.annotation) else f"{key}.", section))
        else:
            if not meaning:
                raise PluginError(f"{model.__module__}.{model.__name__}.{name}: has no text that says what it means")
            rows.append(f"| `{key}` | {meaning}{_elsewhere(key)} | {_kind(field)} | {_default(field)} |")
    yield prefix.rstrip(".") or "The run", model, rows
    for its_prefix, section in inner:
        yield from _sections(section, its_prefix)


@cache
def _names_elsewhere() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = yaml.safe_load(DICTIONARY.read_text(encoding="utf-8"))["settings"]
    return found


def _elsewhere(key: str) -> str:
    """What a setting is called in the four releases whose configurations can be converted."""
    names = _names_elsewhere().get(key, {})
    found = ", ".join(f"{family} `{names[family]}`" for family in FAMILIES if names.get(family))
    return f"<br>In releases: {found}" if found else ""


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """The text under each field of a section, or under the last of several that share it, as it is written there."""
    [tree] = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    found: dict[str, str] = {}
    waiting: list[str] = []
    for node in getattr(tree, "body", []):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            waiting.append(node.target.id)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and waiting:
            found |= dict.fromkeys(waiting, str(node.value.value))
            waiting = []
        else:
            waiting = []
    return found


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_of, get_args(annotation))), None)


def _kind(field: FieldInfo) -> str:
    return _type(field.annotation) + _limits(field.metadata)


def _type(annotation: Any) -> str:
    """A type as people read it, in code, with the limits that belong to its parts."""
    own, parts = get_origin(annotation), get_args(annotation)
    if own is Annotated:
        return _type(parts[0]) + _limits(parts[1:])
    if own is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if own in (Union, UnionType):
        return " or ".join(_type(part) for part in parts if part is not NoneType) + (" or `None`" * (NoneType in parts))
    if own in (tuple, dict):
        each = "list" if own is tuple else "mapping"
        return f"{each} of " + " and ".join(dict.fromkeys(_type(part) for part in parts if part is not ...))
    return f"`{annotation.__name__}`"


def _limits(metadata: Iterable[Any]) -> str:
    """Least and greatest values, also of a field within an annotation."""
    bounds = {"Ge": "≥", "Gt": ">", "Le": "≤", "Lt": "<"}
    every = [one for part in metadata for one in (part.metadata if isinstance(part, FieldInfo) else [part])]
    named = [(type(one).__name__, one) for one in every]
    return "".join(f", {bounds[name]} {getattr(one, name.lower()):,}" for name, one in named if name in bounds)


def _default(field: FieldInfo) -> str:
    return "needed" if field.is_required() else f"`{field.get_default(call_default_factory=True)}`".replace("|", "\\|")


def _text(text: str | None) -> str:
    return re.sub(r"``([^`]+)``", r"`\1`", " ".join((text or "").split())).replace("|", "\\|")


# --- profiles and grids -----------------------------------------------------------------------------------------------


def _said(path: Path) -> str:
    comment = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return " ".join(comment).replace("|", "\\|")


def _profiles() -> str:
    lines = ["| profile | verified | what it is |", "|---|---|---|"]
    for path in sorted((ROOT / "experiments" / "profiles").glob("*.yaml")):
        lines.append(f"| `{path.stem}` | {verification(path.stem).partition(':')[0]} | {_said(path)} |")
    levels = [f"- **{level}**: {text}" for level, text in VERIFICATIONS.items()]
    return "\n".join([*lines, "", *levels])


def _grids() -> str:
    lines = ["| grid | profile | what it is |", "|---|---|---|"]
    for path in sorted((ROOT / "experiments" / "grids").glob("*.yaml")):
        profile = yaml.safe_load(path.read_text(encoding="utf-8"))["profile"]
        lines.append(f"| `{path.stem}` | `{profile}` | {_said(path)} |")
    return "\n".join(lines)
