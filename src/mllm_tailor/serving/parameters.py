"""Which parameters are honoured. One that is not known, or whose value cannot be honoured, is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from mllm_tailor.serving.errors import refused

GREEDY = "replies are the most probable ones, none is drawn"
Check = tuple[Callable[[Any], bool], str]


def _is(*values: Any) -> Callable[[Any], bool]:
    return lambda value: any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in values)


def _is_false(value: Any) -> bool:
    return value is False


CHAT_CHECKS: Mapping[str, Check] = {
    "temperature": (_is(0), f"{GREEDY} — 0, or leave it out"),
    "top_p": (_is(1), f"{GREEDY} — 1, or leave it out"),
    "n": (_is(1), f"{GREEDY}, so there is one — 1, or leave it out"),
    "stop": (_is([], ""), "replies end where the model ends them — leave it out"),
    "presence_penalty": (_is(0), "tokens are chosen by probability alone — 0, or leave it out"),
    "frequency_penalty": (_is(0), "tokens are chosen by probability alone — 0, or leave it out"),
    "logit_bias": (_is({}), "tokens are chosen by probability alone — leave it out"),
    "top_logprobs": (_is(0), "only the chosen token's probability is kept — 0, or leave it out"),
    "store": (_is_false, "nothing is stored — false, or leave it out"),
    "modalities": (_is(["text"]), "replies are text"),
    "metadata": (_is({}), "nothing is stored — leave it out"),
    "service_tier": (_is("auto", "default"), "there is one tier — auto, or leave it out"),
    "reasoning_effort": (_is("none", "minimal"), "the model answers at once — none, or leave it out"),
    "verbosity": (_is("medium"), "a tuned reply has one length — leave it out"),
}
RESPONSES_CHECKS: Mapping[str, Check] = {
    **{name: CHAT_CHECKS[name] for name in ("temperature", "top_p", "top_logprobs", "store", "metadata")},
    "service_tier": CHAT_CHECKS["service_tier"],
    "truncation": (_is("disabled"), "nothing is cut from a request — disabled, or leave it out"),
    "background": (_is_false, "use /v1/batches"),
    "include": (_is([]), "leave it out"),
    "previous_response_id": (_is(), "nothing is stored — send the earlier messages again"),
    "conversation": (_is(), "nothing is stored — send the earlier messages again"),
}


def check_parameters(request: BaseModel, checks: Mapping[str, Check]) -> None:
    """Refuse what cannot be honoured. None counts as absent, as OpenAI's clients send it.

    Raises:
        ApiError: naming the parameter.
    """
    for name, value in (request.model_extra or {}).items():
        if value is not None:
            raise refused(name, "this parameter is not known here")
    for name, (honoured, reason) in checks.items():
        value = getattr(request, name, None)
        if value is not None and not honoured(value):
            raise refused(name, reason)


def token_limit(first: int | None, second: int | None = None) -> int | None:
    """The smaller of two limits on a reply's tokens, where there is any."""
    return min((limit for limit in (first, second) if limit is not None), default=None)


def forced_tool(tools: Any, choice: Any) -> tuple[str, Any] | None:
    """Name and schema of the one function whose arguments the reply is to be; None where no tool is given.

    Chat completions nest a function in `function`, responses do not. `required` with one function and a named function
    are honoured: there the reply is an object of the function's schema. A model tuned to extract cannot decide whether
    to call one.

    Raises:
        ApiError: for any other use of tools.
    """
    if tools is None or tools == [] or choice == "none":
        if tools in (None, []) and choice not in (None, "none", "auto"):
            raise refused("tool_choice", "there are no `tools`")
        return None
    if not isinstance(tools, list):
        raise refused("tools", "should be a list")
    functions = {}
    for index, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or tool.get("type") != "function" or not function.get("name"):
            raise refused(f"tools[{index}]", "only functions are known")
        schema = {} if function.get("parameters") is None else function["parameters"]
        if not isinstance(schema, Mapping):
            raise refused(f"tools[{index}]", "`parameters` should be a JSON schema")
        functions[str(function["name"])] = schema
    name = _named(choice)
    if name is None and choice == "required" and len(functions) == 1:
        name = next(iter(functions))
    if name is None:
        raise refused(
            "tool_choice", "the reply can be the argument of one function — `required` with one, or name the function"
        )
    if name not in functions:
        raise refused("tool_choice", f"there is no function `{name}` in `tools`")
    return name, functions[name]


def _named(choice: Any) -> str | None:
    if not isinstance(choice, Mapping):
        return None
    function = choice.get("function", choice)
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else None
