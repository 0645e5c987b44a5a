"""What the site has beside the pages in docs/.

Every setting, from the models of the configuration; tables of profiles and of grids, from experiments/; a page per
package, from its docstrings. Links out of docs/ are checked here.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from harness.config.composition import VERIFICATIONS, verification
from harness.config.run import RunConfig

ROOT = Path(__file__).resolve().parents[1]
_IMAGE = re.compile(r"(!\[[^\]]*\])\(\.\./([^)\s]+)\)")
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((\.\./[^)#\s]*)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
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
    return _LINK.sub(lambda link: _outside(link[1], link[2], page), _IMAGE.sub(r"\1(\2)", found))


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
    lines[-1] += "[Settings, and what a run is](config.md)."
    for title, model, rows in _sections(RunConfig, ""):
        lines += ["", f"## {title}", "", _text(model.__doc__), "", "| key | type and range | default | meaning |"]
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
            rows.append(f"| `{key}` | {_kind(field)} | {_default(field)} | {meaning} |")
    yield prefix.rstrip(".") or "The run", model, rows
    for its_prefix, section in inner:
        yield from _sections(section, its_prefix)


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """The text under each field of a section, as it is written there."""
    [tree] = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    found: dict[str, str] = {}
    waiting: list[str] = []
    for node in getattr(tree, "body", []):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            waiting.append(node.target.id)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and waiting:
            found |= dict.fromkeys(waiting[-1:], str(node.value.value))
            waiting = []
        else:
            waiting = []
    return found


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_of, get_args(annotation))), None)


def _kind(field: FieldInfo) -> str:
    kind = re.sub(r"\w+\.", "", getattr(field.annotation, "__name__", None) or str(field.annotation))
    kind = str(field.annotation) if get_args(field.annotation) else kind
    kind = re.sub(r"typing\.|\bAnnotated\[|, AfterValidator\(.*?\)\]|harness\.[\w.]+\.", "", kind)
    bounds = {"Ge": "≥", "Gt": ">", "Le": "≤", "Lt": "<"}
    limits = [
        f"{sign} {getattr(one, name.lower()):,}"
        for one in field.metadata
        for name, sign in bounds.items()
        if type(one).__name__ == name
    ]
    return f"`{kind}`".replace(" | ", " or ") + "".join(f", {limit}" for limit in limits)


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
