"""Render a chat template with limits of time, memory and size: a program of its own, run by `template_check`.

It imports jinja2 alone, so that it starts quickly and nothing of the parent can be reached from a template. Standard
input is `{"template", "conversations", "variables", "seconds", "bytes", "characters"}` as JSON. The exit status is
`TOO_MUCH` when a rendered text or what it takes is too large. Errors of the template count for nothing here: whoever
renders it later reports them with the conversation in question.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

TOO_MUCH = 3


class Generation(Extension):
    """The tag of transformers that marks what the assistant writes; here its content alone counts."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> Environment:
    """As transformers sets it up for chat templates."""
    result = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    result.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    result.globals["raise_exception"] = _refuse
    result.globals["strftime_now"] = lambda form: form
    return result


def _refuse(message: str) -> None:
    raise TemplateError(message)


def limit(seconds: int, size: int) -> None:
    """Take no more CPU seconds and bytes of address space than this, where the system can see to it."""
    try:
        resource = importlib.import_module("resource")
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    except (ImportError, AttributeError, OSError, ValueError):  # the parent watches the time
        return


def probe(request: dict[str, Any]) -> int:
    """Render every conversation, with and without a generation prompt."""
    limit(request["seconds"], request["bytes"])
    try:
        template = environment().from_string(request["template"])
        for messages in request["conversations"]:
            for prompt in (True, False):
                length = 0
                for piece in template.generate(messages=messages, add_generation_prompt=prompt, **request["variables"]):
                    length += len(piece)
                    if length > request["characters"]:
                        return TOO_MUCH
    except MemoryError:
        return TOO_MUCH
    except Exception:  # noqa: BLE001
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(probe(json.load(sys.stdin)))
