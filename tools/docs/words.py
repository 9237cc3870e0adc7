"""Settings classes as tables of a page."""

from __future__ import annotations

import typing

from pydantic_core import PydanticUndefined

from mllm_tailor.recipe import Settings


def settings_table(settings: type[Settings]) -> list[str]:
    """One row per setting."""
    lines = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for name, field in settings.model_fields.items():
        words = type_words(field.annotation).replace("|", "\\|")
        lines.append(f"| `{name}` | {words} | {default_words(field)} | {field.description} |")
    return lines


def type_words(annotation: object) -> str:
    """`int | None` -> `integer or null`, in the words of YAML."""
    words = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null", dict: "mapping"}
    if annotation in words:
        return words[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is list:
        return f"list of {type_words(arguments[0])}"
    if origin is dict:
        return "mapping"
    if arguments:
        return " or ".join(dict.fromkeys(type_words(argument) for argument in arguments))
    return "mapping"


def default_words(field: typing.Any) -> str:
    """The default as YAML would write it."""
    if field.default is PydanticUndefined:
        return "*required*"
    if field.default is None:
        return "—"
    if isinstance(field.default, Settings):
        return "see below"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"
