"""The bodies of requests, as /openapi.json shows them. What is not honoured is refused by `parameters`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(max_length=200)]


class Body(BaseModel):
    """A JSON body; unknown names are kept so that they can be refused by name."""

    model_config = ConfigDict(extra="allow", strict=False)


class ResponseFormat(Body):
    """The form of a reply."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class StreamOptions(Body):
    """What a stream ends with."""

    include_usage: bool | None = None


class ChatRequest(Body):
    """POST /v1/chat/completions."""

    model: Text
    messages: list[dict[str, Any]] = Field(min_length=1, max_length=1000)
    response_format: ResponseFormat | None = None
    tools: list[dict[str, Any]] | None = Field(None, max_length=128)
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    seed: int | None = Field(None, description="accepted: replies are the same for every seed")
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, Any] | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    modalities: list[str] | None = None
    service_tier: str | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    user: str | None = Field(None, description="accepted, and not used")


class TextFormat(Body):
    """The form of a response's text."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    strict: bool | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class TextOptions(Body):
    """`text` of a response."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ResponsesRequest(Body):
    """POST /v1/responses."""

    model: Text
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    text: TextOptions | None = None
    tools: list[dict[str, Any]] | None = Field(None, max_length=128)
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    stream: bool | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    truncation: str | None = None
    background: bool | None = None
    include: list[str] | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    user: str | None = Field(None, description="accepted, and not used")


class Choice(Body):
    """One of several answers."""

    value: str | bool
    description: str | None = None


class Level(Body):
    """One of several ordered levels."""

    label: str
    description: str | None = None


class DecisionQuestion(Body):
    """A question with a closed set of answers."""

    type: Literal["predicate", "choice", "score"]
    instructions: str | list[dict[str, Any]]
    name: str | None = None
    choices: list[Choice] | None = Field(None, max_length=255)
    levels: list[Level] | None = Field(None, max_length=255)


class DecisionsRequest(Body):
    """POST /v1/decisions."""

    model: Text
    input: str | list[dict[str, Any]]
    questions: list[DecisionQuestion] = Field(min_length=1, max_length=400)
    safety_identifier: str | None = Field(None, description="accepted, and not used")


class ExtractRequest(Body):
    """POST /v1/extract as JSON; files of a form are taken, too."""

    model: Text | None = Field(None, description="may be left out where one run is served")
    file: str | list[str] = Field(description="a data: address, or a list of them (the pages of one document)")
    where: bool = Field(True, description="find where on its page each value stands")


class BatchRequest(Body):
    """POST /v1/batches."""

    input_file_id: Text
    endpoint: Literal["/v1/chat/completions", "/v1/responses"]
    completion_window: Literal["24h"]
    metadata: dict[str, Any] | None = None
