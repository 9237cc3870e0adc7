"""vLLM in the decoder's place: it is given our ids, tiles and schema, and its replies become the same predictions.

What is asked, read and refused is tested without vLLM, on an engine of a few lines; where vLLM can be imported, the
embedded model reads drawn receipts in both.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fixtures.replies import means
from fixtures.small_job import make_samples, prepare, shake
from llguidance import LLMatcher
from PIL import Image
from typer.testing import CliRunner

from mllm_tailor.cli.app import app
from mllm_tailor.cli.main import VLLM
from mllm_tailor.core.errors import ModelError, RunError
from mllm_tailor.core.manifest import create, record
from mllm_tailor.core.sample import Media, Sample, Turn
from mllm_tailor.generation import predict, read_inputs
from mllm_tailor.generation.constrain import Grammar, Vocabulary
from mllm_tailor.generation.predictor import make_engine
from mllm_tailor.generation.sequence import ReplySequence
from mllm_tailor.generation.vllm import engine as vllm_writer
from mllm_tailor.generation.vllm.engine import VllmEngine
from mllm_tailor.generation.vllm.requests import check_family, check_served, image_inputs, to_sequence, with_json_style
from mllm_tailor.models import FAMILIES, InputSettings, LoadedModel, collate, encode, load_model
from mllm_tailor.recipe import DecodingMode
from mllm_tailor.recipe.schema import Predict, Tiles
from mllm_tailor.run import vllm_model as served
from mllm_tailor.run.merged import merged_folder
from mllm_tailor.run.predict import open_base, open_tuned
from mllm_tailor.run.resolve import resolve_saved
from mllm_tailor.run.run_dir import RunFolder
from mllm_tailor.run.vllm_model import drop_weights, merged_path
from mllm_tailor.tasks import open_task

NEAR = 0.5  # of logits up to 20, whose last place in bf16 is an eighth
FIELDS = {"company": {"type": "string", "max_length": 12}, "total": {"type": "amount", "max_length": 6}}
TASK = open_task("extract", FIELDS)


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> LoadedModel:
    return load_model(
        tiny_model_folder,
        dtype="float32",
        device="cpu",
        inputs=InputSettings(tiles=Tiles(min=1, max=4, thumbnail=True)),
    )


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Four pictures, two of one shape; a row about two of them; a file that is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    found = make_samples(folder, 4)
    (folder / "broken.png").write_bytes(b"no picture")
    both = Sample("both", (*found[0].media, *found[1].media))
    return [found[0], Sample("broken", (Media("image", folder / "broken.png"),)), *found[1:], both]


def test_pictures_are_the_tiles_we_encode(model: LoadedModel, samples: list[Sample]) -> None:
    encoded = encode(TASK.phrase(samples[-1].unlabelled()), model)
    first, second = image_inputs(encoded, model)
    image = model.processor.image_token_id
    for one in (first, second):
        inside = encoded.ids[one.start : one.start + one.tokens]
        assert set(inside.tolist()) == {image} and one.tokens == len(one.pixels) * model.processor.image_seq_length
        assert encoded.ids[one.start - 1] != image and encoded.ids[one.start + one.tokens] != image
    assert first.tokens + second.tokens == encoded.ids.tolist().count(image)
    assert torch.equal(torch.cat([first.pixels, second.pixels]), encoded.pixel_values)
    assert first.key() != second.key() == image_inputs(encoded, model)[1].key()


def test_tiles_without_a_place_are_refused(model: LoadedModel, samples: list[Sample]) -> None:
    encoded = encode(TASK.phrase(samples[0].unlabelled()), model)
    pixels = encoded.pixel_values
    for wrong in (pixels[1:], torch.cat([pixels, pixels[:1]])):
        with pytest.raises(ModelError, match="tiles"):
            image_inputs(replace(encoded, media={"pixel_values": wrong}), model)


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ('{"company": "Tea & Co", "total": "9.50"}', True),
        ('{"company": "caf\u00e9", "total": ""}', True),
        ('{"company": "a\\nb", "total": ""}', True),
        ('{"company":"Tea","total":"9.50"}', False),  # other separators
        ('{"company": "Tea",  "total": "9.50"}', False),  # other blanks
        ('{"company": "caf\\u00e9", "total": ""}', False),  # an escape that is never needed
        ('{"company": "thirteen long", "total": ""}', False),
        ('{"total": "9.50", "company": "Tea"}', False),
    ],
)
def test_vllm_allows_what_our_grammar_allows(model: LoadedModel, text: str, allowed: bool) -> None:
    """vLLM hands the schema to llguidance with looser defaults, which ours must come before."""
    vocabulary = Vocabulary(model.tokenizer, model.model.config.get_text_config().vocab_size, sorted(model.stop_ids))
    tokens = vocabulary.tokens.tokenize_str(text)
    theirs = LLMatcher(
        vocabulary.tokens,
        LLMatcher.grammar_from_json_schema(
            json.dumps(with_json_style(TASK.schema())), defaults={"whitespace_flexible": True}
        ),
    )
    assert (theirs.validate_tokens(tokens) == len(tokens)) is allowed
    ours = Grammar(TASK.schema(), vocabulary).guide()._matcher
    assert (ours.validate_tokens(tokens) == len(tokens)) is allowed


class Scripted:
    """vLLM as far as it is used here: gives out replies written beforehand, the last asked first, one a step."""

    def __init__(self, replies: dict[str, list[int]]) -> None:
        self.replies, self.asked, self.opened = replies, {}, {}
        self.closed: list[str] = []
        self.engine_core = SimpleNamespace(shutdown=lambda: self.closed.append("engine"))
        self.distributed = SimpleNamespace(cleanup_dist_env_and_memory=lambda: self.closed.append("memory"))
        self.SamplingParams = SimpleNamespace
        self.sampling_params = SimpleNamespace(
            StructuredOutputsParams=SimpleNamespace, RequestOutputKind=SimpleNamespace(FINAL_ONLY="final")
        )
        made = {"mm_input": lambda *given: given, "tokens_input": lambda ids: (ids,)}
        self.inputs = SimpleNamespace(engine=SimpleNamespace(**made))
        fields = {name: lambda *given, **_: given for name in ("flat_from_sizes", "batched", "shared")}
        self.multimodal = SimpleNamespace(
            inputs=SimpleNamespace(
                MultiModalFieldConfig=SimpleNamespace(**fields),
                MultiModalKwargsItems=SimpleNamespace(from_hf_inputs=lambda values, layout: values),
                PlaceholderRange=lambda start, tokens: (start, tokens),
            )
        )

    def LLM(self, **options: Any) -> Any:
        self.opened = options
        return SimpleNamespace(llm_engine=self)

    def add_request(self, name: str, prompt: tuple[Any, ...], settings: SimpleNamespace) -> None:
        self.asked[name] = (prompt, settings)

    def step(self) -> list[SimpleNamespace]:
        name, (prompt, settings) = self.asked.popitem()
        tokens = self.replies[str(prompt[2])][: settings.max_tokens]  # by the keys of its pictures
        scores = [{token: SimpleNamespace(logprob=-0.5)} for token in tokens]
        reply = SimpleNamespace(token_ids=tokens, logprobs=scores)
        return [SimpleNamespace(request_id=name, finished=True, outputs=[reply])]


def scripted(model: LoadedModel, samples: list[Sample], settings: Predict) -> Scripted:
    """An engine that says what our own decoder says, when asked the same."""
    replies = {}
    for found, sample in zip(predict(model, TASK, samples, settings), samples, strict=True):
        if found.text:
            pictures = image_inputs(encode(TASK.phrase(sample.unlabelled()), model), model)
            written = model.tokenizer.encode(found.text, add_special_tokens=False)
            replies[str({"image": [one.key() for one in pictures]})] = [*written, min(model.stop_ids)]
    return Scripted(replies)


@pytest.mark.slow
def test_replies_of_another_engine_become_the_same_predictions(
    model: LoadedModel, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole ones, those cut at the limit, which are closed as ours are, and the row of a file that is no picture."""
    long = scripted(model, samples, Predict(max_new_tokens=100))
    monkeypatch.setattr(vllm_writer, "import_vllm", lambda: long)
    for limit in (100, 20):
        settings = Predict(max_new_tokens=limit, batch_size=2)
        ours = predict(model, TASK, samples, settings, engine=make_engine(model, settings, feed_forced=False))
        engine = VllmEngine(model, model.folder, TASK.schema())
        theirs = predict(model, TASK, samples, settings, engine=engine)
        for one, other in zip(ours, theirs, strict=True):
            assert (other.id, other.text, other.fields, other.problem, other.cut) == (
                one.id,
                one.text,
                one.fields,
                one.problem,
                one.cut,
            )
        assert [found.id for found in theirs if found.problem and not found.text] == ["broken"]
        assert all(found.cut for found in theirs if found.text) is (limit == 20)
    whole = next(found for found in theirs if found.id == "0")
    assert means(whole)["company"] == pytest.approx(torch.tensor(-0.5).exp().item())
    assert long.opened["model"] == str(model.folder) and long.opened["dtype"] == "float32"


