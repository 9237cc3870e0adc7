"""Good requests to every endpoint of `tailor serve` that takes a body."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

MODEL = "g"
SCHEMA = {"type": "object", "properties": {"total": {"type": "string"}}, "required": ["total"]}
FORM = {"type": "json_schema", "json_schema": {"name": "r", "schema": SCHEMA}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
CHOICES = {"type": "choice", "instructions": "?", "choices": [{"value": "a"}, {"value": "b"}]}
JSON = "application/json"
EDGE = "edge-of-a-part"


def good_requests(image: Path) -> list[tuple[str, Any]]:
    """`(path, body)` of each."""
    address = "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()
    shown = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": "Total?"}]
    chat = {"model": MODEL, "messages": [{"role": "user", "content": shown}], "max_tokens": 1}
    turns = [{"role": "system", "content": "s"}, *chat["messages"], {"role": "assistant", "content": "a"}]
    row = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": chat}
    given = {"role": "user", "content": [{"type": "input_image", "image_url": address}]}
    form = {"type": "json_schema", "name": "r", "schema": SCHEMA}
    return [
        ("/v1/chat/completions", {**chat, "response_format": FORM, "seed": 1, "logprobs": True, "top_logprobs": 2}),
        ("/v1/chat/completions", {**chat, "tools": [TOOL], "tool_choice": "required", "stream": True}),
        ("/v1/chat/completions", {**chat, "messages": [*turns, chat["messages"][0]]}),
        ("/v1/responses", {"model": MODEL, "input": [given], "text": {"format": form}, "max_output_tokens": 1}),
        ("/v1/decisions", {"model": MODEL, "input": "x", "questions": [CHOICES]}),
        ("/v1/extract", {"model": MODEL, "file": address}),
        ("/v1/batches", {"input_file_id": "x", "endpoint": "/v1/responses", "completion_window": "24h"}),
        ("/v1/files", row),
    ]


def encoded(path: str, text: str) -> tuple[bytes, str]:
    """Body and type: `/v1/files` takes a form."""
    content = text.encode("utf-8", "surrogatepass")
    if path != "/v1/files":
        return content, JSON
    begin = f"--{EDGE}\r\nContent-Disposition: form-data; name=".encode()
    body = begin + b'"purpose"\r\n\r\nbatch\r\n' + begin + b'"file"; filename="a.jsonl"\r\n\r\n' + content
    return body + f"\r\n--{EDGE}--\r\n".encode(), f"multipart/form-data; boundary={EDGE}"


def as_text(body: Any) -> str:
    """A body as clients send it."""
    return json.dumps(body)
