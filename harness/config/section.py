"""Base class and field types that all sections of a configuration share."""

from collections.abc import Iterable
from contextvars import ContextVar
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from harness.config.names import require_name

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
# Upper limits are far above any use, and below values that fail late, with a traceback or by running out of memory.
Count = Annotated[int, Field(ge=1, le=1_000_000)]
CountOrNone = Annotated[int, Field(ge=0, le=1_000_000)]
Pixels = Annotated[int, Field(ge=1, le=16_384)]
Steps = Annotated[int, Field(ge=1, le=10_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Seconds = Annotated[float, Field(gt=0, le=1e6)]
Name = Annotated[str, AfterValidator(require_name)]
"""Valid name of a file or folder."""


PLUGINS: ContextVar[frozenset[str]] = ContextVar("plugins", default=frozenset())
"""Names of the plug-ins of the configuration that is being validated."""


def one_of(registry: Iterable[str], or_plugin: bool = False) -> AfterValidator:
    """Validator of a name in a registry of ``harness.foundation.names``, with the errors of a Literal of its names."""

    def known(name: str) -> str:
        if name not in registry and not (or_plugin and name in PLUGINS.get()):
            raise PydanticCustomError("literal_error", "must be {expected}", {"expected": ", ".join(registry)})
        return name

    return AfterValidator(known)


class Section(BaseModel):
    """Base class of all sections: unknown keys are errors, values are frozen, finite, and not converted between types.

    So a bool is not a number, a number not a bool, and 3.0 not a count; an int is accepted as a float.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, content: Any) -> Any:
        # YAML and JSON have no tuples, and a strict tuple accepts no list.
        if not isinstance(content, dict):
            return content
        return {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
