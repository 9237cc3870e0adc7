"""Render a conversation as text by the chat template of the checkpoint.

Only the template may write control tokens: a control token in a question, an answer or a label of the data
(`<|im_end|>`, `<IMG_CONTEXT>`; CVE-2026-44222) is encoded as the letters of its text. Tokens that mark up content,
such as `<box>`, are allowed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import encode_marked_chat, mark_control_tokens

from mllm_tailor.core.conversation import Conversation, Message
from mllm_tailor.core.errors import DataError, ModelError
from mllm_tailor.core.io import read_json
from mllm_tailor.core.sample import MediaKind

CONTENT_TOKENS = frozenset(
    {"<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"}
    | {f"<|{name}_{end}|>" for name in ("object_ref", "box", "quad") for end in ("start", "end")}
)
# What transformers puts before and after a marked token. The second alone is a boundary that no token may cross.
MARK, _, CUT = mark_control_tokens("x", re.compile("x")).partition("x")
ChatMessage = dict[str, Any]  # as chat templates take it


@dataclass(frozen=True)
class RenderedConversation:
    """A conversation as text: `prompt` ends where the reply begins; `reply` is the answer with its end of turn.

    `further` holds what follows for every further question: the text up to its reply, and the reply.
    """

    prompt: str
    reply: str | None
    further: tuple[tuple[str, str], ...] = ()


def chat_messages(conversation: Conversation, system: str | None) -> list[ChatMessage]:
    """The messages up to the question as chat templates take them; `system` is for conversations without any."""
    messages = conversation.messages
    text = system if conversation.system is None else conversation.system
    if messages[0].role == "system" and conversation.system is None:
        text = None
    opening = [Message("system", (text,))] if text else []
    return [{"role": message.role, "content": _parts(message)} for message in (*opening, *messages)]


def _parts(message: Message) -> list[dict[str, str]]:
    """Every content part in order; with only media, an empty text is added, which templates expect."""
    parts: list[dict[str, str]] = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": part.kind} for part in message.content
    ]
    return parts if any(isinstance(part, str) for part in message.content) else [*parts, {"type": "text", "text": ""}]


def render(conversation: Conversation, processor: Any, system: str | None) -> RenderedConversation:
    """The conversation as text, with control tokens in the data marked as plain letters.

    Raises:
        DataError: naming the row, for an empty answer, or for a message or a file that the template omits.
        ModelError: for a template that is missing or that does not keep the prompt when the answer is added.
    """
    name = conversation.name
    if conversation.answer is not None and not conversation.answer.strip():
        raise DataError(f"{name}: the answer is empty — label this row or leave it out")
    control = _pattern(control_tokens(processor))
    asked = mark_control_tokens(chat_messages(conversation, system), control)
    prompt = _apply(processor, asked, add_generation_prompt=True)
    _check_whole(conversation, asked, prompt, processor)
    if conversation.answer is None:
        return RenderedConversation(prompt, None)
    asked.append(_message("assistant", mark_control_tokens(conversation.answer, control)))
    whole = _apply(processor, asked)
    if not whole.startswith(prompt):
        raise ModelError(
            "the chat template changes the prompt once the answer is known, so the loss cannot be restricted to the "
            "answer — fix chat_template.jinja of this checkpoint"
        )
    further = _render_further(conversation, asked, whole, processor, control)
    return RenderedConversation(prompt, whole[len(prompt) :], tuple(further))


def _render_further(
    conversation: Conversation, asked: list[ChatMessage], before: str, processor: Any, control: re.Pattern[str]
) -> Iterator[tuple[str, str]]:
    """What follows `before`, which `asked` renders to, for every further question: the text up to its reply, the reply.

    Raises:
        ModelError: for a template that shows earlier turns in another way once later ones follow.
    """
    for exchange in conversation.further:
        asked = [*asked, _message("user", mark_control_tokens(exchange.question, control))]
        prompt = _apply(processor, asked, add_generation_prompt=True)
        asked = [*asked, _message("assistant", mark_control_tokens(exchange.answer, control))]
        whole = _apply(processor, asked)
        if not (whole.startswith(prompt) and prompt.startswith(before)):
            raise ModelError(
                "the chat template of this model shows earlier turns in another way once later ones follow, so they "
                "cannot be trained together — set data.transcription_turns: false"
            )
        yield prompt[len(before) :], whole[len(prompt) :]
        before = whole


def _message(role: str, text: str) -> ChatMessage:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def state_system(processor: Any, system: str) -> None:
    """Make a system text part of the chat template, for conversations without one; so vLLM and others use it too.

    Raises:
        ModelError: for a template that shows no system text.
    """
    asked, opening = [_message("user", "?")], _message("system", system)
    wanted = _apply(processor, [opening, *asked], add_generation_prompt=True)
    if _apply(processor, asked, add_generation_prompt=True) == wanted:
        return
    before = (
        "{%- if not messages or messages[0]['role'] != 'system' -%}{%- set messages = [{'role': 'system', 'content': "
        f"[{{'type': 'text', 'text': {json.dumps(system, ensure_ascii=False)}}}]}}] + messages -%}}{{%- endif -%}}"
    )
    for holder in (processor, processor.tokenizer):
        if isinstance(holder.chat_template, str):
            holder.chat_template = before + holder.chat_template
    if _apply(processor, asked, add_generation_prompt=True) != wanted:
        raise ModelError(f"the chat template of this checkpoint cannot hold the system text {system[:80]!r}")


def _check_whole(conversation: Conversation, asked: Sequence[ChatMessage], prompt: str, processor: Any) -> None:
    """Refuse a conversation that the template renders only in part: some omit system messages or images of replies.

    Raises:
        DataError: naming the row and what is missing.
    """
    for number, message in enumerate(asked, 1):
        words = [part["text"] for part in message["content"] if part["type"] == "text"]
        for text in words:
            # Templates omit the reasoning of earlier replies on purpose.
            if message["role"] != "assistant" and text.strip() not in prompt:
                raise DataError(
                    f"{conversation.name}: the chat template of this model leaves out message "
                    f"{number} (of the {message['role']}) — put its text into the question, or leave the row out"
                )
    written = re.sub(f"{MARK}.*?{CUT}", "", prompt, flags=re.DOTALL)  # without tokens in the text of the data
    for kind in get_args(MediaKind):
        count = sum(media.kind == kind for media in conversation.media)
        counts = {written.count(token) for token in _placeholders(processor, kind)} - {0}
        if count and counts and count not in counts:
            raise DataError(
                f"{conversation.name}: {count} {kind} files, but the chat template of this model "
                f"shows {max(counts)} — put them all into messages of the user"
            )


def _placeholders(processor: Any, kind: MediaKind) -> set[str]:
    """The tokens that may represent a file of this kind in a rendered prompt."""
    names = {"image": ("image_token", "boi_token"), "video": ("video_token",), "audio": ("audio_token",)}[kind]
    return {token for name in names if (token := getattr(processor, name, None))}


def _apply(processor: Any, conversation: Sequence[ChatMessage], *, add_generation_prompt: bool = False) -> str:
    template = processor.chat_template or processor.tokenizer.chat_template
    if not template:
        raise ModelError("this checkpoint has no chat template — put its chat_template.jinja beside the weights")
    try:
        text: str = processor.apply_chat_template(
            list(conversation),
            # SmolVLM's class would use another template for videos, although that of the checkpoint has them.
            template if "video" in template else None,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
        return text
    except Exception as error:  # a template is code of the checkpoint and may raise anything
        raise ModelError(
            f"the chat template cannot be used ({_first_line(error)}) — fix chat_template.jinja"
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def control_tokens(processor: Any) -> frozenset[str]:
    """What only the template may write: special tokens and media placeholders, except the marks of content."""
    special = {token.content for token in processor.tokenizer.added_tokens_decoder.values() if token.special}
    names = ("image_token", "video_token", "audio_token", "start_image_token", "end_image_token")
    placeholders = {getattr(processor, name, None) for name in names}
    return frozenset(token for token in special | placeholders if token and token not in CONTENT_TOKENS)


@lru_cache(maxsize=16)
def _pattern(tokens: frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str, *, continues: bool = False) -> list[int]:
    """Ids of rendered text: each control token of the template becomes an id, marked tokens become their letters.

    `continues`: the text follows another, so no tokenizer may put a space before it.
    """
    return encode_marked_chat(tokenizer, CUT + text if continues else text)


def stated_template(folder: Path, of_tokenizer: str | None) -> str | None:
    """The chat template of a folder: its file, in the new or the older form, else that of the tokenizer."""
    older = folder / "chat_template.json"
    if (folder / "chat_template.jinja").exists() or not older.exists():
        return of_tokenizer  # tokenizers read the new form themselves
    try:
        return str(read_json(older)["chat_template"])
    except (DataError, KeyError, TypeError):
        raise ModelError(f"{older}: damaged — copy or download it again") from None
