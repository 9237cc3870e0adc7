"""`python -m pretraining STAGE --minutes N`: train a stage, going on where it stood, export the result or score it."""

from __future__ import annotations

import argparse
import importlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import torch
import yaml
from mllm_tailor.models.resolve import EMBEDDED

from pretraining import checkpoint, fonts

STAGES = {  # module of each stage that trains
    "vision": "vision",
    "language": "language",
    "copy": "flow_language",
    "lines": "flow_vision",
    "join": "stage3_joint",
    "read": "flow_join",
}


def setting(value: str) -> object:
    """A number, true, false, or text; YAML alone takes 2e-3 for text."""
    try:
        return float(value) if "e-" in value else yaml.safe_load(value)
    except ValueError:
        return value


def next_time(clock: str) -> float:
    """The next UTC moment at which the clock shows HH:MM, in seconds since 1970."""
    hour, minute = map(int, clock.split(":"))
    now = datetime.now(UTC)
    moment = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return (moment if moment > now else moment + timedelta(days=1)).timestamp()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pretraining", description=__doc__)
    parser.add_argument("stage", choices=["fonts", *STAGES, "keep", "ship", "score"])
    parser.add_argument("--minutes", type=float, default=60, help="wall clock of the stage in all, restarts included")
    parser.add_argument("--fresh", action="store_true", help="start anew instead of from the stage's checkpoint")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--name", help="checkpoint to write (default: the stage's name)")
    parser.add_argument("--checkpoints", type=Path, help="folder of the checkpoints (default: .checkpoints here)")
    parser.add_argument("--until", help="UTC time HH:MM at which to save and stop (copy, lines, read)")
    parser.add_argument("--folder", type=Path, default=EMBEDDED, help="where `ship` writes")
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="NAME=VALUE",
        help="settings of the stage: arguments of its function",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = {name: setting(value) for name, value in (pair.split("=", 1) for pair in arguments.set)}
    if arguments.checkpoints:
        checkpoint.FOLDER = arguments.checkpoints
    if arguments.until:
        settings["until"] = next_time(arguments.until)
    if arguments.stage == "fonts":
        print("apt-get install -y --no-install-recommends " + fonts.PACKAGES)
        print(
            f"{len(fonts.font_files())} font files found",
            sum(fonts.usable(path) for path, _ in fonts.font_files()),
            "usable",
        )
        return
    if arguments.stage == "ship":
        from pretraining.export import ship, ship_reader

        exported = ship_reader if arguments.name == "read" else ship
        print(exported(arguments.name or "join", arguments.folder, **settings))
        return
    if arguments.stage == "keep":
        from pretraining.export import keep_language

        print(keep_language(arguments.name or "language"))
        return
    if arguments.stage == "score":
        from pretraining.score import score

        print(score(arguments.folder))
        return
    from mllm_tailor.training import distributed as processes

    processes.init_process_group(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if processes.world_size() > 1 and arguments.stage not in ("join", "lines", "read"):
        parser.error(f"{arguments.stage} draws the same in every process: torchrun is for join, lines and read")
    stage = importlib.import_module(f"pretraining.{STAGES[arguments.stage]}")
    stage.train(
        arguments.minutes,
        not arguments.fresh,
        name=arguments.name or arguments.stage,
        **settings,
    )


if __name__ == "__main__":
    main()
