"""From a sample to the text of its conversation, in the checkpoint's own chat template.

Nobody but the template writes control tokens: one that stands in a question, an answer or on a label of the data
(`<|im_end|>`, `<IMG_CONTEXT>`; CVE-2026-44222) is read as the letters it consists of. Tokens that mark up content,
such as `<box>`, pass.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import encode_marked_chat, mark_control_tokens

from mllm_tailor.core.errors import DataError, ModelError
from mllm_tailor.core.sample import Sample

CONTENT_TOKENS = frozenset(
    {"<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"}
    | {f"<|{name}_{end}|>" for name in ("object_ref", "box", "quad") for end in ("start", "end")}
)
# What transformers puts before and behind a marked token. The second, on its own, is a place no token may reach across.
MARK, _, CUT = mark_control_tokens("x", re.compile("x")).partition("x")
Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """A rendered sample: `prompt` ends where the model is to speak; `reply` is the answer with what closes the turn."""

    prompt: str
    reply: str | None


def messages(sample: Sample, system: str | None) -> list[Message]:
    """Chat messages up to the question; pictures, clips and recordings stand in the first user turn."""
    turns = [*((turn.role, turn.text) for turn in sample.history), ("user", sample.prompt)]
    media = [{"type": media.kind} for media in sample.media]
    found: list[Message] = []
    if system := sample.system if sample.system is not None else system:
        found.append({"role": "system", "content": [{"type": "text", "text": system}]})
    for role, text in turns:
        shown, media = (media, []) if role == "user" else ([], media)
        found.append({"role": role, "content": [*shown, {"type": "text", "text": text}]})
    return found


def render(sample: Sample, processor: Any, system: str | None) -> Conversation:
    """The conversation as text, with control tokens that stand in the data marked as mere letters.

    Raises:
        DataError: for an empty answer.
        ModelError: for a template that is missing or that does not keep the prompt when the answer is added.
    """
    if sample.answer is not None and not sample.answer.strip():
        raise DataError(f"{sample.source or sample.id}: the answer is empty — label this row or leave it out")
    control = _pattern(control_tokens(processor))
    asked = mark_control_tokens(messages(sample, system), control)
    prompt = _apply(processor, asked, add_generation_prompt=True)
    if sample.answer is None:
        return Conversation(prompt, None)
    answer = mark_control_tokens(sample.answer, control)
    told = _apply(processor, [*asked, {"role": "assistant", "content": [{"type": "text", "text": answer}]}])
    if not told.startswith(prompt):
        raise ModelError(
            "the chat template changes the prompt once the answer is known, so the loss cannot be laid on the answer "
            "alone — mend chat_template.jinja of this checkpoint"
        )
    return Conversation(prompt, told[len(prompt) :])


def _apply(processor: Any, conversation: Sequence[Message], add_generation_prompt: bool = False) -> str:
    template = processor.chat_template or processor.tokenizer.chat_template
    if not template:
        raise ModelError("this checkpoint has no chat template — put its chat_template.jinja beside the weights")
    try:
        return processor.apply_chat_template(
            list(conversation),
            # One class (SmolVLM) would take a template of its own for clips, though the checkpoint's knows them.
            template if "video" in template else None,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except (TemplateError, TypeError) as error:
        raise ModelError(f"the chat template cannot be used ({error}) — mend chat_template.jinja") from error


def control_tokens(processor: Any) -> frozenset[str]:
    """What only the template may write: special tokens and media placeholders, but not the marks of content."""
    special = {token.content for token in processor.tokenizer.added_tokens_decoder.values() if token.special}
    names = ("image_token", "video_token", "audio_token", "start_image_token", "end_image_token")
    placeholders = {getattr(processor, name, None) for name in names}
    return frozenset(token for token in special | placeholders if token and token not in CONTENT_TOKENS)


@lru_cache(maxsize=16)
def _pattern(tokens: frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str, *, continues: bool = False) -> list[int]:
    """Ids of rendered text: the template's control tokens become one id each, marked ones become their letters.

    `continues` says that the text follows another, so that no tokenizer puts its opening space before it.
    """
    return encode_marked_chat(tokenizer, CUT + text if continues else text)
