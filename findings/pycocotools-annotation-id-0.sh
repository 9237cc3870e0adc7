#!/usr/bin/env bash
# pycocotools 2.0.11: an annotation whose id is 0 never counts as found, because a match is stored as the id and 0 means
# "none". Perfect boxes for two objects then score an AP of 0.25 in place of 1. COCO files numbered from 0, as
# label-studio-sdk 2.1.2 writes them, are scored too low.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check pycocotools==2.0.11 numpy==2.4.6 2>/dev/null
"$folder/env/bin/python" - <<'PYTHON' | tee "$folder/seen"
import contextlib
import io

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def average_precision(first_id):
    boxes = [[10, 10, 20, 20], [50, 10, 20, 20]]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": 1, "width": 100, "height": 100}],
            "categories": [{"id": 1, "name": "stamp"}],
            "annotations": [
                {"id": first_id + n, "image_id": 1, "category_id": 1, "bbox": box, "area": 400, "iscrowd": 0}
                for n, box in enumerate(boxes)
            ],
        }
        truth.createIndex()
        found = truth.loadRes([{"image_id": 1, "category_id": 1, "bbox": box, "score": 0.9} for box in boxes])
        judge = COCOeval(truth, found, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return round(float(judge.stats[0]), 3)


print("ids 1, 2:", average_precision(1))
print("ids 0, 1:", average_precision(0))
PYTHON
diff "$folder/seen" - <<'EXPECTED' && echo "as found"
ids 1, 2: 1.0
ids 0, 1: 0.252
EXPECTED
