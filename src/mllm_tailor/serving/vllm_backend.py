"""vLLM behind the same endpoints: `vllm serve` of the merged model on this machine, asked over HTTP.

vLLM prepares images and prompts itself, so its replies need not equal the run's: `tailor verify RUN --url` measures
what it serves. The adapter is merged, because vLLM applies adapters to the language part only and would leave out what
was trained in the vision tower and the projector.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx2

from mllm_tailor.core.errors import DataError, ModelError, RunError
from mllm_tailor.core.sample import Prediction
from mllm_tailor.generation.confidence import raw_scores
from mllm_tailor.models.inputs.internvl_processor import states_reflow
from mllm_tailor.recipe import DecodingMode
from mllm_tailor.run.merged import merged_folder
from mllm_tailor.run.replies import read_reply
from mllm_tailor.run.vllm_model import merged_path
from mllm_tailor.serving.jobs import Job, Outcome, Token
from mllm_tailor.serving.openai_client import Endpoint, EndpointReply
from mllm_tailor.serving.served import ServedModel

logger = logging.getLogger(__name__)

AT_A_TIME = 64
START_SECONDS = 1800.0  # to load a large model
POLL = 0.5
INSTALL = "`--engine vllm` needs vLLM: install it in this environment (pip install 'vllm>=0.32')"


def vllm_command(served: ServedModel, port: int) -> list[str]:
    """The command that serves a run's merged model.

    Raises:
        RunError: when vLLM is not installed, the run's replies are not generated, or its model reads reflowed pages.
        ModelError: when the adapter cannot be merged.
    """
    if shutil.which("vllm") is None:
        raise RunError(INSTALL)
    if served.mode is DecodingMode.LIKELIHOOD:
        raise RunError("this task takes the likeliest of a closed set of replies — use `--engine builtin`")
    framings = served.run.recipe.predict.framings
    if framings > 1:
        raise RunError(
            f"the recipe sets predict.framings={framings}, which vLLM's server does not read — use `--engine builtin`"
        )
    folder = merged_folder(served.run, served.folder, merged_path(served.run, served.folder))
    if states_reflow(folder):
        raise RunError(
            f"{served.name}: reads pages whose printed lines are set one after the other (model.reflow), and vLLM's "
            "server prepares images itself — use `--engine builtin`"
        )
    address = ["--host", "127.0.0.1", "--port", str(port)]
    return ["vllm", "serve", str(folder), "--served-model-name", served.name, *address]


class VllmBackend:
    """Answers jobs by a server on this machine, which it starts and ends."""

    def __init__(self, served: ServedModel, command: Sequence[str], port: int) -> None:
        self.served, self.command = served, list(command)
        self.endpoint = Endpoint(f"http://127.0.0.1:{port}/v1", served.name)
        self.health = f"http://127.0.0.1:{port}/health"
        self._pool = ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="vllm")
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = threading.Event()
        self._failure: str | None = None
        self._waiting = 0
        self._closed = False

    @property
    def ready(self) -> bool:
        """Whether the server answers."""
        return self._ready.is_set()

    @property
    def failure(self) -> str | None:
        """Why it does not."""
        return self._failure

    def start(self) -> None:
        """Start the server, and wait for it in another thread."""
        self._process = subprocess.Popen(self.command)
        threading.Thread(target=self._await, name="vllm-start", daemon=True).start()

    def _await(self) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and not self._closed:
            assert self._process is not None
            if self._process.poll() is not None:
                self._failure = f"the server ended with status {self._process.returncode}"
                return
            try:
                if httpx2.get(self.health, timeout=5).status_code == 200:
                    self._ready.set()
                    return
            except httpx2.HTTPError:
                logger.debug("vLLM does not answer yet")
            time.sleep(POLL)
        self._failure = "the server did not become ready"

    def submit(self, job: Job) -> None:
        """Have a job answered."""
        if self._closed:
            raise RuntimeError("closed")
        self._waiting += 1
        self._pool.submit(self._answer, job)

    def waiting(self) -> int:
        """Jobs that are not answered yet."""
        return self._waiting

    def close(self) -> None:
        """Finish what was submitted, then end the server."""
        self._closed = True
        self._pool.shutdown(wait=True)
        self.endpoint.close()
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def _answer(self, job: Job) -> None:
        try:
            if job.abandoned:
                job.result.cancel()
            else:
                job.result.set_result(self._outcome(job))
        except DataError as error:
            job.result.set_result(Outcome(Prediction(job.sample.id, "", problem=str(error))))
        except Exception as error:
            logger.exception("vLLM failed on a request")
            job.result.set_exception(error)
        finally:
            self._waiting -= 1

    def _outcome(self, job: Job) -> Outcome:
        task, run = job.route.task, self.served.run
        if job.route.mode == DecodingMode.LIKELIHOOD:
            raise ModelError("vLLM does not compare replies")
        limit = run.recipe.predict.max_new_tokens
        reply = self.endpoint.ask(
            task.phrase(job.sample.unlabelled()),
            system=run.model.system,
            schema=task.schema() if job.route.mode == DecodingMode.CONSTRAINED else None,
            limit=limit if job.limit is None else min(limit, job.limit),
        )
        read = read_reply(task, job.sample.id, reply.text, seconds=reply.seconds, cut=reply.cut)
        pieces = [data for data, _ in reply.tokens]
        logprobs = [logprob for _, logprob in reply.tokens]
        raw = raw_scores(read.fields, pieces, logprobs, json_reply=task.schema() is not None) if pieces else {}
        return Outcome(replace(read, raw=raw), max(1, reply.prompt_tokens), _tokens(reply))


def _tokens(reply: EndpointReply) -> tuple[Token, ...]:
    return tuple(Token(data, logprob) for data, logprob in reply.tokens)
