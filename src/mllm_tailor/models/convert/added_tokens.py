"""Restore added tokens to the ids that their checkpoint states.

InternLM2 and Yi index control tokens on unused entries inside their vocabulary (`<|im_start|>` is 92543 of 92544). The
tokenizers of transformers append such tokens to the vocabulary instead, so their ids would differ from those of the
model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from mllm_tailor.core.errors import DataError, ModelError
from mllm_tailor.core.io import read_json

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def stated_tokens(folder: Path) -> dict[int, dict[str, Any]]:
    """Id and settings of every added token, of `tokenizer_config.json` and of the older `added_tokens.json`."""
    older, newer = stated_in(folder / "added_tokens.json"), stated_in(folder / "tokenizer_config.json")
    tokens: dict[int, dict[str, Any]] = {int(index): {"content": token} for token, index in older.items()}
    return tokens | {int(index): dict(entry) for index, entry in newer.get("added_tokens_decoder", {}).items()}


def stated_in(file: Path) -> dict[str, Any]:
    """The contents of a JSON file; empty if there is no file.

    Raises:
        ModelError: for a file that is not JSON.
    """
    try:
        return dict(read_json(file)) if file.exists() else {}
    except (DataError, TypeError, ValueError) as error:
        raise ModelError(f"{file}: damaged ({error}) — copy or download it again") from None


def restore_added_token_ids(tokenizer: PreTrainedTokenizerBase, stated: Mapping[int, Mapping[str, Any]]) -> None:
    """Move added tokens to their stated ids; vocabulary entries with those ids are removed."""
    names = {index: str(entry["content"]) for index, entry in stated.items()}
    if all(tokenizer.convert_tokens_to_ids(token) == index for index, token in names.items()):
        return
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    model = core["model"]
    taken = set(names.values())
    kept = {piece: index for piece, index in model["vocab"].items() if index not in names and piece not in taken}
    model["vocab"] = kept | {token: index for index, token in names.items()}
    model["merges"] = [pair for pair in model["merges"] if _known(pair, model["vocab"])]
    usual = dict.fromkeys(FLAGS, False) | {"special": True}
    core["added_tokens"] = [{"id": index, **usual, **entry} for index, entry in sorted(stated.items())]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(core))


def _known(pair: list[str] | str, vocabulary: Mapping[str, int]) -> bool:
    left, right = pair.split(" ") if isinstance(pair, str) else pair
    return left in vocabulary and right in vocabulary and left + right in vocabulary
