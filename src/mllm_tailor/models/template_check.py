"""Refuse a chat template that works or writes without end, before anything is rendered in this process.

A template is a program of whoever made the checkpoint: jinja2's sandbox keeps it from files and from the network, not
from nested loops or from texts of gigabytes. Each is first tried on a few conversations in a process with limits.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import ModelError
from mllm_tailor.models.template_probe import TOO_MUCH

PROBE = Path(__file__).with_name("template_probe.py")
CPU_SECONDS = 10  # a template takes milliseconds
WALL_SECONDS = 300.0  # where the machine is busy, or cannot count CPU seconds
MEMORY = 2**30  # bytes of address space
CHARACTERS = 2**22  # of one rendered conversation of the probe, which has some thousand
STATED = ("bos_token", "eos_token", "pad_token", "unk_token", "image_token", "video_token", "audio_token")
LONG = "A long question. " * 500


def check_template(template: str, tokenizer: Any, folder: Path) -> None:
    """Try a template in a process of its own.

    Raises:
        ModelError: when it takes too long, too much memory, or writes too much.
    """
    variables = {name: str(getattr(tokenizer, name, None) or "") for name in STATED}
    if problem := _problem(template, json.dumps(variables, sort_keys=True)):
        raise ModelError(f"{folder}: the chat template {problem} — copy or download chat_template.jinja again")


@lru_cache(maxsize=64)
def _problem(template: str, variables: str) -> str:
    request = {
        "template": template,
        "conversations": _conversations(),
        "variables": json.loads(variables),
        "seconds": CPU_SECONDS,
        "bytes": MEMORY,
        "characters": CHARACTERS,
    }
    try:
        ended = subprocess.run(
            [sys.executable, "-P", str(PROBE)],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"does not end within {WALL_SECONDS:.0f} s"
    if ended.returncode == TOO_MUCH:
        return f"writes over {CHARACTERS:,} characters for a short conversation, or takes over {MEMORY:,} bytes"
    return f"does not end within {CPU_SECONDS} s of computing" if ended.returncode < 0 else ""


def _conversations() -> list[list[Mapping[str, Any]]]:
    """A question, one with each kind of media and a system text, and a long exchange."""
    media = [{"type": kind} for kind in ("image", "video", "audio")]
    exchange = [_turn(role, LONG) for role in ("user", "assistant")] * 4
    return [
        [_turn("user", "Total?", {"type": "image"})],
        [_turn("system", "Be brief."), _turn("user", "Total?", *media), _turn("assistant", "9.00")],
        [*exchange, _turn("user", "Total?", *media * 4)],
    ]


def _turn(role: str, text: str, *media: Mapping[str, str]) -> Mapping[str, Any]:
    return {"role": role, "content": [*media, {"type": "text", "text": text}]}
