"""How many wrong labels does `tailor audit` put first? Known ones and planted ones, against a list in random order.

    python benchmarks/audit.py FOLDER                         # labels alone, and with the transcripts: 1 minute
    python benchmarks/audit.py FOLDER --folds 2 --minutes 24  # and with cross-fitted readings of the embedded model
    python benchmarks/audit.py FOLDER --readings FILE         # or with predictions of receipts that no one learned

FOLDER holds the ICDAR 2019 SROIE receipts (images, entities, metadata.jsonl with transcripts) and label_problems.json,
which lists the labels that do not occur in the transcript. 5 % of the receipts of a copy get one wrong label of a kind
that annotators make: a digit or letter mistyped, the value of another receipt, a value cut short, day and month
exchanged, another amount of the page. Recall is counted among the first 30 and 60 values of the list. Known problems
are looked for in the official labels, planted ones in the copy, where the official problems compete with them.
Readings are made on the copy once (resumable, in --work) and are used for both. Nothing was fitted on these lists.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm_tailor.core.device import describe_machine
from mllm_tailor.core.io import read_json, write_json, write_jsonl
from mllm_tailor.recipe import read_recipe
from mllm_tailor.run.audit import AuditOptions, AuditResult, audit
from mllm_tailor.run.cross_fit import CrossFit
from mllm_tailor.run.resolve import resolve

RESULT = Path(__file__).parent / "results" / "audit.json"
RECIPE = Path(__file__).parent.parent / "recipes" / "sroie.yaml"
SHARE = 0.05
FIRST = (30, 60)
FIELDS = ("company", "date", "address", "total")
AMOUNT = re.compile(r"\d+\.\d\d")

Key = tuple[str, str]


def main() -> None:
    """Plant, audit, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, default=Path(".benchmarks/audit"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folds", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=24.0, help="of training, over all folds")
    parser.add_argument("--no-images", action="store_true", help="do not open the images, so copies are not found")
    parser.add_argument("--readings", type=Path, help="predictions of receipts on which the system was not trained")
    parser.add_argument("--note", help="what the readings are, for the stored result")
    arguments = parser.parse_args()
    copies = {
        "official": arguments.work / "official",
        "planted": arguments.work / f"planted-{arguments.seed}",
        "official, no transcript": arguments.work / "official-bare",
        "planted, no transcript": arguments.work / f"planted-{arguments.seed}-bare",
    }
    planted = plant(arguments.folder, copies["planted"], arguments.seed)
    plant(arguments.folder, copies["official"], None)
    for name in ("official", "planted"):
        without_transcripts(copies[name], copies[f"{name}, no transcript"])
    known = [
        (identifier, problem.rpartition(" ")[2])
        for problem, identifiers in read_json(arguments.folder / "label_problems.json").items()
        for identifier in identifiers
    ]
    readings: tuple[Path, ...] = (arguments.readings,) if arguments.readings else ()
    if arguments.folds:
        readings = (read_folds(copies["planted"], arguments),)
    rows = []
    for evidence, suffix, given in (
        ("labels and images", ", no transcript", ()),
        ("labels, images and readings", ", no transcript", readings),
        ("labels, images and transcripts", "", ()),
        ("all", "", readings),
    ):
        if evidence in ("labels, images and readings", "all") and not given:
            continue
        for faults, wanted in (("official", known), ("planted", planted)):
            result = audit_copy(copies[faults + suffix], arguments.work, given, decode=not arguments.no_images)
            rows.append(count(evidence, faults, wanted, known, result))
            print(json.dumps(rows[-1]), flush=True)
    settings = {
        "seed": arguments.seed,
        "folds": arguments.folds,
        "minutes": arguments.minutes if arguments.folds else 0,
    }
    settings["images opened"] = not arguments.no_images
    settings["note"] = arguments.note
    settings["receipts read"] = sum(1 for path in readings for _ in path.open())
    write_json(RESULT, {"machine": describe_machine(), "settings": settings, "rows": rows})
    print(table(rows))


def plant(source: Path, target: Path, seed: int | None) -> list[Key]:
    """Copy the data; with a seed, 5 % of the receipts get one wrong label. Returns what was planted."""
    note = target / "planted.json"
    if not note.is_file():
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in ("images", "entities"):
            shutil.copytree(source / name, target / name)
        shutil.copyfile(source / "metadata.jsonl", target / "metadata.jsonl")
        rows = [json.loads(line) for line in (source / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
        changed = wrong_labels(rows, seed) if seed is not None else {}
        for (identifier, field), (value, _) in changed.items():
            file = target / "entities" / f"{identifier}.json"
            file.chmod(0o644)
            file.write_text(json.dumps(read_json(file) | {field: value}, ensure_ascii=False), encoding="utf-8")
        write_json(note, [[*key, kind] for key, (_, kind) in changed.items()])
    return [(identifier, field) for identifier, field, _ in read_json(note)]


def wrong_labels(rows: Sequence[Mapping[str, Any]], seed: int) -> dict[Key, tuple[str, str]]:
    """A wrong value for one field of 5 % of the receipts, with the kind of fault."""
    draw = random.Random(seed)
    faults: dict[Key, tuple[str, str]] = {}
    for row in draw.sample(list(rows), round(SHARE * len(rows))):
        field = draw.choice(FIELDS)
        value = row["entities"].get(field) or ""
        kinds = ["mistyped", "other receipt", "cut short"]
        kinds += {"date": ["day and month"], "total": ["other amount"] * 2}.get(field, [])
        draw.shuffle(kinds)
        for kind in kinds:
            other = draw.choice(rows)["entities"].get(field) or ""
            text = "\n".join(word["text"] for word in row["ocr"])
            wrong = spoil(value, kind, other, text, draw)
            if wrong and re.sub(r"\W", "", wrong).casefold() != re.sub(r"\W", "", value).casefold():
                faults[(row["id"], field)] = (wrong, kind)
                break
    return faults


def spoil(value: str, kind: str, other: str, page: str, draw: random.Random) -> str:
    """A value with one fault; empty where this kind is not possible."""
    if kind == "other receipt":
        return other
    if kind == "cut short":
        return value.rsplit(" ", 1)[0] if " " in value else ""
    if kind == "day and month":
        parts = re.fullmatch(r"(\d\d)(\W)(\d\d)(\W\d+)", value)
        return f"{parts[3]}{parts[2]}{parts[1]}{parts[4]}" if parts and int(parts[1]) <= 12 else ""
    if kind == "other amount":
        amounts = [amount for amount in AMOUNT.findall(page) if float(amount) > 0 and amount not in value]
        return draw.choice(amounts) if amounts else ""
    positions = [index for index, character in enumerate(value) if character.isalnum()]
    if not positions:
        return ""
    index = draw.choice(positions)
    alphabet = "0123456789" if value[index].isdigit() else "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return value[:index] + draw.choice(alphabet.replace(value[index].upper(), "")) + value[index + 1 :]


def without_transcripts(source: Path, target: Path) -> None:
    """The same data with no text of the pages beside them."""
    if not (target / "images").is_dir():
        shutil.copytree(source, target)
    rows = [json.loads(line) for line in (source / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    (target / "metadata.jsonl").unlink()
    write_jsonl(target / "metadata.jsonl", [{key: row[key] for key in ("file_name", "split")} for row in rows])


def audit_copy(folder: Path, work: Path, readings: tuple[Path, ...], *, decode: bool) -> AuditResult:
    """The product's audit of one copy."""
    recipe = read_recipe(RECIPE, [f"data.train={folder}", f"output={work / 'audits'}", f"name={folder.name}"])
    return audit(resolve(recipe), AuditOptions(readings=readings, decode=decode))


def read_folds(folder: Path, arguments: argparse.Namespace) -> Path:
    """Cross-fitted readings of the copy with planted faults, as a file of predictions."""
    out: Path = arguments.work / f"readings-{arguments.seed}-{arguments.folds}.jsonl"
    if not out.is_file():
        overrides = [
            f"data.train={folder}",
            f"output={arguments.work / 'audits'}",
            f"name={folder.name}-folds",
            "train.processes=1",
        ]
        settings = CrossFit(arguments.folds, arguments.minutes)
        result = audit(resolve(read_recipe(RECIPE, overrides)), AuditOptions(cross_fit=settings, decode=False))
        write_jsonl(out, (prediction.row() for predictions in result.readings.values() for prediction in predictions))
    return out


def count(
    evidence: str, faults: str, wanted: Sequence[Key], known: Sequence[Key], result: AuditResult
) -> dict[str, Any]:
    """Recall among the first values, and that of a random order."""
    order = [(suspect.id, suspect.field) for suspect in result.suspects]
    row: dict[str, Any] = {"evidence": evidence, "faults": faults, "wrong": len(wanted), "values": result.values}
    for first in FIRST:
        flagged = set(order[:first])
        row[f"found_{first}"] = len(flagged & set(wanted))
        row[f"recall_{first}"] = round(len(flagged & set(wanted)) / len(wanted), 3)
        row[f"known_or_planted_{first}"] = len(flagged & {*wanted, *known})
        row[f"random_{first}"] = round(first / result.values, 3)
        row[f"best_{first}"] = round(min(first, len(wanted)) / len(wanted), 3)
    return row


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """As in benchmarks/README.md."""
    lines = ["| evidence | wrong labels | first 30 | first 60 | random 30 / 60 |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [
            f"{row[f'found_{first}']} ({row[f'recall_{first}']:.0%} of {row[f'best_{first}']:.0%})" for first in FIRST
        ]
        chance = " / ".join(f"{row[f'random_{first}']:.1%}" for first in FIRST)
        lines.append(f"| {row['evidence']} | {row['wrong']} {row['faults']} | {' | '.join(cells)} | {chance} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
