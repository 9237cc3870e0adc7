"""Words of original InternVL checkpoints: pieces, control tokens, how a text begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
from fixtures.original_checkpoint import SAMPLE
from fixtures.original_internvl import write_checkpoint

from mllm_tailor.core.sample import Sample
from mllm_tailor.models import NO_LOSS, encode, load_model, save_model
from mllm_tailor.models.convert.tokenizer import STYLES

TEXTS = ["RM 9.50", "  two spaces", "tabs\tand\nlines\n", "总计 é 😀", "a", "The total  of this", "Jalan Besar 50000"]


@pytest.mark.slow
@pytest.mark.parametrize("language", ["InternLM2ForCausalLM", "Phi3ForCausalLM"])
def test_words_become_the_pieces_sentencepiece_makes(language: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "original", language)
    model = load_model(tmp_path / "original")
    pieces = without_dummy_prefix(tmp_path / "original" / "tokenizer.model")
    for text in TEXTS:
        encoded = encode(Sample("a", prompt=text, answer=text), model)
        labels = encoded.labels[encoded.labels != NO_LOSS].tolist()
        assert labels[:-1] == pieces.encode(text)
        assert labels[-1] in model.stop_ids
        ids = encoded.ids.tolist()
        assert ids[0] == 1  # the token every text begins with
        if language == "InternLM2ForCausalLM":
            start, end = (
                ids.index(model.tokenizer.convert_tokens_to_ids(f"<|im_{name}|>")) for name in ("start", "end")
            )
            assert ids[start + 1 : end] == pieces.encode("system\n" + STYLES["internlm2-chat"].system)


@pytest.mark.slow
def test_control_tokens_stand_where_the_checkpoint_has_them(tmp_path: Path) -> None:
    """InternLM2 names them over unused pieces of its vocabulary: 92543 of 92544 begins a turn."""
    write_checkpoint(tmp_path / "original")
    stated = json.loads((tmp_path / "original" / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    model = load_model(tmp_path / "original")
    save_model(model, tmp_path / "saved")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "original" / "tokenizer.model"))
    assert pieces.id_to_piece(425) == "[UNUSED_TOKEN_5]" and stated["425"]["content"] == "<|im_start|>"
    assert pieces.vocab_size() == 426 and stated["428"]["content"] == "<IMG_CONTEXT>"
    for opened in (model, load_model(tmp_path / "saved")):
        for place, token in stated.items():
            assert opened.tokenizer.convert_tokens_to_ids(token["content"]) == int(place)
        assert opened.stop_ids == {424} and opened.model.config.image_token_id == 428
        ids = encode(SAMPLE, opened).ids.tolist()
        assert ids.count(425) == 3 and ids.count(424) == 3 and max(ids) == 428


def test_places_in_the_older_file_hold_too(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "original")
    file = tmp_path / "original" / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    tokens = settings.pop("added_tokens_decoder")
    older = {token["content"]: int(place) for place, token in tokens.items() if int(place) > 2}
    (tmp_path / "original" / "added_tokens.json").write_text(json.dumps(older))
    file.write_text(json.dumps(settings))
    model = load_model(tmp_path / "original")
    assert {token: model.tokenizer.convert_tokens_to_ids(token) for token in older} == older


@pytest.mark.slow
@pytest.mark.parametrize("begins", [True, False])
def test_texts_begin_as_the_tokenizer_states(begins: bool, tmp_path: Path) -> None:
    """The Llama of InternVL 1.2 and InternVL2-40B (Yi) puts no token before a text."""
    write_checkpoint(tmp_path / "original", "LlamaForCausalLM")
    file = tmp_path / "original" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"add_bos_token": begins}))
    ids = encode(Sample("a", prompt="?"), load_model(tmp_path / "original")).ids.tolist()
    assert (ids[0] == 1) == begins and 1 not in ids[1:]


def without_dummy_prefix(file: Path) -> sentencepiece.SentencePieceProcessor:
    """The vocabulary as the originals load it: no space before a piece of text."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(file.read_bytes())
    proto.normalizer_spec.add_dummy_prefix = False
    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