def test_what_is_asked_is_greedy_and_ours(
    model: LoadedModel, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Scripted({})
    monkeypatch.setattr(vllm_writer, "import_vllm", lambda: engine)
    writer = VllmEngine(model, model.folder, TASK.schema())
    encoded = encode(TASK.phrase(samples[-1].unlabelled()), model)
    for mode in (DecodingMode.CONSTRAINED, DecodingMode.UNCONSTRAINED):
        writer._add_request(mode, ReplySequence(0, encoded, samples[-1].media, mode, None, 77))
    (ids, values, keys, ranges), settings = engine.asked["constrained"]
    assert ids == encoded.ids.tolist() and torch.equal(values["pixel_values"], encoded.pixel_values)
    assert values["image_num_patches"].sum() == len(encoded.pixel_values) and len(keys["image"]) == 2
    assert ranges["image"] == [(one.start, one.tokens) for one in image_inputs(encoded, model)]
    assert (settings.temperature, settings.max_tokens) == (0, 77)
    assert settings.stop_token_ids == sorted(model.stop_ids)
    assert settings.structured_outputs.json == with_json_style(TASK.schema())
    assert engine.asked["unconstrained"][1].structured_outputs is None


def test_the_system_text_and_earlier_turns_are_asked_too(
    model: LoadedModel, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Scripted({})
    monkeypatch.setattr(vllm_writer, "import_vllm", lambda: engine)
    task = open_task("choose")
    said = {"prompt": "Which?", "options": ("tea", "milk"), "system": "Be brief."}
    sample = replace(samples[-1], history=(Turn("user", "First?"), Turn("assistant", "x")), **said)
    writer = VllmEngine(model, model.folder, None)
    encoded = encode(task.phrase(sample), model)
    writer._add_request(DecodingMode.UNCONSTRAINED, ReplySequence(0, encoded, sample.media, None, None, 9))  # type: ignore[arg-type]
    (prompt, *_), _ = engine.asked["unconstrained"]
    text = model.tokenizer.decode(prompt)
    words = ("Be brief.", "First?", "x", "Which?", "A. tea", "B. milk")
    assert all(text.index(word) < text.index(other) for word, other in itertools.pairwise(words))


def test_a_reply_that_leaves_the_schema_is_an_error(model: LoadedModel, samples: list[Sample]) -> None:
    vocabulary = Vocabulary(model.tokenizer, model.model.config.get_text_config().vocab_size, sorted(model.stop_ids))
    encoded = encode(TASK.phrase(samples[0].unlabelled()), model)
    for text in ('{"company": "A", "total": ""}}', '{"company": "A"'):  # a bracket too many; ends in the middle
        tokens = model.tokenizer.encode(text, add_special_tokens=False)
        row = ReplySequence(0, encoded, (), DecodingMode.CONSTRAINED, Grammar(TASK.schema(), vocabulary).guide(), 100)
        with pytest.raises(ModelError, match="vLLM's reply"):
            to_sequence(row, tokens, [0.0] * len(tokens), vocabulary)


def test_what_vllm_would_compute_differently_is_refused(model: LoadedModel) -> None:
    with pytest.raises(ModelError, match="not Qwen2-VL"):
        check_family(FAMILIES["qwen2_vl"])
    check_served(model)
    other_tile = load_model(model.folder, dtype="float32", device="cpu", inputs=InputSettings(tile_size=84))
    with pytest.raises(ModelError, match="tiles of 84 pixels"):
        check_served(other_tile)
    other_tile.processor.image_processor.size = {"height": 56, "width": 56}
    other_tile.model.config.ps_version = "v1"
    with pytest.raises(ModelError, match="first layout"):
        check_served(other_tile)


def ask(folder: Path, model: Path, task: dict[str, Any], *words: str, **sections: Any) -> Any:
    """`tailor predict` of one picture with a model without a run."""
    Image.new("RGB", (60, 60), "white").save(folder / "new.png")
    recipe, out = folder / "recipe.yaml", folder / "out.jsonl"
    recipe.write_text(json.dumps({"model": str(model), "data": str(folder), "task": task, **sections}))
    given = ["predict", str(folder / "new.png"), "--model", str(model), "--recipe", str(recipe), "--out", str(out)]
    return CliRunner().invoke(app, [*given, *words])


def test_an_engine_that_is_missing_or_unknown_is_named(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"extract": {"total": "amount"}}
    unknown = ask(tmp_path, tiny_model_folder, fields, "--engine", "vlm")
    assert isinstance(unknown.exception, RunError) and "did you mean `vllm`?" in str(unknown.exception)
    monkeypatch.setitem(sys.modules, "vllm", None)
    missing = ask(tmp_path, tiny_model_folder, fields, "--engine", "vllm")
    assert isinstance(missing.exception, ModelError) and "pip install 'vllm" in str(missing.exception)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.slow
def test_the_command_writes_the_same_rows_with_another_engine(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"extract": FIELDS}
    out, rows = tmp_path / "out.jsonl", []
    engine = Scripted({})
    for module in (vllm_writer, served):
        monkeypatch.setattr(module, "import_vllm", lambda: engine)
    for words in ((), ("--engine", "vllm")):
        assert ask(tmp_path, model.folder, fields, *words).exit_code == 0
        rows.append(json.loads(out.read_text()))
        (picture,) = image_inputs(encode(TASK.phrase(read_inputs([tmp_path / "new.png"])[0]), model), model)
        written = model.tokenizer.encode(rows[0]["text"], add_special_tokens=False)
        engine.replies[str({"image": [picture.key()]})] = [*written, min(model.stop_ids)]
    for row in rows:
        del row["seconds"], row["raw"], row["confidence"]  # the script's probabilities are invented
    assert rows[0] == rows[1] and rows[0]["text"].startswith('{"company": "')
    assert engine.opened["model"] == str(model.folder) and engine.closed == ["engine", "memory"]


def test_a_closed_set_of_replies_is_not_compared(tiny_model_folder: Path, tmp_path: Path) -> None:
    classes = {"classify": {"classes": ["cash", "card"]}}
    found = ask(tmp_path, tiny_model_folder, classes, "--engine", "vllm")
    assert isinstance(found.exception, RunError) and "--unconstrained" in str(found.exception)


@pytest.mark.parametrize("setting", [{"num_beams": 3}, {"fields": "side_by_side"}])
def test_ways_of_decoding_that_are_ours_alone_are_refused(
    setting: dict[str, Any], tiny_model_folder: Path, tmp_path: Path
) -> None:
    found = ask(tmp_path, tiny_model_folder, {"extract": FIELDS}, "--engine", "vllm", predict=setting)
    assert isinstance(found.exception, RunError) and f"predict.{next(iter(setting))}" in str(found.exception)


@pytest.mark.slow
def test_the_merged_folder_is_written_once_and_says_the_same(
    tiny_model_folder: Path, samples: list[Sample], tmp_path: Path
) -> None:
    """An adapter moved far from nothing; another adapter gets another folder."""
    model, method, recipe = prepare(tiny_model_folder, {"name": "lora", "rank": 4, "parts": ["language"]})
    recipe = recipe.model_copy(
        update={"model": recipe.model.model_copy(update={"path": str(tiny_model_folder), "device": "cpu"})}
    )
    recipe = resolve_saved(recipe)
    shake(model, 0.2)
    run = RunFolder(tmp_path)
    method.save(model, run.adapter)
    create(run.path)
    record(run.path, run.adapter)
    folder = merged_folder(recipe, run, merged_path(recipe, run))
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert (
        merged_folder(recipe, run, merged_path(recipe, run)) == folder
        and (folder / "model.safetensors").stat().st_mtime_ns == before
    )
    readable = [sample for sample in samples if sample.id != "broken"]
    merged = open_base(recipe.with_model_folder(folder))
    texts = [
        [found.text for found in predict(opened, TASK, readable, Predict(max_new_tokens=24))]
        for opened in (open_tuned(recipe, run.adapter), merged, open_base(recipe))
    ]
    assert texts[0] == texts[1] != texts[2]
    question = TASK.phrase(readable[0].unlabelled())
    ids = encode(question, merged).ids
    drop_weights(merged)
    assert next(merged.model.parameters()).is_meta and torch.equal(encode(question, merged).ids, ids)
    shake(model)
    method.save(model, run.adapter)
    record(run.path, run.adapter)
    assert merged_path(recipe, run) != folder
    assert not [part for part in tmp_path.iterdir() if part.name.startswith(".merged")]


@pytest.fixture
def calm_vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """vLLM on one CPU thread, without reaching for the network."""
    for name, value in {
        **VLLM,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
    }.items():
        monkeypatch.setitem(os.environ, name, os.environ.get(name, value))
    yield


def gap(model: LoadedModel, asked: Sample, one: str, other: str) -> float:
    """How far apart the two letters are, by our logits, in which two replies first differ."""
    end = min(model.stop_ids)
    first, second = ([*model.tokenizer.encode(text, add_special_tokens=False), end] for text in (one, other))
    place = next(place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    prompt = encode(asked, model)
    ids = torch.cat([prompt.ids, torch.tensor(first[:place], dtype=torch.long)])
    batch = collate([replace(prompt, ids=ids, labels=ids)], model)
    batch.pop("labels")
    with torch.no_grad():
        logits = model.model(**batch).logits[0, -1].float()
    return abs(float(logits[first[place]] - logits[second[place]]))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vllm_reads_drawn_receipts_as_we_do(dtype: str, tmp_path: Path, calm_vllm: None) -> None:
    """Letter by letter the same in float32; in bf16, where sums are rounded otherwise, they part at near ties alone."""
    from mllm_tailor.synthetic import draw_document

    receipts = []
    for seed in range(1000, 1006):
        draw_document("receipts", seed).image.save(tmp_path / f"{seed}.png")
        receipts.append(Sample(str(seed), (Media("image", tmp_path / f"{seed}.png"),)))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    receipts.insert(2, Sample("broken", (Media("image", tmp_path / "broken.png"),)))
    task = open_task("extract", {"company": "string", "date": "date", "address": "string", "total": "amount"})
    opened, settings = load_model("embedded", dtype=dtype, device="cpu"), Predict(max_new_tokens=160)
    ours = {held: predict(opened, task, receipts, settings, constrained=held) for held in (True, False)}
    writer = VllmEngine(opened, opened.folder, task.schema())
    try:
        for held, mine in ours.items():
            theirs = predict(opened, task, receipts, settings, constrained=held, engine=writer)
            same = [(one, other) for one, other in zip(mine, theirs, strict=True) if one.text == other.text]
            print(f"{dtype}, held {held}: {len(same)} of {len(receipts)} replies are the same")
            assert len(same) == len(receipts) or dtype == "bfloat16"
            for sample, one, other in zip(receipts, mine, theirs, strict=True):
                if one.text != other.text:
                    assert gap(opened, task.phrase(sample), one.text, other.text) < NEAR
            assert theirs[2].problem == mine[2].problem is not None
            for one, other in same:
                assert other.fields == one.fields and other.cut == one.cut
                assert means(other) == pytest.approx(means(one), abs=0.05 if dtype == "bfloat16" else 0.01)
    finally:
        writer.close()
