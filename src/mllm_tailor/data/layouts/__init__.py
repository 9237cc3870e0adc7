"""How labelled folders look. A new layout is one short file beside this one and one line here.

The first layout that recognises a path reads it, so the particular stand before the general: corpora with files of
their own, then rows by their keys, then rows of named columns, then folders without files of rows.
"""

from __future__ import annotations

from mllm_tailor.core.registry import Entry, Registry


def _entry(target: str, summary: str) -> Entry:
    return Entry(f"mllm_tailor.data.layouts.{target}", summary)


LAYOUTS = Registry(
    "layout",
    {
        "review": _entry("review:LAYOUT", "`corrections.db`: what reviewers decided in `tailor review`"),
        "funsd": _entry("forms:FUNSD", "`annotations` of .json files with a `form`, beside `images` (FUNSD)"),
        "wildreceipt": _entry(
            "forms:WILDRECEIPT", "lists of receipts in .txt files beside `class_list.txt` (WildReceipt)"
        ),
        "kleister": _entry(
            "kleister:LAYOUT", "`documents`, with `in.tsv` and `expected.tsv` for each split (Kleister)"
        ),
        "sroie": _entry(
            "sroie:LAYOUT", "`images` or `img` beside `entities`, `key` or `annotations`: a label an image"
        ),
        "llama_factory": _entry("llama_factory:LAYOUT", "`dataset_info.json`, which names files (LLaMA-Factory)"),
        "coco": _entry("coco:LAYOUT", "a .json file with `images` and `annotations`: captions, boxes, outlines (COCO)"),
        "vqa_v2": _entry("vqa_v2:LAYOUT", "a .json file of `questions` beside one of `annotations` (VQAv2)"),
        "labelme": _entry("labelme:LAYOUT", "a .json file with `shapes` and `imagePath` beside each image (labelme)"),
        "yolo": _entry("yolo:LAYOUT", "a .txt with a class and a box a line for each image; `data.yaml` (YOLO)"),
        "xml_boxes": _entry("xml_boxes:LAYOUT", ".xml files of boxes: `Annotations` beside `JPEGImages` (VOC), CVAT"),
        "internvl": _entry("internvl:LAYOUT", "a .json file of sets, each with `root` and `annotation` (InternVL)"),
        "named_files": _entry("named_files:LAYOUT", "a .json object whose keys are file names"),
        "webdataset": _entry("webdataset:LAYOUT", ".tar files that hold the files of each sample (WebDataset)"),
        "ljspeech": _entry("transcript_files:LJ_SPEECH", "`wavs` beside `metadata.csv` with bars (LJSpeech)"),
        "librispeech": _entry("transcript_files:LIBRI_SPEECH", "recordings beside `trans.txt` files (LibriSpeech)"),
        "common_voice": _entry(
            "common_voice:LAYOUT", "`clips` and a .tsv with `client_id` for each split (Common Voice)"
        ),
        "label_studio": _entry(
            "label_studio:LAYOUT", "tasks with `data` and `annotations`, or `annotation_id` (Label Studio)"
        ),
        "doccano": _entry("doccano:LAYOUT", "rows with `filename` and a list `label` or `bbox` (doccano)"),
        "object_columns": _entry(
            "object_columns:LAYOUT", "rows with `objects` of `bbox` and `category` (Hugging Face's object detection)"
        ),
        "chat": _entry(
            "chat:LAYOUT", "rows with `messages` (OpenAI, TRL, ms-swift, LLaMA-Factory), or pairs in `texts`"
        ),
        "llava": _entry(
            "llava:LAYOUT", "rows with `conversations` (LLaVA, ShareGPT), and `image`, `images` or `video`"
        ),
        "query_response": _entry(
            "query_response:LAYOUT", "rows with `query`, `response`, perhaps `history` (ms-swift)"
        ),
        "completions": _entry(
            "completions:LAYOUT", "rows with `prompt` and `completion`, or `chosen` and `rejected` (TRL)"
        ),
        "prefix_suffix": _entry("prefix_suffix:LAYOUT", "rows with `prefix` and `suffix` (PaliGemma, Florence-2)"),
        "alpaca": _entry("alpaca:LAYOUT", "rows with `instruction`, `input` and `output` (Alpaca)"),
        "answers": _entry(
            "answers:LAYOUT", "rows with `question` and a list `answers` (DocVQA, TextVQA), or `captions`"
        ),
        "nemo": _entry("nemo:LAYOUT", "rows with `audio_filepath` and `text` (NeMo)"),
        "youcook2": _entry("youcook2:LAYOUT", "rows with `video_id` and `segments`: steps of a video (YouCook2)"),
        "captions": _entry(
            "captions:LAYOUT", "lists of `image` and `caption`, several lines an image (Flickr8k, Flickr30k)"
        ),
        "listed_files": _entry("listed_files:LAYOUT", "a .txt file whose lines name a file and its label"),
        "hugging_face": _entry("columns:HUGGING_FACE", "a data set saved to disk by Hugging Face's `datasets`"),
        "parquet": _entry("columns:PARQUET", ".parquet files with an `image` column or a file column"),
        "metadata": _entry("columns:METADATA", "`metadata.jsonl` or any .jsonl whose rows name a file, as `file_name`"),
        "json": _entry("columns:JSON", "a .json list of rows that name a file, as `file_name`"),
        "csv": _entry("columns:CSV", "a .csv or .tsv whose header has a file column, as `file_name`"),
        "sidecar": _entry(
            "sidecar:LAYOUT", "documents, .pdf among them, each with a .json or .txt of its name beside it"
        ),
        "qa_captions": _entry(
            "qa_captions:LAYOUT", "rows with `question_type`, as one caption an image; chosen by name"
        ),
        "class_folders": _entry("class_folders:LAYOUT", "a folder of images, videos or recordings for each class"),
    },
    group="mllm_tailor.layouts",
)
