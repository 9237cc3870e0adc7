"""Batches: the rows of an uploaded file are answered behind all other requests; an interrupted batch continues.

Every row's answer is appended to the output as it is made, with a checksum. Started again on the same folder, the
server answers the rows that have none yet, or one that was cut off or damaged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pydantic import ValidationError

from mllm_tailor.core.failures import describe
from mllm_tailor.core.strict_json import parse_json
from mllm_tailor.core.summed_rows import append_row, finish_rows, intact_lines
from mllm_tailor.serving.chat import completion, plan_chat
from mllm_tailor.serving.errors import ApiError
from mllm_tailor.serving.file_store import FileStore, new_number
from mllm_tailor.serving.responses import plan_response, response
from mllm_tailor.serving.schemas import BatchRequest, ChatRequest, ResponsesRequest
from mllm_tailor.serving.state import ServerState
from mllm_tailor.serving.strict import read_json_body

logger = logging.getLogger(__name__)

AT_A_TIME = 32  # rows given to the engine, so that it can batch them
OPEN = ("validating", "in_progress", "cancelling")
DAY = 86_400
PAUSE = 30.0  # seconds until a batch whose answers could not be written is tried again


class Batches:
    """The batches of one server."""

    def __init__(self, state: ServerState, store: FileStore) -> None:
        self.state, self.store = state, store
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def create(self, asked: BatchRequest) -> dict[str, Any]:
        """Begin a batch.

        Raises:
            ApiError: for a file that is not there.
        """
        self.store.row(asked.input_file_id)
        now = int(time.time())
        row = {
            "id": new_number("batch"),
            "object": "batch",
            "endpoint": asked.endpoint,
            "input_file_id": asked.input_file_id,
            "completion_window": asked.completion_window,
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "errors": None,
            "created_at": now,
            "expires_at": now + DAY,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": asked.metadata,
        }
        self.store.write(row)
        self.begin(row)
        return row

    def begin(self, row: dict[str, Any]) -> None:
        """Work on a batch, or go on with it."""
        task = asyncio.create_task(self._guarded(row))
        self.tasks[row["id"]] = task
        task.add_done_callback(lambda _: self.tasks.pop(row["id"], None))

    def resume(self) -> None:
        """Go on with every batch that an earlier server left unfinished."""
        for row in self.store.rows("batch"):
            if row["status"] in OPEN:
                self.begin(row)

    async def end(self) -> None:
        """Stop; what is unfinished is continued by the next server."""
        tasks = list(self.tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def cancel(self, number: str) -> dict[str, Any]:
        """Stop a batch for good."""
        row = self.store.row(number)
        if row["status"] in OPEN:
            task = self.tasks.get(number)
            if task is not None:
                task.cancel()
            row["status"], row["cancelled_at"] = "cancelled", int(time.time())
            self.store.write(row)
        return row

    async def _guarded(self, row: dict[str, Any]) -> None:
        while True:
            try:
                await self._work(row)
                return
            except Exception as error:
                if (of_disk := _of_disk(error)) is None:
                    logger.exception("Batch %s failed", row["id"])
                    self._fail(row, "the server failed on this batch; its log has the reason")
                    return
                logger.error("Batch %s waits: %s", row["id"], describe(of_disk))
            await asyncio.sleep(PAUSE)

    def _fail(self, row: dict[str, Any], reason: str) -> None:
        row["status"], row["failed_at"] = "failed", int(time.time())
        row["errors"] = {"object": "list", "data": [{"code": "batch_failed", "message": reason}]}
        self.store.write(row)

    async def _work(self, row: dict[str, Any]) -> None:
        try:
            asked = _requests(self.store, row, self.state.settings.limits.batch_rows)
        except ApiError as error:
            self._fail(row, error.message)
            return
        output = row["output_file_id"] or new_number("file")
        row.update(status="in_progress", output_file_id=output, in_progress_at=int(time.time()))
        self.store.write(row)
        path = self.store.content(output)
        if not path.exists():
            path.touch(mode=0o600)
        written = (parse_json(line.decode()) for line in intact_lines(path))
        done = {str(answer["custom_id"]): answer for answer in written}
        while not self.state.backend.ready:
            self.state_failed()
            await asyncio.sleep(0.5)
        limit = asyncio.Semaphore(AT_A_TIME)

        async def one(request: Mapping[str, Any]) -> None:
            async with limit:
                answer = await answer_row(self.state, request)
                append_row(path, answer)
                done[str(answer["custom_id"])] = answer

        async with asyncio.TaskGroup() as group:
            for request in asked:
                if request["custom_id"] not in done:
                    group.create_task(one(request))
        if len(done) < len(asked):
            return  # the server is ending: the next one goes on
        failed = sum(answer["response"]["status_code"] != 200 for answer in done.values())
        row["request_counts"] = {"total": len(asked), "completed": len(asked) - failed, "failed": failed}
        self.store.note(output, f"{row['id']}_output.jsonl", "batch_output")
        finish_rows(path)
        row.update(status="completed", completed_at=int(time.time()))
        self.store.write(row)

    def state_failed(self) -> None:
        """Raise when the models cannot be loaded, so that nothing is waited for."""
        if self.state.backend.failure is not None:
            raise RuntimeError(self.state.backend.failure)


def _of_disk(error: BaseException) -> OSError | None:
    """A failure to write an answer, such as a full disk, after which everything that was written is kept."""
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_of_disk, error.exceptions)), None)
    return error if isinstance(error, OSError) else None


def _requests(store: FileStore, batch: Mapping[str, Any], most: int) -> list[dict[str, Any]]:
    """The rows of the input.

    Raises:
        ApiError: naming the first row that is no request.
    """
    rows: list[dict[str, Any]] = []
    names: set[str] = set()
    lines = store.read(batch["input_file_id"]).splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = read_json_body(line)
        except ApiError as error:
            raise ApiError(400, f"line {number}: {error.message}") from None
        name = row.get("custom_id") if isinstance(row, dict) else None
        if not isinstance(name, str) or name in names:
            raise ApiError(400, f"line {number}: `custom_id` should be text that no other line has")
        if row.get("url") != batch["endpoint"] or row.get("method") != "POST" or not isinstance(row.get("body"), dict):
            raise ApiError(400, f"line {number}: `method` POST, `url` {batch['endpoint']} and a `body` are needed")
        names.add(name)
        rows.append(row)
        if len(rows) > most:
            raise ApiError(413, f"over the limit of {most:,} rows")
    if not rows:
        raise ApiError(400, "the file holds no request")
    return rows


async def answer_row(state: ServerState, request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to one row; an error is its answer."""
    make: Callable[[ServerState, Any], Awaitable[dict[str, Any]]]
    make = _answer_chat if request["url"].endswith("completions") else _answer_response
    try:
        status, body = 200, await make(state, request["body"])
    except ApiError as error:
        if error.status == 503:
            raise asyncio.CancelledError from None  # the server is ending: the next one goes on
        status, body = error.status, error.body()
    except ValidationError as error:
        first = error.errors()[0]
        refusal = ApiError(400, f"`{'.'.join(map(str, first['loc']))}`: {first['msg']}", code="invalid_request")
        status, body = 400, refusal.body()
    return {
        "id": new_number("batch"),
        "custom_id": request["custom_id"],
        "response": {"status_code": status, "request_id": "", "body": body},
        "error": None,
    }


async def _answer_chat(state: ServerState, body: Any) -> dict[str, Any]:
    plan, _ = await plan_chat(state, ChatRequest.model_validate({**body, "stream": None, "stream_options": None}))
    plan.job.background = True
    return completion(plan, await state.answer(plan.job))


async def _answer_response(state: ServerState, body: Any) -> dict[str, Any]:
    plan = await plan_response(state, ResponsesRequest.model_validate({**body, "stream": None}))
    plan.job.background = True
    return response(plan, await state.answer(plan.job))
