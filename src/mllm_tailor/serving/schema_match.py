"""Whether every reply of a run satisfies the JSON schema that a request asks for.

Clients derive schemas from classes of their own: names and order of keys differ, and so do words such as `title`. A
schema is served when the run's replies are valid against it, perhaps with some fields left out; otherwise the request
is refused with the field and the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mllm_tailor.serving.errors import refused

DEPTH = 32
SAFE_INTEGER = 2**53 - 1  # the bounds that JavaScript's clients state for every integer
Schema = Mapping[str, Any]


def fit(wanted: Any, offered: Schema, param: str) -> Schema:
    """The wanted schema with its references filled in, once it is known to hold for every reply.

    Raises:
        ApiError: naming the field that does not fit.
    """
    if not isinstance(wanted, Mapping):
        raise refused(param, "should be a JSON schema")
    definitions = {
        f"#/{group}/{name}": schema
        for group in ("$defs", "definitions")
        if isinstance(wanted.get(group), Mapping)
        for name, schema in wanted[group].items()
    }
    whole = _filled(wanted, definitions, param, 0)
    assert isinstance(whole, Mapping)
    try:
        problem = next(iter(_problems(whole, offered, "")), None)
    except TypeError:  # a word such as maxLength with a value of another type
        raise refused(param, "is not a valid JSON schema") from None
    if problem is not None:
        raise refused(param, f"this run's replies do not fit it: {problem}")
    return whole


def project(value: Any, wanted: Any) -> Any:
    """The part of a reply that a schema asks for; keys in the order of the schema."""
    if not isinstance(wanted, Mapping):
        return value
    for inner in wanted.get("anyOf", wanted.get("oneOf", ())):
        if isinstance(inner, Mapping) and _is_kind(value, inner):
            return project(value, inner)
    if isinstance(value, dict) and isinstance(wanted.get("properties"), Mapping):
        return {name: project(value[name], inner) for name, inner in wanted["properties"].items() if name in value}
    if isinstance(value, list) and "items" in wanted:
        return [project(item, wanted["items"]) for item in value]
    return value


def names_all(wanted: Any, offered: Any) -> bool:
    """Whether a schema that fits asks for every field that is offered, so that a reply is sent as it was read.

    >>> offered = {"properties": {"total": {}, "items": {"items": {"properties": {"name": {}}}}}}
    >>> [names_all({"properties": asked}, offered) for asked in ({"items": {}, "total": {}}, {"total": {}})]
    [True, False]
    """
    if not isinstance(wanted, Mapping) or not isinstance(offered, Mapping):
        return True
    options = wanted.get("anyOf", wanted.get("oneOf"))
    if isinstance(options, list):
        return all(names_all(option, offered) for option in options)
    if "properties" in wanted and "properties" in offered:
        asked, known = wanted["properties"], offered["properties"]
        return asked.keys() == known.keys() and all(names_all(asked[name], known[name]) for name in known)
    return names_all(wanted.get("items"), offered.get("items"))


def _is_kind(value: Any, schema: Schema) -> bool:
    kinds = {"object": dict, "array": list, "string": str, "null": type(None)}
    return isinstance(value, kinds.get(str(schema.get("type")), ()))  # type: ignore[arg-type]


def _filled(schema: Any, definitions: Mapping[str, Any], param: str, depth: int) -> Any:
    """A schema with every `$ref` replaced by what it names."""
    if depth > DEPTH:
        raise refused(param, "nested too deep, or a schema that contains itself")
    if isinstance(schema, list):
        return [_filled(item, definitions, param, depth + 1) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    if "$ref" in schema:
        name = schema["$ref"]
        if not isinstance(name, str) or name not in definitions:
            raise refused(param, "a `$ref` that names none of its `$defs`")
        return _filled(definitions[name], definitions, param, depth + 1)
    return {
        key: value
        if key in ("$defs", "definitions", "enum", "const")
        else _filled(value, definitions, param, depth + 1)
        for key, value in schema.items()
    }


def _problems(wanted: Any, offered: Schema, where: str) -> Iterator[str]:
    """Why a value that fits `offered` may not fit `wanted`."""
    if wanted is True or wanted == {}:
        return
    if not isinstance(wanted, Mapping):
        yield f"{where or 'the schema'} is none"
        return
    for kind in _alternatives(offered):
        options = list(_alternatives(wanted))
        reasons = [next(_kind_problems(option, kind, where), None) for option in options]
        if all(reason is not None for reason in reasons):
            yield str(reasons[0]) if reasons else f"{where or 'the schema'} allows no value"
            return


def _alternatives(schema: Schema) -> Iterator[Schema]:
    """A schema as simple ones of which a value fits at least one."""
    for key in ("anyOf", "oneOf"):
        inner = schema.get(key)
        if isinstance(inner, list):
            for option in inner:
                if isinstance(option, Mapping):
                    yield from _alternatives(option)
            return
    if isinstance(schema.get("type"), list):
        yield from ({**schema, "type": kind} for kind in schema["type"])
    else:
        yield schema


def _kind_problems(wanted: Schema, offered: Schema, where: str) -> Iterator[str]:
    name = f"`{where}`" if where else "the reply"
    if "enum" in offered:
        yield from _values_problems(wanted, offered["enum"], name)
        return
    unknown = sorted(key for key in ("allOf", "not", "if", "patternProperties", "prefixItems") if key in wanted)
    if unknown:
        yield f"{name}: `{unknown[0]}` is not compared"
        return
    kind, have = wanted.get("type"), offered.get("type")
    if kind is not None and kind != have and not (kind == "number" and have == "integer"):
        yield f"{name} is {_article(have)}, not {_article(kind)}"
        return
    if "enum" in wanted or "const" in wanted:
        yield f"{name} is not limited to the values listed"
    elif have == "object":
        yield from _object_problems(wanted, offered, where)
    elif have == "array":
        yield from _array_problems(wanted, offered, where, name)
    elif have == "string":
        yield from _string_problems(wanted, offered, name)
    elif have in ("number", "integer"):
        yield from _number_problems(wanted, name)


def _values_problems(wanted: Schema, values: Any, name: str) -> Iterator[str]:
    kinds = {"string": str, "boolean": bool, "null": type(None)}
    allowed = wanted.get("enum", [wanted["const"]] if "const" in wanted else None)
    for value in values:
        if allowed is not None and value not in allowed:
            yield f"{name} can be {value!r}, which is not listed"
        expected = kinds.get(str(wanted.get("type")))
        if allowed is None and "type" in wanted and (expected is None or not isinstance(value, expected)):
            yield f"{name} can be {value!r}"
        if any(key in wanted for key in ("pattern", "format", "minLength")):
            yield f"{name} is one of listed values, no text of a `pattern`, `format` or `minLength`"


def _object_problems(wanted: Schema, offered: Schema, where: str) -> Iterator[str]:
    known = offered.get("properties", {})
    asked = wanted.get("properties", {})
    if not isinstance(asked, Mapping):
        yield "`properties` is no object"
        return
    required = wanted.get("required", [])
    names = [*asked, *(required if isinstance(required, list) else [])]
    missing = [str(name) for name in names if name not in known]
    if missing:
        yield f"no field `{'.'.join(filter(None, (where, missing[0])))}` — it has {', '.join(known)}"
        return
    for name, inner in asked.items():
        yield from _problems(inner, known[name], ".".join(filter(None, (where, name))))


def _array_problems(wanted: Schema, offered: Schema, where: str, name: str) -> Iterator[str]:
    if wanted.get("minItems"):
        yield f"{name} may be empty (`minItems`)"
    if wanted.get("uniqueItems"):
        yield f"{name} may hold equal entries (`uniqueItems`)"
    most = wanted.get("maxItems")
    if most is not None and most < offered.get("maxItems", float("inf")):
        yield f"{name} may have up to {offered.get('maxItems')} entries (`maxItems`)"
    yield from _problems(wanted.get("items", {}), offered.get("items", {}), where + "[]")


def _string_problems(wanted: Schema, offered: Schema, name: str) -> Iterator[str]:
    if wanted.get("minLength"):
        yield f"{name} is empty where the document lacks it (`minLength`)"
    if "pattern" in wanted and wanted["pattern"] != offered.get("pattern"):
        yield f"{name} need not match the `pattern`"
    if "format" in wanted:
        yield f"{name} is text, empty where the document lacks it (`format`)"
    most = wanted.get("maxLength")
    if most is not None and "pattern" not in offered and most < offered.get("maxLength", float("inf")):
        yield f"{name} may have up to {offered.get('maxLength')} characters (`maxLength`)"


def _number_problems(wanted: Schema, name: str) -> Iterator[str]:
    bounds = {
        key: wanted[key] for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum") if key in wanted
    }
    for key, bound in bounds.items():
        if not isinstance(bound, (int, float)) or abs(bound) < SAFE_INTEGER:
            yield f"{name} is not bounded (`{key}`)"
    if "multipleOf" in wanted:
        yield f"{name} is any number (`multipleOf`)"


def _article(kind: Any) -> str:
    return "null where the document lacks it" if kind == "null" else f"{kind}"
