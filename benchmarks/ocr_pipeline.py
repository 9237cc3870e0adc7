"""What one would take instead on a CPU: RapidOCR and rules, or RapidOCR and the labels of the most similar receipt.

    python benchmarks/ocr_pipeline.py FOLDER                              # the pipelines alone
    python benchmarks/ocr_pipeline.py FOLDER --ours runs/sroie            # beside a run, or a file of predictions

FOLDER holds the ICDAR 2019 SROIE receipts (images, entities, metadata.jsonl with `split`); the `dev` receipts are read.
RapidOCR 1.4.4 is installed into an environment that the script makes (--environment keeps it). Three systems:

- `rules`: the first printed line that is no number is the company; lines from there to the first telephone, tax or
  document number are the address; the first date is the date; the amount beside the last "total" is the total.
- `nearest`: all four labels of the training receipt whose text is most similar (tf-idf of words). It reads the
  transcripts of the training receipts, which come with the data.
- `nearest + rules`: company and address of that receipt, date and total by the rules.

The rules were written once, from what receipts look like, with no look at a score. Accuracy is as by `tailor score`;
seconds are CPU seconds of one thread for each receipt. Only pages that --ours has read are compared.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm_tailor.core.device import describe_machine
from mllm_tailor.core.io import read_json, write_json, write_jsonl
from mllm_tailor.data.formats import is_amount, is_date
from mllm_tailor.scoring import compare, score
from mllm_tailor.scoring.referee import match_predictions, read_labels
from mllm_tailor.tasks.transcripts import rows_of

RESULT = Path(__file__).parent / "results" / "ocr_pipeline.json"
READER = Path(__file__).parent / "ocr" / "read_pages.py"
REQUIREMENTS = ("rapidocr-onnxruntime==1.4.4",)
METRICS = ("exact", "normalised_exact", "fuzzy", "f1")
KINDS = {"total": "amount", "date": "date"}

DATE = re.compile(
    r"\d{1,4}[-/.]\d{1,2}[-/.]\d{2,4}"
    r"|\d{1,2}[-/ ]?(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*[-/ ,]*\d{2,4}",
    re.I,
)
AMOUNT = re.compile(r"(?:RM|\$)?\s*\d{1,3}(?:,?\d{3})*\.\d{2}", re.I)
TOTAL = re.compile(r"total|amount due|nett", re.I)
NO_TOTAL = re.compile(r"sub|qty|quantity|item|discount|saving|tax|gst|change", re.I)
END_OF_ADDRESS = re.compile(r"\btel|phone|\bfax|gst|reg\b|invoice|receipt|cashier|date|\bbill|www|@|\d{6,}-[a-z]", re.I)
REGISTRATION = re.compile(r"\(?\s*(?:co\.?\s*(?:reg)?\.?\s*no\.?)?[:\s]*\d{4,}\s*-?\s*[a-z]?\s*\)?", re.I)

Row = dict[str, Any]


def main() -> None:
    """Read, extract, score, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ours", type=Path, help="a run folder or a file of predictions")
    parser.add_argument("--ours-seconds", type=float, help="CPU seconds a receipt of ours, from `time tailor predict`")
    parser.add_argument("--note", help="what ours is, for the stored result")
    parser.add_argument("--limit", type=int, help="only so many dev receipts")
    parser.add_argument("--environment", type=Path, help="where RapidOCR is or will be installed")
    parser.add_argument("--work", type=Path, default=Path(".benchmarks/ocr"))
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in (arguments.folder / "metadata.jsonl").read_text("utf-8").splitlines()]
    train, dev = ([row for row in rows if row["split"] == split] for split in ("train", "dev"))
    ours = predictions_of(arguments.ours) if arguments.ours else []
    if ours:
        known = {str(row["id"]) for row in ours}
        dev = [row for row in dev if row["id"] in known]
    dev = dev[: arguments.limit]
    pages = read_pages(arguments, [str(arguments.folder / row["file_name"]) for row in dev])
    texts = {Path(page["file"]).stem: rows_of(page["lines"]) for page in pages}
    systems = {
        "rules": [{"id": row["id"], **by_rules(texts[row["id"]])} for row in dev],
        "nearest": nearest(train, dev, texts),
    }
    systems["nearest + rules"] = [
        copied | {name: ruled[name] for name in ("date", "total")}
        for ruled, copied in zip(systems["rules"], systems["nearest"], strict=True)
    ]
    reading = sum(page["seconds"] for page in pages) / len(pages)
    seconds: dict[str, float | None] = dict.fromkeys(systems, reading)
    if ours:
        systems["ours"] = ours
        seconds["ours"] = arguments.ours_seconds  # a row's `seconds` are those of the clock
    scores = tailor_score(arguments.work, dev, systems)
    for name, values in scores.items():
        values["seconds"] = seconds[name] and round(seconds[name], 2)
    result = {
        "machine": describe_machine(),
        "receipts": len(dev),
        "ours": training_of(arguments.ours) | {"note": arguments.note} if arguments.ours else None,
        "requirements": REQUIREMENTS,
        "systems": scores,
    }
    write_json(arguments.out, result)
    print(table(scores))


def read_pages(arguments: argparse.Namespace, paths: Sequence[str]) -> list[Row]:
    """RapidOCR's lines of every page, from --work where they were read before."""
    out = arguments.work / "pages.jsonl"
    if not set(paths) <= pages_in(out).keys():
        with tempfile.TemporaryDirectory() as temporary:
            environment = arguments.environment or Path(temporary) / "rapidocr"
            python = environment / "bin" / "python"
            if not python.is_file():
                subprocess.run([sys.executable, "-m", "venv", environment], check=True)
                subprocess.run([python, "-m", "pip", "install", "-q", *REQUIREMENTS], check=True)
            subprocess.run([python, READER, out], input="\n".join(paths), text=True, check=True)
    known = pages_in(out)
    return [known[path] for path in paths]


