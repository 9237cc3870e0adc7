"""Tokenizer, chat template and system text of an original InternVL checkpoint, without its code."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2Tokenizer

from mllm_tailor.core.errors import ModelError, nearest
from mllm_tailor.models.chat_template_builder import IMAGE, IMAGE_END, IMAGE_START, VIDEO, build_chat_template
from mllm_tailor.models.convert.added_tokens import restore_added_token_ids, stated_in, stated_tokens


@dataclass(frozen=True)
class Style:
    """The format of turns, and the system text of checkpoints without any."""

    role: tuple[str, str]
    close: str
    after: str
    system: str


CHATML = ("<|im_start|>", "\n")
SHANGHAI = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
STYLES = {
    "internlm2-chat": Style(CHATML, "<|im_end|>", "", SHANGHAI),
    "Hermes-2": Style(CHATML, "<|im_end|>", "", SHANGHAI),
    "phi3-chat": Style(("<|", "|>\n"), "<|end|>", "", SHANGHAI),
    "internvl2_5": Style(
        CHATML,
        "<|im_end|>",
        "\n",
        "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。",
    ),
}
USUAL_STYLES = {
    "InternLM2ForCausalLM": "internlm2-chat",
    "Qwen2ForCausalLM": "Hermes-2",
    "Phi3ForCausalLM": "phi3-chat",
}


def style_of(stated: Mapping[str, Any], folder: Path, language: str) -> tuple[str, Style]:
    """The conversation style the checkpoint names.

    Raises:
        ModelError: when the style is unknown.
    """
    name = stated.get("template") or USUAL_STYLES.get(language, "")
    if name not in STYLES:
        raise ModelError(f"{folder / 'config.json'}: conversation template {name!r} — {nearest(name, STYLES)}")
    return name, STYLES[name]


def system_text(stated: Mapping[str, Any], folder: Path, name: str) -> str:
    """The system text: from the configuration, from the checkpoint's conversation.py, or the default of its style.

    It differs between checkpoints of the same style (Mini-InternVL 1.5 and InternVL2) and affects scores. The Python
    file is parsed as text; it is not run.
    """
    if isinstance(stated.get("system_message"), str):
        return str(stated["system_message"])
    file = folder / "conversation.py"
    if file.is_file():
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError, RecursionError) as error:
            raise ModelError(f"{file}: cannot be read ({error}) — give the system text as model.system") from None
        for node in ast.walk(tree):
            words = _literals(node)
            if words.get("name") == name and "system_message" in words:
                return words["system_message"]
    return STYLES[name].system


def _literals(node: ast.AST) -> dict[str, str]:
    """The text arguments of a call, by name."""
    if not isinstance(node, ast.Call):
        return {}
    values = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
    return {
        name: value.value
        for name, value in values.items()
        if isinstance(value, ast.Constant) and isinstance(value.value, str)
    }


def template_of(tokenizer: PreTrainedTokenizerBase, style: Style, system: str, language: str) -> str:
    """The chat template that reproduces the original prompt, token for token."""
    begins = tokenizer.bos_token is not None and tokenizer.encode("a")[0] == tokenizer.bos_token_id
    # The original Phi-3 tokenizer puts a space token between the first token and the first turn.
    begin = (tokenizer.bos_token if begins else "") + (" " if language == "Phi3ForCausalLM" else "")
    return build_chat_template(style.role, style.close, style.after, begin=begin, system=system)


def native_tokenizer(folder: Path, language: str, style: Style) -> PreTrainedTokenizerBase:
    """The tokenizer from its vocabulary files, by a class of transformers.

    Raises:
        ModelError: when files are missing, or the tokenizer lacks the image tokens.
    """
    special: dict[str, Any] = {
        "start_image_token": IMAGE_START,
        "end_image_token": IMAGE_END,
        "context_image_token": IMAGE,
        "video_token": VIDEO,
    }
    kind, options = _tokenizer_class(folder, language)
    tokenizer: PreTrainedTokenizerBase
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # tokenizer readers raise anything, down to bare Exception
        raise ModelError(f"{folder}: the tokenizer files cannot be read ({error}) — download them again") from error
    restore_added_token_ids(tokenizer, stated_tokens(folder))
    missing = [token for token in (IMAGE_START, IMAGE_END, IMAGE, style.close) if token not in tokenizer.get_vocab()]
    if missing:
        raise ModelError(f"{folder}: the tokenizer lacks {', '.join(missing)} — these files are of another checkpoint")
    for name in ("auto_map", "trust_remote_code"):  # settings that name code are dropped
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.SPECIAL_TOKENS_ATTRIBUTES = [*tokenizer.SPECIAL_TOKENS_ATTRIBUTES, *special]
    tokenizer.add_special_tokens(special)
    tokenizer.eos_token = style.close  # ends a reply; the original stops at no other token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = style.close
    tokenizer.padding_side = "left"
    return tokenizer


def _tokenizer_class(folder: Path, language: str) -> tuple[type[PreTrainedTokenizerBase], dict[str, Any]]:
    """The class, and the options that the original classes assumed."""
    if language == "Qwen2ForCausalLM":
        return Qwen2Tokenizer, {}
    if language == "LlamaForCausalLM" and (folder / "tokenizer.json").exists():
        return PreTrainedTokenizerFast, {}
    if not (folder / "tokenizer.model").exists() and not (folder / "tokenizer.json").exists():
        raise ModelError(f"{folder / 'tokenizer.model'}: missing — copy it there or download it again")
    stated = stated_in(folder / "tokenizer_config.json")
    begins = {"add_bos_token": stated.get("add_bos_token") is not False}
    if language == "LlamaForCausalLM":
        return LlamaTokenizer, begins | {"legacy": stated.get("legacy") is not False}
    # Their vocabularies assume no leading space, which Llama adds to every text.
    return LlamaTokenizer, begins | {"add_prefix_space": False, "legacy": False}
