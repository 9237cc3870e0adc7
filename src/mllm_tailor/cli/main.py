"""The entry of `tailor`: sets up the process, runs a command, turns failures into one message.

Nothing but the standard library is imported before `main` runs, so that Ctrl-C is quiet during imports too.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import FrameType

IMPORTING = "<frozen importlib._bootstrap>"
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE
MESSAGE = "\nInterrupted. The same command continues where it stopped.\n"
VLLM = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process: no second copy of this program, and Ctrl-C ends all of it
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
RAY = {"RAY_USAGE_STATS_ENABLED": "0"}  # it reports to its makers unless told


def prepare_process() -> None:
    """Set what libraries read when they are loaded; called before torch is."""
    # Waiting threads spin first, in vain where other work has their cores: a prediction then took eight times the CPU
    # seconds. A three-hundredth of GNU OpenMP's usual spinning is as quick on free cores (docs/performance.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # oneDNN keeps the kernels of 1,024 products, a third of a MiB each, and samples of ever new lengths fill that. A
    # few forward passes' worth is as quick; fewer than one pass uses is not.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    for name, value in (VLLM | RAY).items():
        os.environ.setdefault(name, value)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal of another encoding shows `?` for what it lacks
            stream.reconfigure(errors="replace")


def prepare_imports() -> None:
    """Load what a command needs with less work than usual: see `cli.startup` and `cli.loading`."""
    gc.disable()  # until the modules of the command are loaded
    from mllm_tailor.cli.loading import LoadingFinder

    sys.meta_path.insert(0, LoadingFinder())


def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signal is always SIGINT
    """End at once while a module is being imported, else raise KeyboardInterrupt.

    Libraries swallow the exception where they guard their imports, and Python itself reports it with a traceback in
    callbacks of weak references, with which imports abound. No file is written while a module is imported.
    """
    while frame is not None:
        if frame.f_code.co_filename == IMPORTING:
            os.write(2, MESSAGE.encode())
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> None:
    """Run a command and end the process with its exit status."""
    if own := signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else its parent had it ignored
        signal.signal(signal.SIGINT, interrupt)
    try:
        prepare_process()
        prepare_imports()
        from mllm_tailor.cli.app import run_command

        status = run_command(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stderr.write(MESSAGE)
        status = INTERRUPTED
    except BrokenPipeError:  # the reader of the output has gone, as in `tailor methods | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = BROKEN_PIPE
    if own:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what libraries do at the end of a process is not interrupted
    gc.freeze()  # Python searches for garbage as it ends: a second of CPU time over the objects of torch and others
    sys.exit(status)


if __name__ == "__main__":
    main()
