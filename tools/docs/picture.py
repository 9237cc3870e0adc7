"""Draws docs/before-after.png from a finished run, with a headless Chromium.
Run: python tools/docs/picture.py runs/demo

The receipt shown is the held-out one whose gain is the median gain, so that the picture is neither best nor worst case.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from jinja2 import Environment

from mllm_tailor.core.io import read_jsonl
from mllm_tailor.reporting.diff import mark_difference
from mllm_tailor.run.data_record import read_held_out
from mllm_tailor.run.run_dir import RunFolder

PAGE = """<!doctype html><meta charset="utf-8"><style>
body{margin:0;width:1200px;font:19px/1.4 "DejaVu Serif",Georgia,serif;color:#1d2a26;background:#fcfbf7}
main{display:grid;grid-template-columns:320px 1fr;gap:44px;padding:36px 44px}
img{width:320px;max-height:640px;object-fit:cover;object-position:top;border:1px solid #d8d4c8}
h1{font-size:56px;font-weight:400;margin:0 0 2px}
h1 b{color:#0c6b4f;font-weight:400}h1 i{color:#aaa49a;font-style:normal}
p{margin:0 0 18px;color:#5b635f}table{border-collapse:collapse;width:100%}
td,th{text-align:left;vertical-align:top;padding:7px 12px 7px 0;border-top:1px solid #e4e0d5;font-weight:400}
th{color:#8a8f88;width:88px}.who{color:#8a8f88;width:74px;font-size:16px}
.text{font:17px/1.45 "DejaVu Sans Mono",monospace}
ins{background:#f9dcd7;color:inherit;text-decoration:underline #c0392b}tr.inner td{border-top:0;padding-top:0}
</style><main><img src="data:image/jpeg;base64,{{ picture }}"><section>
<h1><i>{{ "%.0f"|format(gain.base.value) }} →</i> <b>{{ "%.0f"|format(gain.tuned.value) }}</b></h1>
<p>{{ metric }} similarity on {{ count }} held-out receipts, {{ "%+.0f"|format(gain.difference.value) }} points
({{ "%.0f"|format(gain.difference.low) }} to {{ "%.0f"|format(gain.difference.high) }}), tuned on {{ trained }} receipts
in {{ "%.1f"|format(minutes) }} minutes of one processor core. This receipt gained as much as the median one.</p>
<table>{% for row in rows %}
<tr><th rowspan="2">{{ row.name }}</th><td class="who">untuned</td><td class="text">{{ row.base or "—" }}</td></tr>
<tr class="inner"><td class="who">tuned</td><td class="text">{{ row.tuned or "—" }}</td></tr>{% endfor %}
</table></section></main>"""


def content(run: Path) -> dict[str, Any]:
    """What the picture shows, read from the run folder."""
    held_out = read_held_out(RunFolder(run))
    scores = json.loads((run / "scores.json").read_text())
    metric, mode = scores["metrics"][0], scores["mode"]
    before, after = (_per_sample(scores["systems"][f"{who}_{mode}"], metric) for who in ("base", "tuned"))
    place = sorted(range(len(after)), key=lambda place: after[place] - before[place])[len(after) // 2]
    sample, labels = held_out.samples[place], held_out.labels[place]
    replies = [_fields(run / "predictions" / f"{who}_{mode}.jsonl", sample.id) for who in ("base", "tuned")]
    rows = [
        {"name": name}
        | {
            who: _marked(str(label), str(reply.get(name, "")))
            for who, reply in zip(("base", "tuned"), replies, strict=True)
        }
        for name, label in labels.items()
    ]
    assert sample.media[0].path is not None
    return {
        "picture": base64.b64encode(sample.media[0].path.read_bytes()).decode(),
        "gain": scores["gain"][metric],
        "metric": metric.capitalize(),
        "count": len(after),
        "trained": sum(row["part"] == "train" for _, row in read_jsonl(run / "samples.jsonl")),
        "minutes": json.loads((run / "training.json").read_text())["cpu_seconds"] / 60,
        "rows": rows,
    }


def _per_sample(system: dict[str, Any], metric: str) -> list[float]:
    ratios = system["metrics"][metric]["samples"]
    return [
        numerator / denominator
        for numerator, denominator in zip(ratios["numerator"], ratios["denominator"], strict=True)
    ]


def _fields(path: Path, identifier: str) -> dict[str, Any]:
    return next(row["fields"] for _, row in read_jsonl(path) if row["id"] == identifier)


def _marked(label: str, reply: str) -> Any:
    return mark_difference(label, reply)[1]


def main() -> None:
    """Render and photograph."""
    run, out = Path(sys.argv[1]), Path(__file__).resolve().parents[2] / "docs" / "before-after.png"
    html = Environment(autoescape=True).from_string(PAGE).render(content(run))
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(html, encoding="utf-8")
        command = [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--hide-scrollbars",
        ]
        command += [f"--user-data-dir={folder}/profile", "--window-size=1200,540", f"--screenshot={out}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    print(out)


if __name__ == "__main__":
    main()
