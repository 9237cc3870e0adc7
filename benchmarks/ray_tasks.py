"""The commands that compare trainings, in turn and as tasks of a Ray cluster: are their results the same?

    python benchmarks/ray_tasks.py      # some minutes on two cores; --out FILE elsewhere

`tailor curve`, `sweep`, `compare-methods` and a `run` with folds, each with `model: tiny` for a few steps, as a user
gives them: once as they are, once with `--on ray` on two nodes inside this machine. What is compared is the JSON that
each prints, but for paths and for what clocks and memory give. Exit status 1 when any of it differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ray_nodes import RAY, in_ray_environment, ray_nodes

HERE = Path(__file__).resolve().parent
MEASURED = ("seconds", "mib", "memory", "samples_per", "path", "folder", "recipe", "output", "run", "report", "bytes")
COMMANDS = {
    "curve": ("curve", "RECIPE", "--at", "4,8"),
    "sweep": ("sweep", "RECIPE", "--learning-rates", "1e-3,1e-2", "--budget", "4 steps", "data.dev=0.3"),
    "compare-methods": ("compare-methods", "RECIPE", "--methods", "lora,ia3,lora+prefer", "--budget", "3 steps"),
    "folds": ("run", "RECIPE", "data.held_out={folds: 3}"),
}


def recipe(place: Path) -> Path:
    import yaml

    values = {
        "name": "tiny",
        "model": {"path": "tiny", "dtype": "float32"},
        "data": {"train": str(place / "data"), "held_out": {"column": "split", "value": "dev"}, "dev": 0},
        "task": {"extract": {"company": "string", "total": "amount"}},
        "method": {"name": "lora", "rank": 4},
        "train": {"steps": 3, "batch_size": 2, "processes": 1, "learning_rate": 0.01},
        "predict": {"max_new_tokens": 8},
        "score": ["fuzzy", "exact"],
    }
    file = place / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def compared(value: Any) -> Any:
    """A result without what differs from call to call."""
    if isinstance(value, dict):
        return {
            name: compared(inner)
            for name, inner in value.items()
            if not any(part in str(name) for part in MEASURED) or isinstance(inner, (dict, list))
        }
    if isinstance(value, list):
        return [compared(inner) for inner in value]
    return round(value, 6) if isinstance(value, float) else value


def run(name: str, file: Path, output: Path, *more: str) -> tuple[Any, float]:
    """The JSON that a command prints, and its seconds by the clock."""
    words = [word.replace("RECIPE", str(file)) for word in COMMANDS[name]]
    command = [sys.executable, "-m", "mllm_tailor.cli.main", *words, f"output={output}", "--json", *more]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.returncode}\n{done.stderr[-3000:]}")
    return compared(json.loads(done.stdout)), time.perf_counter() - started


def figures(value: Any) -> int:
    """How many numbers a result holds: none would make every comparison hold."""
    if isinstance(value, dict):
        return sum(map(figures, value.values()))
    if isinstance(value, list):
        return sum(map(figures, value))
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "ray_tasks.json")
    arguments = parser.parse_args()
    in_ray_environment()
    from mllm_tailor.core.device import describe_machine
    from mllm_tailor.synthetic import draw_folder

    result: dict[str, Any] = {"ray": RAY, "machine": describe_machine(), "commands": {}}
    with tempfile.TemporaryDirectory(prefix="tailor-ray-") as folder:
        place = Path(folder)
        draw_folder(place / "data", 16, 12, seed=5)
        file = recipe(place)
        with ray_nodes(2) as nodes:
            for name in COMMANDS:
                alone, seconds = run(name, file, place / "alone" / name)
                shared, ray_seconds = run(name, file, place / "ray" / name, "--on", "ray", "--address", nodes.address)
                result["commands"][name] = {
                    "figures": figures(alone), "equal": alone == shared,
                    "wall_seconds_in_turn": round(seconds, 1), "wall_seconds_on_ray": round(ray_seconds, 1),
                }  # fmt: skip
                print(json.dumps({name: result["commands"][name]}), flush=True)
                if alone != shared:
                    print(json.dumps([alone, shared], indent=1)[:6000])
    result["holds"] = all(entry["equal"] and entry["figures"] > 3 for entry in result["commands"].values())
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(not result["holds"])


if __name__ == "__main__":
    main()
