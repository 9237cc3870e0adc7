"""The entry of `tailor`: sets up the process, runs a command, turns failures into one message.

Nothing but the standard library is imported before `main` runs, so that Ctrl-C is quiet during imports too.
"""

from __future__ import annotations

import os
import sys

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE
VLLM = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process: no second copy of this program, and Ctrl-C ends all of it
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


def prepare_process() -> None:
    """Set what libraries read when they are loaded; called before torch is."""
    # Waiting threads spin first, in vain where other work has their cores: a prediction then took eight times the CPU
    # seconds. A three-hundredth of GNU OpenMP's usual spinning is as quick on free cores (docs/performance.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # oneDNN keeps the kernels of 1,024 products, a third of a MiB each, and samples of ever new lengths fill that. A
    # few forward passes' worth is as quick; fewer than one pass uses is not.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    for name, value in VLLM.items():
        os.environ.setdefault(name, value)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal of another encoding shows `?` for what it lacks
            stream.reconfigure(errors="replace")


def main(arguments: list[str] | None = None) -> None:
    """Run a command and end the process with its exit status."""
    try:
        prepare_process()
        from mllm_tailor.cli.app import run_command

        status = run_command(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. The same command continues where it stopped.\n")
        status = INTERRUPTED
    except BrokenPipeError:  # the reader of the output has gone, as in `tailor methods | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = BROKEN_PIPE
    sys.exit(status)


if __name__ == "__main__":
    main()
