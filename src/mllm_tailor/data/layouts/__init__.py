"""How labelled folders look. A new layout is one short file beside this one and one line here.

The first layout that recognises a path reads it, so the particular stand before the general.
"""

from __future__ import annotations

from mllm_tailor.core.registry import Entry, Registry


def _entry(target: str, summary: str) -> Entry:
    return Entry(f"mllm_tailor.data.layouts.{target}", summary)


LAYOUTS = Registry(
    "layout",
    {
        "sroie": _entry(
            "sroie:LAYOUT", "`images` or `img` beside `entities`, `key` or `annotations`: a label a picture"
        ),
        "hugging_face": _entry("columns:HUGGING_FACE", "a data set saved to disk by Hugging Face's `datasets`"),
        "parquet": _entry("columns:PARQUET", "Parquet files with an image column or a file column"),
        "internvl": _entry("internvl:LAYOUT", "InternVL's meta JSON, {name: {root, annotation}}, and its JSONL files"),
        "chat": _entry("chat:LAYOUT", "rows with `messages` (OpenAI style; `image_url` is a path or a data address)"),
        "llava": _entry("llava:LAYOUT", "rows with `conversations` (LLaVA, ShareGPT) and `image`, `images` or `video`"),
        "query_response": _entry("query_response:LAYOUT", "rows with `query` and `response` (ms-swift), `history` too"),
        "completions": _entry(
            "completions:LAYOUT", "rows with `prompt` and `completion`, or `chosen` and `rejected` (TRL)"
        ),
        "prefix_suffix": _entry("prefix_suffix:LAYOUT", "rows with `prefix` and `suffix` (PaliGemma, Florence-2)"),
        "alpaca": _entry("alpaca:LAYOUT", "rows with `instruction`, `input` and `output`"),
        "answers": _entry(
            "answers:LAYOUT", "rows with a list of `answers` to a question (DocVQA, TextVQA) or of captions"
        ),
        "common_voice": _entry("common_voice:LAYOUT", "Common Voice: `clips/` and a .tsv for each split"),
        "nemo": _entry("nemo:LAYOUT", "NeMo's manifests: rows with `audio_filepath`"),
        "ljspeech": _entry("transcript_files:LJ_SPEECH", "LJSpeech: `wavs/` and a `metadata.csv` with bars"),
        "librispeech": _entry("transcript_files:LIBRI_SPEECH", "LibriSpeech: recordings beside `*.trans.txt`"),
        "youcook2": _entry(
            "youcook2:LAYOUT", "rows with `video_id` and `segments`: steps of cooking films, or their texts"
        ),
        "metadata": _entry("columns:METADATA", "`metadata.jsonl` or any .jsonl whose rows name a file and its labels"),
        "json": _entry("columns:JSON", "a .json list of rows that name a file and its labels"),
        "sidecar": _entry("sidecar:LAYOUT", "documents, PDFs among them, each with a .json of its name beside it"),
        "qa_captions": _entry(
            "qa_captions:LAYOUT",
            "question rows with `question_type`, as one caption a picture: what its answers say of it",
        ),
        "csv": _entry("columns:CSV", "a .csv or .tsv whose header has a file column"),
        "class_folders": _entry("class_folders:LAYOUT", "a folder of images, videos or recordings for each class"),
    },
    group="mllm_tailor.layouts",
)
