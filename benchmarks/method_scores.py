"""Every method's score and cost on the same receipts and as many steps, with the embedded model. Resumable.

    python benchmarks/method_scores.py drawn                          # receipts of a shop chain the model has not seen
    python benchmarks/method_scores.py sroie --data FOLDER            # a fixed sub-sample of the ICDAR 2019 receipts

One `tailor compare-methods` over all of them: company, date and total of receipts, 24 to train on (each seen once, two
a step), 24 to score. That is enough to see what a method costs and whether it learns at all, not how far it gets. Rates
are each method's usual one, raised where a model of 12 million weights and few steps want more; none was searched.
Results go to benchmarks/results/methods_DATA.json, and from there into docs/methods.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from mllm_tailor.commands.compare_methods import compare_methods
from mllm_tailor.core.device import describe_machine
from mllm_tailor.core.io import read_json, write_json
from mllm_tailor.synthetic.folder import draw_folder

RESULTS = Path(__file__).parent / "results"
METHODS = (  # the most different first, so that a comparison broken off has something to compare
    "lora", "full:learning_rate=5e-4",
    "bottleneck:placement=series:width=64:learning_rate=2e-3",
    "bottleneck:placement=parallel:width=64:learning_rate=2e-3",
    "ia3:learning_rate=2e-2", "lomo:learning_rate=0.3", "prefix", "mezo:learning_rate=1e-5", "qlora",
    "dylora:learning_rate=4e-3", "galore:rank=32:learning_rate=2e-3", "norms:learning_rate=1e-2",
    "adalomo:learning_rate=5e-3", "lora_fa:learning_rate=4e-3", "vera:learning_rate=2e-2", "oft:learning_rate=4e-3",
    "lisa:learning_rate=5e-4:interval=4", "apollo:rank=32:learning_rate=1e-3", "prompt",
    "adalora:learning_rate=4e-3", "dora", "rslora:learning_rate=4e-4", "pissa:learning_rate=4e-4",
    "lora_plus:learning_rate=2e-4",
    "bottleneck:placement=houlsby:width=64:learning_rate=2e-3",
    "bottleneck:placement=pfeiffer:width=64:learning_rate=2e-3",
)  # fmt: skip
STEPS = {"drawn": 12, "sroie": 12}


def recipe_for(data: str, folder: Path, work: Path) -> dict[str, Any]:
    """The common part: everything but the method."""
    return {
        "name": data,
        "model": {"path": "embedded", "dtype": "float32", "trim": data == "sroie"},
        "data": {
            "train": str(folder), "held_out": {"column": "split", "value": "dev"}, "dev": 0, "faulty": "exclude",
            "limit": 24, "limit_held_out": 24,
        },
        "task": {"extract": {"company": "string", "date": "date", "total": "amount"}},
        "method": {"name": "lora", "rank": 32, "learning_rate": 2e-3, "parts": ["language"]},
        "train": {"batch_size": 2, "warmup_ratio": 0.1},
        "predict": {"max_new_tokens": 112, "batch_size": 24},
        "score": ["fuzzy", "exact", "f1"],
        "output": str(work),
    }  # fmt: skip


def main() -> None:
    """Draw if needed, compare, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=sorted(STEPS))
    parser.add_argument("--data", type=Path, help="the folder of SROIE")
    parser.add_argument("--work", type=Path, default=Path("runs"), help="where the runs lie, to be gone on with")
    parser.add_argument("--methods", default=",".join(METHODS), help="as for `tailor compare-methods`")
    said = parser.parse_args()
    folder = said.data or said.work / "receipts"
    if said.which == "drawn" and not (folder / "metadata.jsonl").exists():
        draw_folder(folder, 120, 40, seed=0)
    said.work.mkdir(parents=True, exist_ok=True)
    path = said.work / f"{said.which}.yaml"
    path.write_text(yaml.safe_dump(recipe_for(said.which, folder, said.work), sort_keys=False))
    compare_methods(path, [], said.methods, f"{STEPS[said.which]} steps")
    found = read_json(said.work / f"{said.which}-methods" / "comparison.json")
    write_json(RESULTS / f"methods_{said.which}.json", {"machine": describe_machine(), **found})


if __name__ == "__main__":
    main()
