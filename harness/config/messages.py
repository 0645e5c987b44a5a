"""One-line errors of a configuration that name the key and the nearest valid one."""

import difflib
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from harness.config.run import RunConfig
from harness.foundation.errors import ConfigError

Content = TypeVar("Content", bound=BaseModel)


def validated(section: type[Content], content: Any, where: str, origins: Mapping[str, str] = {}) -> Content:
    """Validate the content of a section. Raises ConfigError with the problem in one line.

    It begins with the place where the value was written, in ``origins`` by dotted key; ``where`` if that is not known.
    """
    try:
        return section.model_validate(content)
    except ValidationError as error:
        key, problem = _one_line(error, section)
        while key and key not in origins:
            key = key.rpartition(".")[0]
        raise ConfigError(f"{origins.get(key, where)}: {problem}") from None


def _one_line(error: ValidationError, section: type[BaseModel]) -> tuple[str, str]:
    """Key and description of one error, an unknown key before others, with the nearest valid key or value."""
    problems = error.errors()
    # A misspelt key is also reported as a missing one; the misspelling tells what to do.
    problem = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    location = [str(part) for part in problem["loc"]]
    if location[-1:] == ["[key]"]:  # pydantic's marker of an invalid key in a mapping
        location = location[:-2]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        *sections, word = location
        closest = difflib.get_close_matches(word, fields_at(sections, section), n=1, cutoff=0.0)
        return key, f"unknown key {key!r}; the nearest is {'.'.join([*sections, *closest])!r}"
    if problem["type"] == "missing":
        return key, f"key {key!r} is missing"
    message = problem["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
    if not key:
        return re.split(r"[^\w.]", message)[0], message
    if problem["type"] == "literal_error":
        valid = problem["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return key, f"{key}={problem['input']!r} is unknown; {nearest(str(problem['input']), valid)}"
    return key, f"{key}={problem['input']!r}: {message[0].lower()}{message[1:]}"


def nearest(word: str, known: Sequence[str]) -> str:
    """``the nearest is 'X', there are X, Y, Z``: the end of an error message about an unknown word."""
    if word.endswith(".py"):
        return f"name what is in the file, as in {word}:Name"
    closest = difflib.get_close_matches(word, known, n=1, cutoff=0.0)
    return f"the nearest is {closest[0]!r}, there are {', '.join(known)}" if closest else "there are none"


def fields_at(location: Sequence[str], model: type[BaseModel] = RunConfig) -> Mapping[str, FieldInfo]:
    """Fields of the section that a key's parts lead to; empty if they lead to a value."""
    parts = iter(location)
    for part in parts:
        annotation = model.model_fields[part].annotation
        if get_origin(annotation) is dict:
            next(parts, None)
            annotation = get_args(annotation)[1]
        options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
        sections = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if not sections:
            return {}
        model = sections[0]
    return model.model_fields
