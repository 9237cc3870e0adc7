"""Read images with RapidOCR (its models are in the wheel), in an environment of its own. Resumable.

python read_pages.py OUT < PATHS      # one path a line; one JSON row each: file, lines (text, quad), CPU seconds
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from rapidocr_onnxruntime import RapidOCR


def main() -> None:
    """Append a row for every path that OUT has none for."""
    out = Path(sys.argv[1])
    done = {json.loads(line)["file"] for line in out.read_text().splitlines()} if out.exists() else set()
    engine = RapidOCR(intra_op_num_threads=1, inter_op_num_threads=1)
    with out.open("a", encoding="utf-8") as stream:
        for path in sys.stdin.read().splitlines():
            if path in done:
                continue
            start = time.process_time()
            lines, _ = engine(path)
            row = {
                "file": path,
                "lines": [
                    {"text": text, "quad": [float(value) for corner in quad for value in corner]}
                    for quad, text, _ in lines or []
                ],
                "seconds": time.process_time() - start,
            }
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            stream.flush()


if __name__ == "__main__":
    main()
