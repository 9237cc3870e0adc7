"""`tailor chat`: questions about pictures, clips and recordings in the terminal, word by word."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TextIteratorStreamer

from mllm_tailor.commands.console import show
from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Sample, Turn
from mllm_tailor.generation import read_inputs
from mllm_tailor.models import LoadedModel, load_model, prompt_inputs
from mllm_tailor.run.data_record import read_data_facts
from mllm_tailor.run.predict import open_tuned
from mllm_tailor.run.resolve import ResolvedRun, resolve_here
from mllm_tailor.run.run_dir import RunFolder, open_run

HELP = "Ask about the files; /new starts over, /quit (or Ctrl-D) ends."


def chat(name: str, files: Sequence[Path | str], ask: Callable[[str], str] = input) -> None:
    """Talk until the user ends it. `name` is a run folder or anything `load_model` takes.

    Raises:
        DataError: when a file cannot be read.
    """
    folder = Path(name)
    run = open_run(folder) if RunFolder(folder).recipe_file.is_file() else None
    resolved = resolve_here(run.recipe()) if run else None
    model = open_tuned(resolved, run.adapter) if run and resolved else load_model(name)
    start = opening(files)
    show(HELP)
    if run and run.data.is_file() and read_data_facts(run).get("own_systems"):
        show("This run was trained with system texts of its rows' own; here it is asked without one.")
    talk = start
    while (question := _next(ask)) is not None:
        if question == "/new":
            talk = start
            continue
        answer = ""
        for piece in stream(model, worded(replace(talk, prompt=question), resolved)):
            answer += piece
            show(piece, end="")
        show()
        talk = replace(talk, history=(*talk.history, Turn("user", question), Turn("assistant", answer)))


def worded(sample: Sample, run: ResolvedRun | None) -> Sample | Conversation:
    """The question in the words of the run's task, where that takes questions; else as it is."""
    return run.task.phrase(sample) if run is not None and run.task.name == "answer" else sample


def opening(files: Sequence[Path | str]) -> Sample:
    """A conversation about all the files, before the first question."""
    inputs = read_inputs(list(files))
    for sample in inputs:
        if "problem" in sample.extra:
            raise DataError(str(sample.extra["problem"]))
    return Sample(id="chat", media=tuple(media for sample in inputs for media in sample.media), source="chat")


def _next(ask: Callable[[str], str]) -> str | None:
    """The next question, or None to end."""
    try:
        while not (question := ask("› " if sys.stdin.isatty() else "").strip()):
            pass
    except EOFError:
        return None
    return None if question == "/quit" else question


def stream(model: LoadedModel, sample: Sample | Conversation, max_new_tokens: int = 512) -> Iterator[str]:
    """The reply, piece by piece as it is generated (greedy, with the checkpoint's own template)."""
    streamer: Any = TextIteratorStreamer(model.tokenizer, skip_prompt=True, skip_special_tokens=True)
    settings = {
        "max_new_tokens": max_new_tokens,
        "do_sample": False,
        "eos_token_id": sorted(model.stop_ids),
        "pad_token_id": model.pad_id,
        "streamer": streamer,
    }
    inputs = prompt_inputs([sample], model)
    failure: list[BaseException] = []

    def work() -> None:
        try:
            model.model.generate(**inputs, **settings)
        except BaseException as error:  # noqa: BLE001 (raised again in the main thread)
            failure.append(error)
            streamer.end()

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    yield from streamer
    worker.join()
    if failure:
        raise failure[0]
