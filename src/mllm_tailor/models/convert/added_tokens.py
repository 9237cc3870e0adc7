"""Added tokens at the ids their checkpoint states.

InternLM2 and Yi name control tokens over unused pieces in the middle of their vocabulary (`<|im_start|>` is 92543 of
92544). The tokenizers of transformers put such tokens behind the vocabulary instead, so that every id from there on
would be another one's.
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
    found: dict[int, dict[str, Any]] = {int(place): {"content": token} for token, place in older.items()}
    return found | {int(place): dict(entry) for place, entry in newer.get("added_tokens_decoder", {}).items()}


def stated_in(file: Path) -> dict[str, Any]:
    """What a JSON file says; nothing where there is none.

    Raises:
        ModelError: for a file that is no JSON.
    """
    try:
        return dict(read_json(file)) if file.exists() else {}
    except (DataError, TypeError, ValueError) as error:
        raise ModelError(f"{file}: damaged ({error}) — copy or download it again") from None


def restore_added_token_ids(tokenizer: PreTrainedTokenizerBase, stated: Mapping[int, Mapping[str, Any]]) -> None:
    """Move added tokens to their stated ids; pieces of the vocabulary that stood there are no more."""
    names = {place: str(entry["content"]) for place, entry in stated.items()}
    if all(tokenizer.convert_tokens_to_ids(token) == place for place, token in names.items()):
        return
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    model = core["model"]
    taken = set(names.values())
    kept = {piece: place for piece, place in model["vocab"].items() if place not in names and piece not in taken}
    model["vocab"] = kept | {token: place for place, token in names.items()}
    model["merges"] = [pair for pair in model["merges"] if _known(pair, model["vocab"])]
    usual = dict.fromkeys(FLAGS, False) | {"special": True}
    core["added_tokens"] = [{"id": place, **usual, **entry} for place, entry in sorted(stated.items())]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(core))


def _known(pair: list[str] | str, vocabulary: Mapping[str, int]) -> bool:
    left, right = pair.split(" ") if isinstance(pair, str) else pair
    return left in vocabulary and right in vocabulary and left + right in vocabulary