def pages_in(file: Path) -> dict[str, Row]:
    """The pages that were read so far."""
    rows = map(json.loads, file.read_text("utf-8").splitlines()) if file.is_file() else ()
    return {row["file"]: row for row in rows}


def by_rules(lines: Sequence[str]) -> dict[str, str]:
    """Company, date, address and total of a receipt's printed rows."""
    start = next((index for index, line in enumerate(lines) if len(re.findall(r"[a-z]", line, re.I)) >= 4), 0)
    company = lines[start] if lines else ""
    address: list[str] = []
    for line in lines[start + 1 : start + 9]:
        if END_OF_ADDRESS.search(line):
            break
        if not REGISTRATION.fullmatch(line.strip()):
            address.append(line)
    dates = [text for line in lines for text in DATE.findall(line) if is_date(text)]
    return {
        "company": REGISTRATION.sub("", company).strip() or company,
        "date": dates[0] if dates else "",
        "address": " ".join(address),
        "total": find_total(lines),
    }


def find_total(lines: Sequence[str]) -> str:
    """The amount on or below the last row that says total; else the largest amount."""
    for index in reversed(range(len(lines))):
        if TOTAL.search(lines[index]) and not NO_TOTAL.search(lines[index]):
            amounts = AMOUNT.findall(lines[index]) or AMOUNT.findall(" ".join(lines[index + 1 : index + 2]))
            if amounts and is_amount(amounts[-1]):
                return str(amounts[-1]).strip()
    amounts = [text for line in lines for text in AMOUNT.findall(line)]
    return max(amounts, key=lambda text: float(re.sub(r"[^\d.]", "", text)), default="").strip()


def nearest(train: Sequence[Row], dev: Sequence[Row], texts: Mapping[str, Sequence[str]]) -> list[Row]:
    """The labels of the training receipt with the highest cosine of tf-idf vectors of words."""
    bags = [Counter(words("\n".join(rows_of(row["ocr"])))) for row in train]
    documents = Counter(word for bag in bags for word in bag)
    weights = {word: math.log(len(bags) / count) for word, count in documents.items()}
    vectors = [unit({word: count * weights[word] for word, count in bag.items()}) for bag in bags]
    result = []
    for row in dev:
        bag = Counter(words("\n".join(texts[row["id"]])))
        vector = unit({word: count * weights.get(word, 0.0) for word, count in bag.items()})
        best = max(
            range(len(train)), key=lambda i: sum(value * vectors[i].get(word, 0.0) for word, value in vector.items())
        )
        result.append({"id": row["id"], **train[best]["entities"]})
    return result


def words(text: str) -> list[str]:
    """Words as they are compared."""
    return re.findall(r"[a-z0-9]+", text.casefold())


def unit(vector: dict[str, float]) -> dict[str, float]:
    """Of length one."""
    length = math.sqrt(sum(value * value for value in vector.values())) or 1.0
    return {word: value / length for word, value in vector.items()}


def predictions_of(path: Path) -> list[Row]:
    """Our predictions: those of a run's held-out samples, or a file's."""
    file = path / "predictions.jsonl" if path.is_dir() else path
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def training_of(path: Path) -> Row:
    """How much training stands behind our figures."""
    training = path / "training.json"
    known = read_json(training) if training.is_file() else {}
    return {"name": path.name} | {key: known[key] for key in ("epochs", "seconds", "steps") if key in known}


def tailor_score(work: Path, dev: Sequence[Row], systems: Mapping[str, Sequence[Row]]) -> dict[str, Row]:
    """Each system's metrics and fields, by the functions of `tailor score`; its input files are left in `work`."""
    truth = [{"id": row["id"], "group": row["entities"]["company"], "fields": row["entities"]} for row in dev]
    write_jsonl(work / "labels.jsonl", truth)
    labelled = read_labels(truth, "labels.jsonl")
    result = {}
    for name, rows in systems.items():
        write_jsonl(work / f"{name.replace(' ', '_')}.jsonl", rows)
        matched = match_predictions(labelled, rows, name)
        scores = score(labelled.labels, matched.predictions, METRICS, labelled.field_names, KINDS)
        intervals = {metric: change.tuned for metric, change in compare(scores, scores, groups=labelled.groups).items()}
        result[name] = {
            metric: [round(value, 1) for value in (interval.value, interval.low, interval.high)]
            for metric, interval in intervals.items()
        }
        result[name]["fields"] = {field: round(v, 1) for field, v in scores["normalised_exact"].by_field.items()}
    return result


def table(scores: Mapping[str, Row]) -> str:
    """As in benchmarks/README.md."""
    fields = list(next(iter(scores.values()))["fields"])
    lines = [
        "| system | exact (normalised) | 95 % interval | " + " | ".join(fields) + " | fuzzy | s a receipt |",
        "|" + "---|" * (5 + len(fields)),
    ]
    for name, row in scores.items():
        value, low, high = row["normalised_exact"]
        cells = [f"{row['fields'][field]:.1f}" for field in fields]
        lines.append(
            f"| {name} | {value} | {low} to {high} | {' | '.join(cells)} | {row['fuzzy'][0]} | {row['seconds']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
